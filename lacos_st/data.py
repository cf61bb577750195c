"""Files and Hub data sets -> one `datasets.Dataset` with columns `anchor, positive[, negative...]`.

Rows stream from `readers.py`, `columns.py` says which text is which, and the texts go straight into Arrow
buffers: in memory is the text once, plus 16 bytes a row for finding duplicates and 8 for the order. Nothing
is copied to drop, repeat, mix or sample rows; that is one list of row numbers over the buffers. (NLI rows are: the
triplets are joined from them.) Measured: a million pairs, 185 MB of JSON lines, add 285 MB to the process.

Decisions, each where it can surprise:

* **NLI.** Every entailment becomes (premise, entailment, contradiction): the i-th entailment of a premise
  takes its i-th contradiction, and starts again where these run out. Entailments of premises without a
  contradiction are used only if the result has no negatives anyway. Neutral and unlabelled rows are not used,
  nor is a hypothesis that has both labels.
* **Negatives.** The trainer needs the same columns in all rows: the result has as many negatives as the
  source with the fewest, the rest is dropped, and the report says so. To keep them, load each source by
  itself and hand the trainer a dict of data sets; it then draws each batch from one of them.
* **Duplicates.** A row whose texts equal those of an earlier one, whitespace aside, is dropped, across
  sources too. Texts themselves stay exactly as they are.
* **Weights.** `path@W`: each distinct row of that source is seen W times an epoch: `@2` twice, `@0.5` a
  random half, `@1.5` once, and a random half of them twice. Weights of other sources don't matter.
* **Order.** Of a single source that of the file, of several one shuffle by `seed`. `max_rows` draws a random
  sample: the head of a file is rarely like the rest.
"""

from __future__ import annotations

import logging
import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from lacos_st.columns import BadRow, Columns, Layout, layout_of
from lacos_st.hub import open_hub
from lacos_st.mixing import Builder, digest, first_occurrences, match_nli, mix, take
from lacos_st.readers import FORMATS, DataError, Row, Table, open_file, positional_names

if TYPE_CHECKING:
    import datasets

__all__ = ["DataError", "DataReport", "SourceReport", "load_training_data"]

logger = logging.getLogger(__name__)
Sources = str | Path | Sequence[str | Path] | Mapping[str, float]
_EXAMPLES = 5  # bad rows that a report quotes


@dataclass
class SourceReport:
    """What became of the rows of one source.

    Attributes:
        name: The path or the name on the Hub.
        kind: "text", "tuple", "nli" or "scored".
        columns: The columns that were read.
        read: Records in it.
        bad: Rows that could not be used; `examples` quotes the first, with file and line.
        unused: Good rows that make no example: neutral or unlabelled NLI rows, contradictions, low scores.
        duplicates: Examples that had occurred before.
        used: Distinct examples.
        sampled: Examples in the result, after weights and `max_rows`.
    """

    name: str
    kind: str = ""
    columns: list[str] = field(default_factory=list)
    read: int = 0
    bad: int = 0
    unused: int = 0
    duplicates: int = 0
    used: int = 0
    sampled: int = 0
    examples: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = (("unused", self.unused), ("duplicates", self.duplicates), ("bad", self.bad))
        weighted = f", {self.sampled:,} after weights and sampling" if self.sampled != self.used else ""
        rest = "".join(f", {count:,} {name}" for name, count in counts if count)
        head = f"{self.name} ({self.kind}: {', '.join(self.columns)})"
        lines = [f"{head}: {self.read:,} read, {self.used:,} used{weighted}{rest}"]
        lines += [f"  {example}" for example in self.examples]
        return "\n".join(lines)


@dataclass
class DataReport:
    """What `load_training_data` did: one `SourceReport` for each source, and notes on what was decided."""

    sources: list[SourceReport]
    rows: int = 0
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join([*map(str, self.sources), *self.notes, f"{self.rows:,} training rows"])


def _log(report: DataReport) -> None:
    for source in report.sources:
        for line in str(source).splitlines():
            logger.info(line)
    for note in report.notes:
        logger.warning(note)
    logger.info("%s training rows", f"{report.rows:,}")


def load_training_data(
    sources: Sources,
    *,
    columns: Columns | Mapping[str, Columns] | None = None,
    on_bad_row: Literal["error", "skip"] = "error",
    max_rows: int | None = None,
    min_score: float | None = None,
    seed: int = 42,
    on_report: Callable[[DataReport], None] = _log,
) -> datasets.Dataset:
    r"""Load training data for a contrastive loss, and say what became of it.

    Args:
        sources: One or several files (.txt, .csv, .tsv, .jsonl, each also .gz; .parquet), directories saved
            by `datasets`, or Hub data sets `owner/name[:subset[:split]]`, each with an optional `@weight`; or
            a mapping from these to weights.
        columns: Which columns to read, see `columns.layout_of`, for all sources or, as a mapping from source
            to such, for each. Default: by their names.
        on_bad_row: "error" raises at the first row that cannot be used; "skip" drops such rows and counts
            them.
        max_rows: Take a random sample of so many rows. Default: all.
        min_score: Use pairs with a score of at least this. Needed if there is a score, and only then.
        seed: Of the sample, the mixture and fractional weights.
        on_report: Called with the `DataReport`. Default: it is logged, its notes as warnings.

    Returns:
        A `datasets.Dataset` in memory with the columns `anchor, positive[, negative, negative_2, ...]`.

    Raises:
        DataError: A user's mistake, named with file and line; see the head of this file for what is decided
            how.

    Example:
        >>> import json, tempfile
        >>> path = Path(tempfile.mkdtemp(), "nli.jsonl")
        >>> rows = [("A dog runs.", "An animal moves.", 0), ("A dog runs.", "A dog sleeps.", 2)]
        >>> lines = [json.dumps(dict(zip(("premise", "hypothesis", "label"), row))) for row in rows]
        >>> _ = path.write_text("\n".join(lines))
        >>> load_training_data(path)[0]
        {'anchor': 'A dog runs.', 'positive': 'An animal moves.', 'negative': 'A dog sleeps.'}
    """
    import datasets

    if on_bad_row not in ("error", "skip"):
        raise DataError(f"on_bad_row={on_bad_row!r} must be 'error' or 'skip'.")
    if max_rows is not None and max_rows < 1:
        raise DataError(f"max_rows={max_rows} must be at least 1.")
    weighted = _weighted(sources)
    per_source = isinstance(columns, Mapping) and any(name in columns for name, _ in weighted)
    if per_source and isinstance(columns, Mapping):
        strange = set(columns) - {name for name, _ in weighted}
        if strange:
            raise DataError(f"columns names {sorted(strange)[0]!r}, which is none of the sources.")
    parts = []
    for name, _ in weighted:
        chosen: Any = columns.get(name) if per_source and isinstance(columns, Mapping) else columns
        table = open_source(name)
        parts.append(_read(table, layout_of(table, chosen), on_bad_row, min_score))
    if min_score is not None and not any(part.report.kind == "scored" for part in parts):
        raise DataError(
            f"min_score={min_score} is set, and no source is read with scores. Leave it out, or name the columns: "
            "columns=['anchor=...', 'positive=...', 'score=...']."
        )
    report = DataReport([part.report for part in parts])
    negatives = min(part.negatives for part in parts)
    for part in parts:
        if part.negatives > negatives:
            report.notes.append(
                f"{part.report.name} has {part.negatives} negative(s) a row, another source {negatives}: "
                f"{negatives} kept. To keep all, train on a dict of data sets, one for each source."
            )
    tables = [part.table(negatives) for part in parts]
    keep, fingerprint = first_occurrences(tables)
    bounds = np.cumsum([0, *map(len, tables)])
    rows = mix(keep, bounds, [weight for _, weight in weighted], max_rows, seed)
    for part, start, end in zip(parts, bounds, bounds[1:], strict=False):
        part.report.used = int(keep[start:end].sum())
        part.report.duplicates = int(end - start) - part.report.used
        part.report.sampled = int(((rows >= start) & (rows < end)).sum())
    report.rows = len(rows)
    if not len(rows):
        raise DataError("The weights leave no row to train on; raise them.")
    whole = pa.concat_tables(tables)
    # A fingerprint is given because `datasets` would pickle all rows, several times their size, to make one.
    data = datasets.Dataset(datasets.table.InMemoryTable(whole), fingerprint=fingerprint)
    if len(rows) != len(whole) or not (np.diff(rows) == 1).all():
        data = data.select(rows)
    on_report(report)
    return data


def _weighted(sources: Sources) -> list[tuple[str, float]]:
    """Take the weights off the sources; a name that exists as it stands has none."""
    if isinstance(sources, Mapping):
        pairs: list[tuple[str, Any]] = [(str(name), weight) for name, weight in sources.items()]
    else:
        pairs = []
        for source in [sources] if isinstance(sources, str | Path) else sources:
            found = re.fullmatch(r"(.+)@([^@/\\]+)", str(source))
            if found and isinstance(source, str) and not Path(source).exists():
                pairs.append((found[1], found[2]))
            else:
                pairs.append((str(source), 1.0))
    if not pairs:
        raise DataError("No training data was given: name at least one file or Hub data set.")
    weighted = []
    for name, given in pairs:
        try:
            weight = float(given)
        except (TypeError, ValueError):
            weight = 0.0
        if not 0 < weight < float("inf"):
            raise DataError(f"The weight {given!r} of {name!r} must be a number above 0: {name}@0.5, for example.")
        weighted.append((name, weight))
    twice = [name for name, _ in weighted if [other for other, _ in weighted].count(name) > 1]
    if twice:
        raise DataError(f"The source {twice[0]!r} is given twice; give it once, with a weight: {twice[0]}@2.")
    return weighted


def open_source(name: str) -> Table:
    """Open a training source by name: a file, a directory that `datasets` saved, or a Hub data set.

    Raises:
        DataError: There is no such file, or the data set cannot be had.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return open_hub(str(path))
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if path.exists() or suffix.lower() in FORMATS or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(:[\w.-]*){0,2}", name):
        if not path.exists():
            raise DataError(f"There is no file {name!r} (a Hub data set is written owner/name[:subset[:split]]).")
        return open_file(path)
    return open_hub(name)


@dataclass
class _Part:
    """The examples of one source: columns of texts, and for NLI what to join them by."""

    report: SourceReport
    columns: list[pa.ChunkedArray]
    nli: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None  # rows of (premise and entailment, contradiction)

    @property
    def negatives(self) -> int:
        if self.nli is None:
            return max(len(self.columns) - 2, 0)
        return int(len(self.nli[1]) > 0)

    def table(self, negatives: int) -> pa.Table:
        if self.nli is None:
            columns = self.columns * 2 if len(self.columns) == 1 else self.columns[: 2 + negatives]
        else:
            entailed, contradicted, alone = self.nli
            premise, hypothesis = self.columns
            rows = entailed if negatives else np.sort(np.concatenate([entailed, alone]))
            columns = [take(premise, rows), take(hypothesis, rows)]
            columns += [take(hypothesis, contradicted)] * negatives
            self.report.unused = self.report.read - self.report.bad - len(rows)
        return pa.table(columns, positional_names(len(columns)))


def _read(table: Table, layout: Layout, on_bad_row: str, min_score: float | None) -> _Part:
    """Stream a source into Arrow columns."""
    report = SourceReport(table.name, layout.kind, layout.columns)
    if layout.kind == "scored" and min_score is None:
        raise DataError(
            f"{table.name} has scores in column {layout.extra!r}. A contrastive loss takes pairs of one "
            "meaning only: say from which score on a pair is one, for example min_score=4 on a scale of 0 to 5; "
            f"or name two columns to take every row: columns={list(layout.texts)}."
        )
    builder: Builder | None = None
    width = 0
    labels, premises, hypotheses = array("b"), array("Q"), array("Q")
    for row in table.rows(layout.columns):
        if table.kind == "text" and row.problem is None and not row.values["text"].strip():
            continue  # a blank line is how text files are laid out, no mistake
        report.read += 1
        try:
            examples = _examples(layout, row)
            if layout.kind == "nli":
                label = layout.label(row)
            used = layout.kind != "scored" or layout.score(row) >= (min_score or 0.0)
            if width and len(examples[0]) < width:
                raise BadRow(f"{len(examples[0]) - 2} negatives where the first row has {width - 2}")
        except BadRow as problem:
            message = f"{table.place(row.number)}: {problem}"
            if on_bad_row == "error":
                raise DataError(f"{message}. Mend it, or skip such rows with on_bad_row='skip'.") from None
            report.bad += 1
            if len(report.examples) < _EXAMPLES:
                report.examples.append(message)
            continue
        if not used:
            report.unused += 1
            continue
        width = width or len(examples[0])
        builder = builder or Builder(width)
        for texts in examples:
            builder.add(texts[:width])
        if layout.kind == "nli":
            labels.append(label)
            premises.append(int.from_bytes(digest(examples[0][:1])[:8]))
            hypotheses.append(int.from_bytes(digest(examples[0][1:])[:8]))
    part = _Part(report, builder.columns() if builder else [])
    if builder and layout.kind == "nli":
        part.nli = match_nli(*(np.asarray(values) for values in (premises, hypotheses, labels)))
    if builder is None or (part.nli is not None and not len(part.nli[0]) + len(part.nli[2])):
        why = f" First: {report.examples[0]}." if report.examples else ""
        if not report.read:
            raise DataError(f"{table.name} gives no training row: it holds nothing but blank lines.")
        raise DataError(
            f"{table.name} gives no training row: {report.read:,} read, {report.bad:,} bad, the others "
            f"{'without an entailment' if layout.kind == 'nli' else f'below min_score={min_score}'}.{why}"
        )
    return part


def _examples(layout: Layout, row: Row) -> list[tuple[str, ...]]:
    if row.problem is not None:
        raise BadRow(row.problem)
    return layout.examples(row)
