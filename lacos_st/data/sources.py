"""One source -> its examples: rows stream in, texts go into Arrow columns, and a report says what became of them.

What is read how, and what is decided where it can surprise, the head of `data.py` says.
"""

from __future__ import annotations

import re
from array import array
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from lacos_st.data.columns import BadRow, Layout, override
from lacos_st.data.hub import open_hub
from lacos_st.data.mixing import Builder, digest, match_nli, take
from lacos_st.data.readers import FORMATS, DataError, Row, Table, open_file, positional_names
from lacos_st.errors import shortened, shown
from lacos_st.files import at_home

_EXAMPLES = 5  # bad rows that a report quotes
_KINDS = {"text": "single texts, each its own positive", "nli": "NLI rows", "scored": "pairs with scores"}


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
        cut: Good rows with more negatives than the first, beyond which they are dropped.
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
    cut: int = 0
    duplicates: int = 0
    used: int = 0
    sampled: int = 0
    examples: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = (("unused", self.unused), ("duplicates", self.duplicates), ("bad", self.bad))
        weighted = f", {self.sampled:,} after weights and sampling" if self.sampled != self.used else ""
        rest = "".join(f", {count:,} {name}" for name, count in counts if count)
        kind = _KINDS.get(self.kind) or ("pairs" if len(self.columns) == 2 else "pairs with negatives")
        head = f"{self.name} ({kind}: {shortened(', '.join(self.columns))})"
        lines = [f"{head}: {self.read:,} read, {self.used:,} used{weighted}{rest}"]
        lines += [f"  {example}" for example in self.examples]
        return "\n".join(lines)


def open_source(name: str) -> Table:
    """Open a training source by name: a file, a directory that `datasets` saved, or a Hub data set.

    Raises:
        DataError: There is no such file, or the data set cannot be had.
    """
    path = Path(at_home(name))
    if path.is_dir():
        return open_hub(str(path))
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if path.exists() or suffix.lower() in FORMATS or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(:[\w.-]*){0,2}", name):
        if not path.exists():
            raise DataError(f"There is no file {name!r} (a Hub data set is written owner/name[:subset[:split]]).")
        return open_file(path)
    return open_hub(name)


@dataclass
class Part:
    """The examples of one source: columns of texts, and for NLI what to join them by."""

    report: SourceReport
    columns: list[pa.ChunkedArray]
    aside: bool = False  # the rows without negatives of a source whose others have some
    nli: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None  # rows of (premise and entailment, contradiction)

    @property
    def negatives(self) -> int:
        """How many a row has."""
        if self.nli is None:
            return max(len(self.columns) - 2, 0)
        return int(len(self.nli[1]) > 0)

    def table(self, negatives: int) -> pa.Table:
        """The examples, with so many negatives of those they have."""
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


def read_source(table: Table, layout: Layout, on_bad_row: str, min_score: float | None) -> list[Part]:
    """Stream a source into Arrow columns; its rows without negatives, if others have some, are a part of their own."""
    report = SourceReport(table.name, layout.kind, layout.columns)
    if layout.kind == "scored" and min_score is None:
        raise DataError(
            f"{table.name} has scores in column {shown(layout.extra)}. A contrastive loss takes pairs of one "
            "meaning only: say from which score on a pair is one, for example min_score=4 (--min-score 4) on a scale "
            f"of 0 to 5; or name two columns to take every row: {override(layout.texts)}."
        )
    builder: Builder | None = None
    pairs: Builder | None = None
    width = without = 0
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
            pair = layout.kind == "tuple" and len(examples[0]) == 2 < len(layout.texts)
            if not pair and len(examples[0]) < width:
                raise BadRow(f"{len(examples[0]) - 2} negatives where the first row has {width - 2}")
        except BadRow as problem:
            message = f"{table.place(row.number)}: {problem}"
            if on_bad_row == "error":
                raise DataError(
                    f"{message}. Mend or remove it; training can skip such rows: on_bad_row='skip' (--on-bad-row skip)."
                ) from None
            report.bad += 1
            if len(report.examples) < _EXAMPLES:
                report.examples.append(message)
            continue
        if not used:
            report.unused += 1
            continue
        if pair:
            without += 1
            pairs = kept = pairs or Builder(2)
        else:
            width = width or len(examples[0])
            builder = kept = builder or Builder(width)
        report.cut += len(examples[0]) + layout.further_negatives(row) > len(kept.chunks)
        for texts in examples:
            kept.add(texts[: len(kept.chunks)])
        if layout.kind == "nli":
            labels.append(label)
            premises.append(int.from_bytes(digest(examples[0][:1])[:8]))
            hypotheses.append(int.from_bytes(digest(examples[0][1:])[:8]))
    if builder is None:
        builder, pairs = pairs, None
    part = Part(report, builder.columns() if builder else [])
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
    if pairs is None:
        return [part]
    report.read -= without
    return [part, Part(SourceReport(table.name, layout.kind, layout.columns[:2], without), pairs.columns(), aside=True)]


def _examples(layout: Layout, row: Row) -> list[tuple[str, ...]]:
    if row.problem is not None:
        raise BadRow(row.problem)
    return layout.examples(row)
