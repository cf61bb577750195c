"""Files and Hub data sets -> rows `anchor, positive[, negative...]`: mixed, or each source by itself.

Rows stream from `readers.py`, `columns.py` says which text is which, and the texts go straight into Arrow
buffers: in memory is the text once, plus 16 bytes a row for finding duplicates and 8 for the order. Nothing
is copied to drop, repeat, mix or sample rows; that is one list of row numbers over the buffers. (NLI rows are: the
triplets are joined from them.) Measured: a million pairs, 185 MB of JSON lines, add 285 MB to the process.

Decisions, each where it can surprise:

* **NLI.** Every entailment becomes (premise, entailment, contradiction): the i-th entailment of a premise
  takes its i-th contradiction, and starts again where these run out. Entailments of premises without a
  contradiction are used only if the result has no negatives anyway. Neutral and unlabelled rows are not used,
  nor is a hypothesis that has both labels.
* **Mixed or by source.** `load_training_data` gives one data set, as the Trainer takes it. `load_training_sources`
  gives one for each source; of these the Trainer draws each batch from one, so that what a batch contrasts is of one
  language or kind. `lacos_st.train` takes these: docs/ablations.md.
* **Negatives.** Rows of one data set have the same columns. By source each keeps all its negatives. Mixed, the result
  has as many as the source with the fewest, the rest is dropped, and the report says so. Within a source the first row
  says how many: more are dropped, and the report says so; fewer are a mistake. Rows of it without any (an empty list,
  null, no column) are a data set of their own by source; mixed, they are used if the result has no negatives.
* **Duplicates.** A row whose texts, all of them, equal those of an earlier one, whitespace aside, is dropped, across
  sources too. Texts themselves stay exactly as they are.
* **Weights.** `path@W`: each distinct row of that source is seen W times an epoch: `@2` twice, `@0.5` a
  random half, `@1.5` once, and a random half of them twice. Weights of other sources don't matter.
* **Order.** Of a single source that of the file, of several one shuffle by `seed`. `max_rows` draws a random
  sample of all sources: the head of a file is rarely like the rest.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, count, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from lacos_st.data.columns import Columns, layout_of, override
from lacos_st.data.doubts import check
from lacos_st.data.mixing import first_occurrences, mix
from lacos_st.data.readers import FORMATS, DataError
from lacos_st.data.sources import Part, SourceReport, open_source, read_source
from lacos_st.errors import shown
from lacos_st.files import at_home

if TYPE_CHECKING:
    import datasets

__all__ = ["DataError", "DataReport", "SourceReport", "load_training_data", "load_training_sources"]

logger = logging.getLogger(__name__)
Sources = str | Path | Sequence[str | Path] | Mapping[str, float]


@dataclass
class DataReport:
    """What loading did: one `SourceReport` for each source, and notes on what was decided."""

    sources: list[SourceReport]
    rows: int = 0
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join([*map(str, self.sources), *self.notes, f"{self.rows:,} rows"])


def _log(report: DataReport) -> None:
    for source in report.sources:
        for line in str(source).splitlines():
            logger.info(line)
    for note in report.notes:
        logger.warning(note)
    logger.info("%s rows", f"{report.rows:,}")


def load_training_data(
    sources: Sources,
    *,
    columns: Columns | Mapping[str, Columns] | None = None,
    on_bad_row: Literal["error", "skip"] = "error",
    max_rows: int | None = None,
    min_score: float | None = None,
    if_present: bool = False,
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
        if_present: Take `columns` and `min_score` as made for other data: a source without these columns is read by
            its names, and no source needs scores.
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
    settings = _Settings(columns, on_bad_row, max_rows, min_score, seed, if_present)
    parts, weights, report = _read_all(sources, settings)
    negatives = min(part.negatives for part in parts if not part.aside)
    if negatives:
        parts, weights = _without_aside(parts, weights, report)
    for part in parts:
        if part.negatives > negatives:
            report.notes.append(
                f"{part.report.name} has {part.negatives} negative(s) a row, another source {negatives}: "
                f"{negatives} kept. load_training_sources keeps all."
            )
    tables = [part.table(negatives) for part in parts]
    rows, fingerprint = _choose(tables, weights, settings, report)
    on_report(report)
    return _data_set(pa.concat_tables(tables), rows, fingerprint)


def load_training_sources(
    sources: Sources,
    *,
    columns: Columns | Mapping[str, Columns] | None = None,
    on_bad_row: Literal["error", "skip"] = "error",
    max_rows: int | None = None,
    min_score: float | None = None,
    seed: int = 42,
    on_report: Callable[[DataReport], None] = _log,
) -> datasets.DatasetDict:
    r"""Load training data, each source by itself: the Trainer draws each batch from one of them.

    Args:
        sources: As for `load_training_data`.
        columns: Likewise.
        on_bad_row: Likewise.
        max_rows: Likewise: of all sources together.
        min_score: Likewise.
        seed: Likewise.
        on_report: Likewise.

    Returns:
        The sources that have rows left, by the file's name without folder and endings, or the name on the Hub.

    Raises:
        DataError: As `load_training_data`.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "en.csv").write_text("anchor,positive\na dog,an animal\n")
        >>> _ = (folder / "es.csv").write_text("anchor,positive,negative\nun perro,un animal,un gato\n")
        >>> data = load_training_sources([folder / "en.csv", folder / "es.csv"])
        >>> data["es"][0]
        {'anchor': 'un perro', 'positive': 'un animal', 'negative': 'un gato'}
    """
    import datasets

    settings = _Settings(columns, on_bad_row, max_rows, min_score, seed)
    parts, weights, report = _read_all(sources, settings)
    tables = [part.table(part.negatives) for part in parts]
    rows, fingerprint = _choose(tables, weights, settings, report)
    on_report(report)
    result = datasets.DatasetDict()
    for part, table, start in zip(parts, tables, np.cumsum([0, *map(len, tables)]), strict=False):
        chosen = rows[(rows >= start) & (rows < start + len(table))] - start
        if len(chosen):
            result[_short_name(part.report.name, result)] = _data_set(table, chosen, f"{fingerprint}{start:x}")
    return result


def _short_name(source: str, taken: Collection[str]) -> str:
    """What a source is called in logs and in the model's card: its file without folder and endings."""
    path = Path(at_home(source))
    endings = "|".join(map(re.escape, FORMATS))
    name = re.sub(rf"({endings})?(\.gz)?$", "", path.resolve().name, flags=re.I) if path.exists() else source
    return next(n for n in chain([name or "data"], (f"{name}-{i}" for i in count(2))) if n not in taken)


@dataclass
class _Settings:
    """What the functions above are asked for."""

    columns: Columns | Mapping[str, Columns] | None
    on_bad_row: str
    max_rows: int | None
    min_score: float | None
    seed: int
    if_present: bool = False

    def __post_init__(self) -> None:
        if self.on_bad_row not in ("error", "skip"):
            raise DataError(f"on_bad_row={self.on_bad_row!r} must be 'error' or 'skip'.")
        if self.max_rows is not None and self.max_rows < 1:
            raise DataError(f"max_rows={self.max_rows} must be at least 1.")


def _read_all(sources: Sources, settings: _Settings) -> tuple[list[Part], list[float], DataReport]:
    """Every source's examples, its weight, and what became of it."""
    weighted = _weighted(sources)
    columns = settings.columns
    per_source = isinstance(columns, Mapping) and any(name in columns for name, _ in weighted)
    if per_source and isinstance(columns, Mapping):
        strange = set(columns) - {name for name, _ in weighted}
        if strange:
            raise DataError(f"columns names {shown(sorted(strange)[0])}, which is none of the sources.")
    parts: list[Part] = []
    weights, notes = [], []
    for name, weight in weighted:
        chosen: Any = columns.get(name) if per_source and isinstance(columns, Mapping) else columns
        table = open_source(name)
        layout = layout_of(table, chosen, settings.if_present)
        check(table, layout)
        found = read_source(table, layout, settings.on_bad_row, settings.min_score)
        parts += found
        weights += [weight] * len(found)
        if cut := found[0].report.cut:
            notes.append(
                f"{name}: {cut:,} row(s) have more negatives than the first, which has {found[0].negatives}: "
                f"{found[0].negatives} kept. Give every row as many."
            )
    scored = any(part.report.kind == "scored" for part in parts)
    if settings.min_score is not None and not scored and not settings.if_present:
        raise DataError(
            f"min_score={settings.min_score} is set, and no source is read with scores. Leave it out, or name the "
            f"columns: {override({'anchor': 'ANCHOR', 'positive': 'POSITIVE', 'score': 'SCORE'})}."
        )
    return parts, weights, DataReport([part.report for part in parts], notes=notes)


def _without_aside(parts: list[Part], weights: list[float], report: DataReport) -> tuple[list[Part], list[float]]:
    """Leave out the rows without negatives of sources whose others have some, and say so."""
    for whole, part in pairwise(parts):
        if part.aside:
            whole.report.read += part.report.read
            whole.report.unused += part.report.read
            report.notes.append(
                f"{part.report.name}: {part.report.read:,} row(s) have no negatives, and are not used beside the "
                "others. load_training_sources uses them."
            )
    left = [number for number, part in enumerate(parts) if not part.aside]
    report.sources = [parts[number].report for number in left]
    return [parts[number] for number in left], [weights[number] for number in left]


def _choose(
    tables: Sequence[pa.Table], weights: Sequence[float], settings: _Settings, report: DataReport
) -> tuple[np.ndarray, str]:
    """Row numbers over all tables, without duplicates, weighted, sampled and in order; a hash of all rows."""
    keep, fingerprint = first_occurrences(tables)
    bounds = np.cumsum([0, *map(len, tables)])
    rows = mix(keep, bounds, weights, settings.max_rows, settings.seed)
    for source, start, end in zip(report.sources, bounds, bounds[1:], strict=False):
        source.used = int(keep[start:end].sum())
        source.duplicates = int(end - start) - source.used
        source.sampled = int(((rows >= start) & (rows < end)).sum())
    report.rows = len(rows)
    if not len(rows):
        raise DataError("The weights leave no row to train on; raise them.")
    return rows, fingerprint


def _data_set(table: pa.Table, rows: np.ndarray, fingerprint: str) -> datasets.Dataset:
    """These rows of the table, not copied."""
    import datasets

    # A fingerprint is given because `datasets` would pickle all rows, several times their size, to make one.
    data = datasets.Dataset(datasets.table.InMemoryTable(table), fingerprint=fingerprint)
    return data if len(rows) == len(table) and (np.diff(rows) == 1).all() else data.select(rows)


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
            raise DataError(f"The weight {shown(given)} of {name!r} must be a number above 0: {name}@0.5, for example.")
        weighted.append((name, weight))
    twice = [name for name, _ in weighted if [other for other, _ in weighted].count(name) > 1]
    if twice:
        raise DataError(f"The source {twice[0]!r} is given twice; give it once, with a weight: {twice[0]}@2.")
    return weighted
