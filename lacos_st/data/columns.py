"""Which column means what: one row of a `Table` -> the texts of one or several training examples.

A `Layout` says how a source is read. Its kind is one of

* `text`: single sentences; trained as (text, text), told apart by dropout alone, as SimCSE does;
* `tuple`: (anchor, positive[, negative...]);
* `nli`: (premise, hypothesis, label), from which `data.py` makes triplets;
* `scored`: (anchor, positive, score), of which only the pairs that score high enough are used.

It is found from well-known column names (`NAMES`), case aside, or given: a list `[anchor, positive,
negative...]` (one name: single sentences) or a mapping from role to column. Two text columns with names
nobody knows, such as `en` and `fr`, are anchor and positive in their order, because that is how the
sentence-transformers trainer reads columns. Everything else that is not clear is an error with the override
to write, never a guess: `doubts.py` looks at the values of what was found.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lacos_st.data.readers import NLI_LABELS, DataError, Row, Table
from lacos_st.errors import listed, shortened, shown

NAMES: dict[str, tuple[str, ...]] = {
    "anchor": (
        "anchor",
        "query",
        "question",
        "question1",
        "sentence1",
        "sentence_1",
        "sentence_a",
        "text1",
        "source",
    ),
    "positive": (
        *(
            "positive",
            "positives",
            "pos",
            "answer",
            "question2",
            "sentence2",
            "sentence_2",
            "sentence_b",
            "text2",
        ),
        *("target", "paraphrase"),
    ),
    "premise": ("premise",),
    "hypothesis": ("hypothesis",),
    "label": ("label", "labels", "gold_label"),
    "score": ("score", "similarity", "similarity_score"),
    "text": ("text", "sentence", "line"),
}
HEADER = " If the file has no header, write the names of its columns into a first line, such as anchor,positive."
_NEGATIVE = re.compile(r"(hard_)?neg(ative)?s?(_?\d+)?")
_NO_TEXT = re.compile(r"_*(id|idx|index|uid|guid|url|lang|split)")
_LABELS = {**{name: i for i, name in enumerate(NLI_LABELS)}, **{str(i): i for i in range(3)}, "not_entailment": 1}
NLI_WORDS = {name for name in _LABELS if not name.isdigit()} | {"-"}
_UNLABELLED = {"", "-", "-1", "nan"}  # SNLI's "-": the annotators did not agree
FLAGS = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}
HEADER = " If the file has no header, write the names of its columns into a first line: anchor,positive, say."

Columns = Sequence[str] | Mapping[str, str | Sequence[str]]


class BadRow(Exception):  # noqa: N818 - it is a verdict on a row, caught by the reader of rows
    """Why a row cannot be used."""


@dataclass(frozen=True)
class Layout:
    """How to read the rows of one source.

    Attributes:
        kind: What the source holds, see the head of this file.
        texts: The columns of text: text | anchor, positive, negatives... | premise, hypothesis.
        extra: The column of the label or the score, if the kind has one.
        found: How the columns were found: given, by their names, or by their order.
    """

    kind: Literal["text", "tuple", "nli", "scored"]
    texts: tuple[str, ...]
    extra: str | None = None
    found: Literal["given", "names", "order"] = "given"

    @property
    def columns(self) -> list[str]:
        """All columns that are read."""
        return [*self.texts, *([self.extra] if self.extra else [])]

    def examples(self, row: Row) -> list[tuple[str, ...]]:
        """Return the text tuples of a row: one, or one for each positive where that is a list.

        A row may have no negatives: the column is missing, null, blank or an empty list.

        Raises:
            BadRow: A text is missing, empty, NaN, no text, or half a surrogate pair.
        """
        values = row.values
        if self.kind != "tuple":
            return [tuple([text_of(values, name) for name in self.texts])]
        anchor, positive, *negatives = self.texts
        first = text_of(values, anchor)
        given = [name for name in negatives if not is_missing(values.get(name))]
        rest = [text for name in given for text in _texts_of(values, name)]
        return [(first, text, *rest) for text in _texts_of(values, positive)]

    def further_negatives(self, row: Row) -> int:
        """Count a row's negatives under names that the first row has not, as a later JSON line may have them."""
        if self.kind != "tuple" or self.found == "given":
            return 0
        return sum(bool(value) and name not in self.texts and is_negative(name) for name, value in row.values.items())

    def label(self, row: Row) -> int:
        """Return 0 for entailment, 1 for neutral, 2 for contradiction, -1 for unlabelled.

        Raises:
            BadRow: Anything else.
        """
        value = _value(row.values, str(self.extra))
        known = nli_label(value)
        if known is None:
            raise BadRow(f"the label {shown(value)} is none of {', '.join(NLI_LABELS)} or 0, 1, 2")
        return known

    def score(self, row: Row) -> float:
        """Return the score.

        Raises:
            BadRow: It is no number, or NaN.
        """
        value = _value(row.values, str(self.extra))
        try:
            score = float(FLAGS.get(value.strip().lower(), value) if isinstance(value, str) else value)
        except (TypeError, ValueError):
            hint = " (write 4.5 with a point)" if re.fullmatch(r"\s*[+-]?\d+,\d+\s*", str(value)) else ""
            raise BadRow(f"the score {shown(value)} in column {shown(self.extra)} is no number{hint}") from None
        if score != score:
            raise BadRow(f"the score in column {shown(self.extra)} is NaN")
        return score


def override(columns: Sequence[str] | Mapping[str, str]) -> str:
    """Return how a user says which columns to read, in Python and on the command line."""
    if isinstance(columns, Mapping):
        roles = {role: shortened(name) for role, name in columns.items()}
        return f"columns={roles} (--columns {shlex.join(f'{role}={name}' for role, name in roles.items())})"
    names = list(map(shortened, columns))
    return f"columns={names} (--columns {shlex.join(names)})"


def nli_label(value: Any) -> int | None:
    """Return 0 for entailment, 1 for neutral, 2 for contradiction, -1 for unlabelled, None for anything else."""
    text = "" if value is None else str(value).strip().lower()
    text = text.removesuffix(".0")  # data frames turn integer columns with a gap into floats
    return -1 if text in _UNLABELLED else _LABELS.get(text)


def _value(values: Mapping[str, Any], name: str) -> Any:
    if name not in values:
        raise BadRow(f"has no column {shown(name)} (it has {listed(list(values)) or 'none'})")
    return values[name]


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: null, NaN, blank, an empty list, or what data frames write for a missing text."""
    if isinstance(value, str):
        return value.strip() in ("", "nan", "NaN")
    return value is None or value != value or (isinstance(value, list | tuple) and not value)


def text_of(values: Mapping[str, Any], name: str) -> str:
    """Return a column's text.

    Raises:
        BadRow: The column is missing, or its value is empty, null, NaN, or no text.
    """
    return _checked(_value(values, name), name)


def _texts_of(values: Mapping[str, Any], name: str) -> list[str]:
    value = _value(values, name)
    if not isinstance(value, list | tuple):
        return [_checked(value, name)]
    if not value:
        raise BadRow(f"column {shown(name)} is an empty list")
    return [_checked(item, name) for item in value]


def _checked(value: Any, name: str) -> str:
    if fault := text_fault(value, name):
        raise BadRow(fault)
    return str(value)


def text_fault(value: Any, name: str, may_be_blank: bool = False) -> str | None:
    """Say why a cell holds no text that can be used, or None if it does.

    Args:
        value: The cell.
        name: Its column.
        may_be_blank: Whether a text may be missing or blank.
    """
    if value is None or value != value:
        return None if may_be_blank else f"column {shown(name)} is {'null' if value is None else 'NaN'}"
    if not isinstance(value, str):
        return f"column {shown(name)} is {shown(value)}, a {type(value).__name__} and not a text"
    if not may_be_blank and not value.strip():
        return f"column {shown(name)} is empty"
    if not may_be_blank and value in ("nan", "NaN"):  # what a spreadsheet or a data frame writes for a missing text
        return f"column {shown(name)} is {value}"
    try:
        value.encode()
    except UnicodeEncodeError:
        return f"column {shown(name)} contains half a surrogate pair, which is no character"
    return None


def layout_of(table: Table, columns: Columns | None = None, if_present: bool = False) -> Layout:
    """Find out how to read a source.

    Args:
        table: The source; its first readable row is looked at.
        columns: What to read instead of what the names say: `[anchor, positive, negative...]`, `[text]`,
            entries of the form `role=column`, or a mapping from role to column. Roles: those of `NAMES`, and
            `negative` (one column or several).
        if_present: Where one of `columns` does not exist, go by the names instead.

    Raises:
        DataError: A named column does not exist, or no layout fits the names.
    """
    first = table.first()
    roles = _given(columns) if columns else {}
    missing = [name for given in roles.values() for name in given if name not in first.values]
    if missing and not if_present:
        raise DataError(f"{table.name} has no column {shown(missing[0])}; it has {listed(list(first.values))}.")
    found: Literal["given", "names"] = "given"
    if missing or not columns:
        found, roles = "names", _detected(table, first)
    names = list(first.values)
    if "premise" in roles and "hypothesis" in roles and "label" in roles:
        return Layout("nli", (roles["premise"][0], roles["hypothesis"][0]), roles["label"][0], found)
    if "anchor" in roles and "positive" in roles:
        pair = (roles["anchor"][0], roles["positive"][0])
        if "negative" in roles:
            return Layout("tuple", (*pair, *roles["negative"]), found=found)
        if "score" in roles:
            return Layout("scored", pair, roles["score"][0], found)
        if "label" in roles and _is_nli_word(first.values.get(roles["label"][0])):
            return Layout("nli", pair, roles["label"][0], found)
        if "label" in roles and found == "given":
            raise DataError(
                f"{table.name}: a label goes with a premise and a hypothesis. For NLI: "
                f"{override({'premise': pair[0], 'hypothesis': pair[1], 'label': roles['label'][0]})}. For a number "
                "that is high for the same meaning: "
                f"{override({'anchor': pair[0], 'positive': pair[1], 'score': roles['label'][0]})}."
            )
        return Layout("tuple", pair, found=found)
    if "text" in roles:
        return Layout("text", (roles["text"][0],), found=found)
    readable = all(isinstance(v, str) and not _NO_TEXT.fullmatch(k.lower()) for k, v in first.values.items())
    if found == "names" and not roles and readable and len(names) in (1, 2):
        return Layout("tuple" if len(names) == 2 else "text", tuple(names), found="order")
    raise DataError(
        f"{table.name}: cannot tell which columns to train on; it has {listed(names)}. Known are anchor and positive "
        "(also query/answer, sentence1/sentence2, question1/question2) with optional negatives; premise, "
        f"hypothesis and label; text or sentence. Name them: {override(['ANCHOR', 'POSITIVE'])}."
        + (HEADER if table.kind in ("csv", "tsv") else "")
    )


def _is_nli_word(value: Any) -> bool:
    return isinstance(value, str) and value.strip().lower() in NLI_WORDS


def _detected(table: Table, first: Row) -> dict[str, list[str]]:
    roles: dict[str, list[str]] = {}
    for name in first.values:
        for role, known in NAMES.items():
            if plain_name(name) in known:
                roles.setdefault(role, []).append(name)
        if is_negative(name):
            roles.setdefault("negative", []).append(name)
    for role, names in roles.items():
        if role != "negative" and len(names) > 1:
            raise DataError(
                f"{table.name}: {' and '.join(map(shown, names[:2]))} could each be the {role}. "
                f"Name the columns to use: {override(['ANCHOR', 'POSITIVE'])}, say."
            )
    return roles


def plain_name(name: str) -> str:
    """A column's name as it is looked up: case, spaces and hyphens aside."""
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def is_negative(name: str) -> bool:
    """Whether a column's name says that it holds negatives."""
    return _NEGATIVE.fullmatch(plain_name(name)) is not None


def _given(columns: Columns) -> dict[str, list[str]]:
    if isinstance(columns, str):
        columns = [columns]
    if not isinstance(columns, Mapping):
        pairs = [entry.partition("=") for entry in columns]
        if all(mark and (role in NAMES or role == "negative") for role, mark, _ in pairs):
            columns = {}
            for role, _, name in pairs:
                columns[role] = [*columns.get(role, []), name]
        elif len(columns) == 1:
            columns = {"text": columns}
        else:
            columns = {"anchor": columns[0], "positive": columns[1], "negative": list(columns[2:])}
    roles: dict[str, list[str]] = {}
    for role, names in columns.items():
        if role not in NAMES and role != "negative":
            raise DataError(f"columns has the unknown role {shown(role)}. Known: {', '.join(NAMES)}, negative.")
        if role != "negative" and not isinstance(names, str) and len(names) != 1:
            raise DataError(f"columns names {len(names)} columns for the role {shown(role)}, which takes one.")
        roles[role] = [names] if isinstance(names, str) else list(names)
    return roles
