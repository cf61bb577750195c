"""The texts and ids of a file: which columns they are, and every row checked, for each engine alike.

`scan` is the first pass: it chooses the columns, reads the whole file and counts. A mistake in line 900,000 is so
reported after a second, not after a night. `Source` then gives the same rows as often as they are wanted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lacos_st.data.columns import NAMES, text_fault
from lacos_st.data.doubts import check_header
from lacos_st.data.readers import DataError, Table
from lacos_st.errors import listed, shown

_ID_NAMES = ("id", "_id")


@dataclass
class Source:
    """The texts of the input, checked; to be iterated as often as needed."""

    table: Table
    column: str
    id_column: str | None
    rows: int = 0
    empty: int = 0
    integer_ids: bool = True

    def texts(self) -> Iterator[tuple[str, Any]]:
        """Yield (text, id) of each row.

        Raises:
            DataError: A row cannot be read.
        """
        columns = [self.column] + ([self.id_column] if self.id_column not in (None, self.column) else [])
        for row in self.table.rows(columns):
            problem = row.problem
            if problem is None:
                missing = [name for name in columns if name not in row.values]
                text = row.values.get(self.column)
                key = row.values.get(self.id_column) if self.id_column else None
                if missing:
                    problem = f"has no column {shown(missing[0])} (it has {listed(list(row.values))})"
                else:
                    problem = text_fault(text, self.column, may_be_blank=True)
                if self.id_column and key is None and problem is None:
                    problem = f"the id in column {shown(self.id_column)} is missing"
            if problem is not None:
                raise DataError(f"{self.table.place(row.number)}: {problem}. Mend the row or take it out.")
            yield text if isinstance(text, str) else "", key

    def ids(self) -> Iterator[int | str]:
        """Yield the ids: the column's, as integers if all are, else as strings; or the row numbers."""
        for number, (_, key) in enumerate(self.texts()):
            yield number if self.id_column is None else self.as_id(key)

    def as_id(self, key: Any) -> int | str:
        """An id as it is written: an integer if all of them are."""
        return key if self.integer_ids else str(key)


def choose(table: Table, column: str | None, id_column: str | None, wanted_ids: bool) -> Source:
    """Say which columns are the texts and the ids, by the first row.

    Args:
        table: The file.
        column: The column of texts; None: the only one, or one with a name that texts have.
        id_column: The column of ids; None: one with a name that ids have, if there is one.
        wanted_ids: Whether to look for ids.

    Returns:
        The source, with nothing counted yet.

    Raises:
        DataError: A column is not there, or it cannot be told.
    """
    names = list(table.first().values)
    if column is None:
        known = [name for name in names if name.lower() in NAMES["text"]]
        if not known and len(names) == 1 and table.kind in ("csv", "tsv"):
            check_header(table, names, f"column={names[0]!r}")
        column = known[0] if known else names[0] if len(names) == 1 else None
    if wanted_ids and id_column is None:
        id_column = next((name for name in _ID_NAMES if name in names and name != column), None)
    for what, name in (("column", column), ("id_column", id_column)):
        if name not in names and not (what == "id_column" and name is None):
            wanted = "cannot tell which column holds the texts" if name is None else f"there is no column {shown(name)}"
            has, flag = listed(names), what.replace("_", "-")
            raise DataError(f"{table.name}: {wanted}; it has {has}. Name it with {what}=... (--{flag} ...).")
    return Source(table, str(column), id_column)


def scan(table: Table, column: str | None, id_column: str | None, wanted_ids: bool) -> Source:
    """First pass: choose the columns, check and count the rows.

    Args:
        table: The file.
        column: As in `choose`.
        id_column: As in `choose`.
        wanted_ids: As in `choose`.

    Returns:
        The source, counted.

    Raises:
        DataError: A row cannot be read, or as in `choose`.
    """
    source = choose(table, column, id_column, wanted_ids)
    for text, key in source.texts():
        source.rows += 1
        source.empty += not text.strip()
        if key is not None and (type(key) is not int or abs(key) >= 2**63):
            source.integer_ids = False
    return source


def content(path: str | Path) -> str:
    """Digest of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]
