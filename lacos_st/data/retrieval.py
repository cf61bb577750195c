"""Pairs and triplets as a search: each anchor is a query, and every other text of the rows is what it may find.

The pool are all positives and negatives, each text once. Right are all positives that stand beside a query in any
row, so a question with several answers is right with each, and an answer that two questions share is right for both.
Texts are equal where they are so but for whitespace.

A query whose own text lies in the pool asks nothing, for a model finds an equal text whatever it has learnt: such
queries are left out. Single sentences, whose anchor is their positive, leave none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class Retrieval:
    """A search task.

    Attributes:
        queries: Id -> text.
        corpus: Id -> text, the pool.
        relevant: Query's id -> ids of the right texts.
    """

    queries: dict[str, str] = field(default_factory=dict)
    corpus: dict[str, str] = field(default_factory=dict)
    relevant: dict[str, set[str]] = field(default_factory=dict)


def as_retrieval(rows: Dataset | Mapping[str, Sequence[str]]) -> Retrieval:
    """Turn pairs or triplets into a search.

    Args:
        rows: Columns `anchor`, `positive` and perhaps negatives under any other names.

    Returns:
        The task, in the order of the rows; without queries where every anchor lies in the pool.

    Example:
        >>> rows = {"anchor": ["a?", "b?", "a?"], "positive": ["A", "B", "C"], "negative": ["B", "D", "D"]}
        >>> task = as_retrieval(rows)
        >>> task.queries, task.corpus
        ({'q0': 'a?', 'q1': 'b?'}, {'d0': 'A', 'd1': 'B', 'd2': 'D', 'd3': 'C'})
        >>> [sorted(right) for right in task.relevant.values()]
        [['d0', 'd3'], ['d1']]
    """
    columns = getattr(rows, "column_names", None) or list(rows)
    others = [name for name in columns if name not in ("anchor", "positive")]
    task = Retrieval()
    documents: dict[str, str] = {}  # text -> id
    queries: dict[str, str] = {}
    for anchor, *texts in zip(rows["anchor"], rows["positive"], *(rows[name] for name in others), strict=True):
        for text in texts:
            number = documents.setdefault(_plain(text), f"d{len(documents)}")
            task.corpus.setdefault(number, text)
        query = queries.setdefault(_plain(anchor), f"q{len(queries)}")
        task.queries.setdefault(query, anchor)
        task.relevant.setdefault(query, set()).add(documents[_plain(texts[0])])
    for text in queries.keys() & documents.keys():
        del task.queries[queries[text]], task.relevant[queries[text]]
    return task


def _plain(text: str) -> str:
    return " ".join(text.split())
