r"""Files and Hub data sets -> rows: one `Table` for text, CSV, TSV, JSON lines, Parquet and `datasets`.

A `Table` can be iterated any number of times; each pass streams, so that memory does not grow with the file.
A row is `Row(number, values, problem)`: its line (or its row, counted from 1, where a format has no lines),
its fields by column name, and, where it could not be read, why. What to do with a problem is the caller's
decision: training may skip such rows and count them, encoding must not. What makes a whole file unreadable
(missing, empty, damaged gzip, no Parquet, UTF-16) raises `DataError` at once.

Lines end at `\n` or `\r\n` and nowhere else (Python's text mode would also split at a lone `\r`), so line
numbers are those of `wc -l`, `sed` and an editor. Bytes are decoded line by line, because only then can an
error name the line. CSV and TSV have a header and follow RFC 4180 strictly: a stray quote is reported, where
a lenient parser would swallow the lines up to the next quote. A JSON line is an object, or an array of texts
(anchor, positive, negative...).
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from lacos_st.errors import LacosError, shortened, shown

FORMATS = {
    ".txt": "text",
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
}
NLI_LABELS = ("entailment", "neutral", "contradiction")  # 0, 1, 2 in SNLI, MultiNLI, XNLI and all-nli
_HEAD = 1000  # rows that are looked at to find out what columns mean
_BATCH = 1024  # rows of a columnar format that are turned into Python objects at a time


class DataError(LacosError):
    """A file or a data set that cannot be used as it is; the message names the file and the line."""


class Row(NamedTuple):
    """One record: where it stands (from 1), its fields by column name, and why it is unreadable, if so."""

    number: int
    values: dict[str, Any]
    problem: str | None = None


@dataclass(frozen=True)
class Table:
    """Rows under a name, to be iterated as often as needed.

    Attributes:
        name: What errors call it: the path, or the name on the Hub.
        kind: The format: "text", "csv", "tsv", "jsonl", "parquet" or "dataset".
        iterate: Starts a pass over the rows; its argument limits the columns that are read, where the format
            can.
        labels: What the numbers of a column mean, where a data set says so.
    """

    name: str
    kind: str
    iterate: Callable[[Sequence[str] | None], Iterator[Row]]
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[Row]:
        """Iterate from the start; `columns` spares columnar formats the others."""
        return self.iterate(columns)

    def place(self, number: int) -> str:
        """Say where a row is, as compilers do: `pairs.csv:17`."""
        return f"{self.name}, row {number}" if self.kind in ("parquet", "dataset") else f"{self.name}:{number}"

    def head(self) -> list[Row]:
        """Return the readable ones of the first 1,000 rows (fewer, where they are wide), with long values cut."""
        rows, cells = [], 0
        for row in islice(self.rows(), _HEAD):
            if row.problem is None:
                rows.append(Row(row.number, {name: _start(value) for name, value in row.values.items()}))
            cells += len(row.values)
            if cells > 100 * _HEAD:
                break
        return rows

    def first(self) -> Row:
        """Return the first readable row.

        Raises:
            DataError: There is none.
        """
        problem = None
        for row in self.rows():
            if row.problem is None:
                return row
            problem = problem or f" First problem: {self.place(row.number)}: {row.problem}"
        raise DataError(f"{self.name} holds no readable row.{problem or ' Is there only a header?'}")


def _start(value: Any) -> Any:
    return value[:100] if isinstance(value, str | list) else value


def file_format(path: str | Path) -> tuple[str, bool]:
    """Tell a file's format from its name.

    Returns:
        The format ("text", "csv", "tsv", "jsonl" or "parquet") and whether the file is gzipped.

    Raises:
        DataError: The name ends in nothing known.

    Example:
        >>> file_format("corpus.en.txt.gz")
        ('text', True)
    """
    path = Path(path)
    gzipped = path.suffix.lower() == ".gz"
    suffix = (path.with_suffix("") if gzipped else path).suffix.lower()
    if suffix not in FORMATS:
        raise DataError(
            f"{path}: cannot tell the format. The name must end in {', '.join(FORMATS)}; all but Parquet "
            "may end in .gz."
        )
    if gzipped and suffix == ".parquet":
        raise DataError(f"{path}: Parquet is compressed inside; unpack it with gunzip first.")
    return FORMATS[suffix], gzipped


def open_file(path: str | Path) -> Table:
    """Make a `Table` of a file; columns of a text file: `text`.

    Args:
        path: A file whose name ends in .txt, .csv, .tsv, .jsonl, .ndjson, .json (one object a line), each
            also .gz, or in .parquet.

    Raises:
        DataError: Missing, a directory, unreadable, empty, or of unknown format.
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path} is a directory, not a file.")
    kind, gzipped = file_format(path)
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise DataError(f"{path} is empty.")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    if kind == "parquet":
        return Table(str(path), kind, lambda columns: _parquet(path, columns))
    reader = {"text": _text, "csv": _csv, "tsv": _csv, "jsonl": _jsonl}[kind]
    return Table(str(path), kind, lambda columns: reader(path, gzipped, kind))


class _Undecodable(str):
    """A line that is not UTF-8, with its bad bytes as surrogates; `problem` says which byte."""

    __slots__ = ("problem",)
    problem: str


def _lines(path: Path, gzipped: bool) -> Iterator[str]:
    """Yield the lines with their ends; undecodable ones as `_Undecodable`."""
    number = 0
    try:
        with gzip.open(path, "rb") if gzipped else path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                if number == 1:
                    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                        raise DataError(f"{path} is UTF-16; convert it: iconv -f utf-16 -t utf-8.")
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                try:
                    yield raw.decode("utf-8")
                except UnicodeDecodeError as error:
                    line = _Undecodable(raw.decode("utf-8", "surrogateescape"))
                    line.problem = (
                        f"not valid UTF-8: 0x{raw[error.start]:02X} is byte {error.start + 1} of the line. "
                        "If the file is Latin-1, convert it: iconv -f latin1 -t utf-8"
                    )
                    yield line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged gzip data after line {number} ({error}); fetch or pack it again.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read after line {number}: {error.strerror or error}.") from error


def _text(path: Path, gzipped: bool, kind: str) -> Iterator[Row]:
    for number, line in enumerate(_lines(path, gzipped), 1):
        if isinstance(line, _Undecodable):
            yield Row(number, {}, line.problem)
        else:
            yield Row(number, {"text": line.removesuffix("\n").removesuffix("\r")})


def _jsonl(path: Path, gzipped: bool, kind: str) -> Iterator[Row]:
    for number, line in enumerate(_lines(path, gzipped), 1):
        if isinstance(line, _Undecodable):
            yield Row(number, {}, line.problem)
            continue
        if not line.strip():
            continue
        try:
            value = json.loads(line.rstrip())
        except RecursionError:
            yield Row(number, {}, "JSON that is nested too deeply")
            continue
        except ValueError as error:
            column = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            yield Row(number, {}, f"not valid JSON: {reason}{column}{_array_hint(number, line)}")
            continue
        if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            value = dict(zip(positional_names(len(value)), value, strict=True))
        if isinstance(value, dict):
            yield Row(number, value)
        else:
            what = f"an object or an array of texts is needed, not {type(value).__name__} {line.strip()[:40]!r}"
            yield Row(number, {}, what + _array_hint(number, line))


def _array_hint(number: int, line: str) -> str:
    if number == 1 and line.lstrip().startswith("["):
        return ". If the file is one JSON array, make lines of it: jq -c '.[]' FILE.json > FILE.jsonl"
    return ""


def positional_names(count: int) -> list[str]:
    """Name texts by their position, as the sentence-transformers trainer reads columns.

    Example:
        >>> positional_names(4)
        ['anchor', 'positive', 'negative', 'negative_2']
    """
    if count == 1:
        return ["text"]
    return ["anchor", "positive", *(f"negative_{i}" if i > 1 else "negative" for i in range(1, count - 1))]


def _csv(path: Path, gzipped: bool, kind: str) -> Iterator[Row]:
    bad: dict[int, str] = {}  # undecodable physical lines that belong to the record being read

    def watched() -> Iterator[str]:
        for number, line in enumerate(_lines(path, gzipped), 1):
            if isinstance(line, _Undecodable):
                bad[number] = line.problem
            yield line

    lines = watched()
    head = next(lines, "")
    if bad:
        raise DataError(f"{path}:1: {bad[1]}")
    delimiter = "\t" if kind == "tsv" else next((mark for mark in ",;\t" if mark in head), ",")
    reader = csv.reader(_chain(head, lines), delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise DataError(f"{path}:1: the header cannot be parsed: {error}.") from error
    if not any(header):
        raise DataError(f"{path}:1: the first line must name the columns, but it is blank.")
    twice = [name for name, count in Counter(header).items() if name and count > 1]
    if twice:
        raise DataError(f"{path}:1: the header names column {shown(twice[0])} twice.")
    while True:
        number = reader.line_num + 1
        bad.clear()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            span = f"lines {number} to {reader.line_num}: " if reader.line_num > number else ""
            if "field limit" in str(error):
                mend = "Close every quote, shorten it" if span else "Shorten it"
                why = (
                    f"{span}a field has more than {csv.field_size_limit():,} characters. {mend}, or write the data as "
                    "JSON lines or Parquet, which have no such limit"
                )
            else:
                why = f"{span}cannot be parsed: {error}. Write a quote inside quotes twice, and close every quote"
            yield Row(number, {}, next(iter(bad.values()), why))
            continue
        if bad:
            line, problem = next(iter(bad.items()))
            yield Row(line, {}, problem)
        elif len(fields) == len(header):
            yield Row(number, dict(zip(header, fields, strict=True)))
        elif fields:  # a blank line is no record
            what = f"{len(fields)} fields where the header has {len(header)}"
            yield Row(number, {}, f"{what}; a field that contains {delimiter!r} must stand in double quotes")


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _parquet(path: Path, columns: Sequence[str] | None) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            twice = [name for name, count in Counter(names).items() if count > 1]
            if twice:
                raise DataError(f"{path} names column {shown(twice[0])} twice.")
            for batch in file.iter_batches(batch_size=_BATCH, columns=columns):
                for cells in zip(*map(_cells, batch.columns), strict=True):
                    number += 1
                    values = dict(zip(batch.schema.names, cells, strict=True))
                    bad = [name for name, cell in values.items() if isinstance(cell, Exception)]
                    if bad and columns is not None:  # a column that nobody asked for spoils no row
                        yield Row(
                            number, {}, f"column {shown(bad[0])} cannot be read: {shortened(str(values[bad[0]]))}"
                        )
                    else:
                        yield Row(number, values)
    except (pyarrow.ArrowException, OSError) as error:
        what = "is no readable Parquet file" if number == 0 else f"cannot be read after row {number}"
        raise DataError(f"{path} {what}: {shortened(str(error).splitlines()[0])}") from error


def _cells(column: Any) -> list[Any]:
    """The values of an Arrow array; where Python cannot hold one (no UTF-8, a date out of range), the error."""
    try:
        return column.to_pylist()
    except (ValueError, OverflowError):
        return [_cell(scalar) for scalar in column]


def _cell(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except (ValueError, OverflowError) as error:
        return error
