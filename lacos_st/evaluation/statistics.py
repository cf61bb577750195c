"""What surrounds a correlation: a lexical baseline, confidence intervals, a paired test.

**Lexical baseline.** TF-IDF over character 2- to 4-grams inside words, cosine of the two sentences. It needs
no training and reaches 72 on the English STS Benchmark, so a model below it is not worth its bytes. The
n-grams are hashed into 2^20 columns instead of a dictionary: the collisions cost nothing measurable
(differences below 0.1), and a million pairs need a few dozen megabytes instead of gigabytes.

**Bootstrap.** Pairs are drawn with replacement and Spearman's rho is taken again, 1,000 times; the interval
is the 2.5th to 97.5th percentile. A resample never has to be sorted: it is a vector of counts over pairs
whose order is known, so its midranks are running sums, and a resample costs O(n). The drawing depends on the
set's name and size alone, so two models see the same resamples and the paired test is a difference of two
arrays.

Reference: Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapters 13 and 16.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix
from scipy.stats import rankdata
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.preprocessing import normalize

RESAMPLES = 1000
_COLUMNS = 2**20
_SLICE = 8192
# Resamples x pairs: a million pairs get 200 resamples, whose percentiles are as good as the interval is
# narrow.
_DRAWS = 200_000_000
_BLOCK = 2_000_000


def lexical_similarity(first: Sequence[str], second: Sequence[str]) -> np.ndarray:
    """Score pairs by the overlap of their character n-grams.

    Args:
        first: One sentence of each pair.
        second: The other one; as many.

    Returns:
        (pairs,) cosines of sublinear TF-IDF vectors, inverse document frequencies taken from these sentences.

    Example:
        >>> same, other = lexical_similarity(["A cat sits.", "A cat sits."], ["A cat sits.", "Dogs run."])
        >>> bool(same > 0.99 and other < 0.2)
        True
    """
    grams = HashingVectorizer(
        analyzer="char_wb", ngram_range=(2, 4), n_features=_COLUMNS, norm=None, alternate_sign=False
    )
    frequency = np.zeros(_COLUMNS, dtype=np.int64)
    for texts in (first, second):
        for start in range(0, len(texts), _SLICE):
            frequency += np.bincount(grams.transform(texts[start : start + _SLICE]).indices, minlength=_COLUMNS)
    weight = np.log((1 + 2 * len(first)) / (1 + frequency)) + 1

    def vectors(texts: Sequence[str]) -> csr_matrix:
        counts = grams.transform(texts)
        counts.data = (1 + np.log(counts.data)) * weight[counts.indices]
        return normalize(counts)

    parts = [
        np.asarray(vectors(first[i : i + _SLICE]).multiply(vectors(second[i : i + _SLICE])).sum(axis=1)).ravel()
        for i in range(0, len(first), _SLICE)
    ]
    return np.concatenate(parts)


def spearman(gold: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Spearman's rho with midranks for ties, times 100; nan if either side is constant.

    Args:
        gold: (n,) annotated similarities.
        scores: (n,) a model's similarities.
        weights: (n,) how much each pair counts. Default: all alike.

    Example:
        >>> spearman(np.array([0.0, 1.0, 5.0]), np.array([0.1, 0.3, 0.9]))
        100.0
    """
    counts = np.ones(len(gold), dtype=np.int64) if weights is None else weights
    return round(100 * float(_weighted_spearman(_Order(gold), _Order(scores), counts[None])[0]), 10)


def bootstrap(
    gold: np.ndarray, scores: np.ndarray, name: str, resamples: int = RESAMPLES, weights: np.ndarray | None = None
) -> np.ndarray:
    """Draw Spearman correlations of resampled pairs.

    Args:
        gold: (n,) annotated similarities.
        scores: (n,) a model's similarities.
        name: The set's name; it seeds the drawing, so that every model is judged on the same resamples and
            different sets on independent ones.
        resamples: How many; lowered so that resamples x n stays below 2e8.
        weights: (n,) how much each pair counts. Default: all alike.

    Returns:
        (resamples,) correlations times 100.
    """
    size = len(gold)
    rounds = max(min(resamples, _DRAWS // size), 100)
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    left, right = _Order(gold), _Order(scores)
    block = max(1, min(rounds, _BLOCK // size))
    samples = np.empty(rounds)
    for start in range(0, rounds, block):
        many = min(block, rounds - start)
        draws = generator.integers(0, size, (many, size), dtype=np.int32)
        draws += np.arange(many, dtype=np.int32)[:, None] * size
        counts = np.bincount(draws.ravel(), minlength=many * size).reshape(many, size)
        samples[start : start + many] = _weighted_spearman(left, right, counts if weights is None else counts * weights)
    return 100 * samples


def bootstrap_mean(values: np.ndarray, name: str) -> np.ndarray:
    """Draw means of resampled values, of queries for example.

    Args:
        values: (n,) one a query.
        name: The set's name, as for `bootstrap`: every model is judged on the same resamples.

    Returns:
        (resamples,) means.
    """
    size = len(values)
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    rounds = max(min(RESAMPLES, _DRAWS // size), 100)
    return np.array([values[generator.integers(0, size, size)].mean() for _ in range(rounds)])


class _Order:
    """The order of a variable: which sorted position each pair has, and where groups of ties begin."""

    def __init__(self, values: np.ndarray) -> None:
        group = rankdata(values, method="dense").astype(np.int64) - 1
        self.sorted = np.argsort(group, kind="stable")
        self.group = group
        self.starts = np.searchsorted(group[self.sorted], np.arange(group.max() + 1))

    def centred_ranks(self, counts: np.ndarray) -> np.ndarray:
        """(rounds, n) midranks under the weights, less their mean."""
        weight = np.add.reduceat(counts[:, self.sorted], self.starts, axis=1)
        below = np.cumsum(weight, axis=1) - weight
        total = counts.sum(axis=1, keepdims=True)
        ranks = below + weight / 2 - total / 2
        return ranks[:, self.group]


def _weighted_spearman(left: _Order, right: _Order, counts: np.ndarray) -> np.ndarray:
    first, second = left.centred_ranks(counts), right.centred_ranks(counts)
    covariance = np.einsum("rn,rn,rn->r", counts, first, second)
    spread = np.einsum("rn,rn,rn->r", counts, first, first) * np.einsum("rn,rn,rn->r", counts, second, second)
    with np.errstate(invalid="ignore", divide="ignore"):
        return covariance / np.sqrt(spread)


def interval(samples: np.ndarray) -> tuple[float, float]:
    """The central 95 % of bootstrap samples."""
    low, high = np.nanpercentile(samples, [2.5, 97.5]) if np.isfinite(samples).any() else (np.nan, np.nan)
    return float(low), float(high)


@dataclass(frozen=True)
class Difference:
    """One model against another on the same pairs.

    Attributes:
        delta: The second model's score less the first's, in points.
        low: Lower end of its 95 % interval.
        high: Upper end.
        p: Two-sided bootstrap p-value that there is no difference; never below 2 / (resamples + 1).
    """

    delta: float
    low: float
    high: float
    p: float


def paired(delta: float, first: np.ndarray, second: np.ndarray) -> Difference:
    """Test the difference of two models from their bootstrap samples over the same resamples.

    Args:
        delta: The difference measured on all pairs.
        first: (resamples,) samples of one model.
        second: (resamples,) samples of the other one.
    """
    gaps = second - first
    low, high = interval(gaps)
    tail = min(int((gaps <= 0).sum()), int((gaps >= 0).sum()))
    return Difference(delta, low, high, min(1.0, 2 * (tail + 1) / (len(gaps) + 1)))
