"""Rows of texts by number: Arrow columns, joining NLI rows, finding duplicates, weights and mixtures.

Texts lie in Arrow buffers. Everything after reading works on row numbers (NumPy int64) and on hashes of the texts
(BLAKE2b, 128 bits for equality, 64 to join by), so a million rows cost tens of megabytes beside their text, and a
second copy of it only where NLI rows are joined to triplets. Two different texts share 64 bits with a probability of
N^2 / 2^65: 3e-8 for a million.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import pyarrow as pa

from lacos_st.errors import LacosError

MOST = 1000  # times that a weight lets a row be seen in an epoch
CHUNK = 8192  # rows in one Arrow chunk


class Builder:
    """Rows of texts -> Arrow columns, chunk by chunk."""

    def __init__(self, width: int) -> None:
        self.chunks: list[list[pa.Array]] = [[] for _ in range(width)]
        self.pending: list[tuple[str, ...]] = []

    def add(self, texts: tuple[str, ...]) -> None:
        """Append a row."""
        self.pending.append(texts)
        if len(self.pending) == CHUNK:
            self.flush()

    def flush(self) -> None:
        """Turn the pending rows into one chunk."""
        for chunks, texts in zip(self.chunks, zip(*self.pending, strict=True), strict=False):
            chunks.append(pa.array(texts, pa.string()))
        self.pending.clear()

    def columns(self) -> list[pa.ChunkedArray]:
        """Return the finished columns."""
        self.flush()
        return [pa.chunked_array(chunks, pa.string()) for chunks in self.chunks]


def take(column: pa.ChunkedArray, rows: np.ndarray) -> pa.ChunkedArray:
    """Return the texts of these rows; chunk by chunk, because 2 GB is the most one chunk may hold."""
    parts = [column.take(pa.array(rows[i : i + CHUNK])) for i in range(0, len(rows), CHUNK)]
    return pa.chunked_array([chunk for part in parts for chunk in part.chunks], pa.string())


def digest(texts: Sequence[str]) -> bytes:
    """Return 16 bytes that are equal for equal texts, whitespace aside."""
    return blake2b("\0".join([" ".join(text.split()) for text in texts]).encode(), digest_size=16).digest()


def match_nli(
    premise: np.ndarray, hypothesis: np.ndarray, label: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Join entailments with contradictions of the same premise.

    Args:
        premise: (N,) uint64, a hash of each row's premise.
        hypothesis: (N,) uint64, a hash of each row's hypothesis.
        label: (N,) int8: 0 entailment, 2 contradiction.

    Returns:
        Row numbers: of entailments (K,) in order, of the contradiction for each (K,), of entailments without
            one.
    """
    pair = premise * np.uint64(0x9E3779B97F4A7C15) + hypothesis  # wraps; odd factor, so no two premises coincide
    rows = np.arange(len(label))

    def distinct(wanted: int, not_in: int) -> np.ndarray:
        chosen = rows[label == wanted]
        chosen = chosen[np.sort(np.unique(pair[chosen], return_index=True)[1])]
        return chosen[~np.isin(pair[chosen], pair[label == not_in])]

    entailed, contradicted = distinct(0, 2), distinct(2, 0)
    entailed = entailed[np.argsort(premise[entailed], kind="stable")]
    contradicted = contradicted[np.argsort(premise[contradicted], kind="stable")]
    keys, others = premise[entailed], premise[contradicted]
    rank = np.arange(len(keys)) - np.searchsorted(keys, keys)  # i-th entailment of its premise
    start, end = np.searchsorted(others, keys), np.searchsorted(others, keys, side="right")
    some = end > start
    order = np.argsort(entailed[some])
    partner = (start + rank % np.maximum(end - start, 1))[some]
    return entailed[some][order], contradicted[partner][order], np.sort(entailed[~some])


def first_occurrences(tables: Sequence[pa.Table]) -> tuple[np.ndarray, str]:
    """Find duplicates.

    Args:
        tables: Columns of texts; N rows in all.

    Returns:
        (N,) bool, whether a row occurs for the first time, and a hash of all rows.
    """
    seen = bytearray()
    for table in tables:
        for batch in table.to_batches(max_chunksize=CHUNK):
            for texts in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                seen += digest(texts)
    halves = np.frombuffer(seen, np.uint64).reshape(-1, 2)
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: of equal rows the first comes first
    ordered = halves[order]
    first = np.ones(len(halves), bool)
    first[order[1:]] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return first, blake2b(seen, digest_size=8).hexdigest()


def mix(keep: np.ndarray, bounds: np.ndarray, weights: Sequence[float], max_rows: int | None, seed: int) -> np.ndarray:
    """Choose and order rows: weights, sample, shuffle.

    Args:
        keep: (N,) bool, the distinct rows of all sources, one source after the other.
        bounds: (S + 1,) where each of the S sources starts, and N.
        weights: (S,) how often each distinct row occurs: 2.5 is twice, and a random half once more.
        max_rows: Draw so many of the result at random; None for all.
        seed: Of every draw.

    Returns:
        (M,) int64 row numbers: in order for one source, shuffled for several.

    Raises:
        LacosError: A weight is so large that the row numbers would fill the memory.
    """
    if max(weights) > MOST:
        raise LacosError(
            f"The weight {max(weights):g} is above {MOST}: each row of that source would be seen so many times an "
            f"epoch. Give at most @{MOST}, or train for more epochs."
        )
    random = np.random.default_rng(seed)
    chosen = []
    for start, end, weight in zip(bounds, bounds[1:], weights, strict=False):
        rows = start + np.flatnonzero(keep[start:end])
        whole = int(weight)
        more = random.permutation(rows)[: round((weight - whole) * len(rows))]
        chosen.append(np.sort(np.concatenate([np.tile(rows, whole), more])))
    result = np.concatenate(chosen)
    if max_rows is not None and max_rows < len(result):
        result = result[np.sort(random.permutation(len(result))[:max_rows])]
    return random.permutation(result) if len(chosen) > 1 else result
