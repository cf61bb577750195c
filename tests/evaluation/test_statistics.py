"""Bootstrap, paired test and lexical baseline against their plain definitions."""

import gzip
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from lacos_st.evaluation.statistics import bootstrap, interval, lexical_similarity, paired, spearman
from lacos_st.evaluation.tasks import SAMPLE

columns = st.integers(3, 60).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 5), min_size=n, max_size=n), st.lists(st.integers(-9, 9), min_size=n, max_size=n)
    )
)


@settings(max_examples=60, deadline=None)
@given(columns, st.integers(0, 2**32 - 1))
def test_a_resample_is_what_spearman_of_the_drawn_pairs_would_be(pair, seed):
    gold, scores = np.asarray(pair[0], float), np.asarray(pair[1], float)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(gold), len(gold))
    from lacos_st.evaluation.statistics import _Order, _weighted_spearman

    counts = np.bincount(drawn, minlength=len(gold))[None]
    ours = _weighted_spearman(_Order(gold), _Order(scores), counts)[0]
    if np.ptp(gold[drawn]) == 0 or np.ptp(scores[drawn]) == 0:
        assert np.isnan(ours)
    else:
        assert ours == pytest.approx(spearmanr(gold[drawn], scores[drawn])[0], abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_pair_of_weight_three_counts_as_three_pairs(seed):
    random = np.random.default_rng(seed)
    gold, scores = random.integers(0, 6, (2, 40)).astype(float)  # with ties
    times = random.integers(1, 4, 40)
    expected = spearmanr(np.repeat(gold, times), np.repeat(scores, times)).statistic * 100
    assert spearman(gold, scores, times / times.sum()) == pytest.approx(expected, abs=1e-9)


def test_pairs_without_weight_are_as_if_they_were_not_there():
    random = np.random.default_rng(0)
    gold = random.random(900)
    scores, weights = gold + random.normal(size=900), np.repeat([1.0, 0.0], [600, 300])
    assert spearman(gold, scores, weights) == pytest.approx(spearman(gold[:600], scores[:600]), abs=1e-9)
    all_alike, some = bootstrap(gold, scores, "set"), bootstrap(gold, scores, "set", weights=weights)
    assert np.allclose(bootstrap(gold, scores, "set", weights=np.full(900, 0.1)), all_alike, atol=1e-9)
    assert some.std() == pytest.approx(bootstrap(gold[:600], scores[:600], "set").std(), rel=0.1)


def test_intervals_cover_the_truth_as_often_as_they_say():
    """200 samples of 100 pairs from a normal with known rank correlation: 95 % intervals, 88 to 100 % observed."""
    rng, rho = np.random.default_rng(0), 0.7
    truth = 100 * 6 / math.pi * math.asin(rho / 2)
    covered = 0
    for trial in range(200):
        first = rng.normal(size=100)
        second = rho * first + math.sqrt(1 - rho**2) * rng.normal(size=100)
        low, high = interval(bootstrap(first, second, f"trial {trial}", resamples=200))
        covered += low <= truth <= high
    assert 176 <= covered <= 200


def test_the_paired_test_sees_what_two_intervals_do_not():
    rng = np.random.default_rng(0)
    gold = rng.integers(0, 6, 400).astype(float)
    noise = rng.normal(size=400)
    worse, better = gold + 2.0 * noise, gold + 1.8 * noise  # the same mistakes, smaller
    first, second = bootstrap(gold, worse, "s"), bootstrap(gold, better, "s")
    found = paired(spearman(gold, better) - spearman(gold, worse), first, second)
    assert found.low > 0
    assert found.p < 0.01
    assert interval(first)[1] > interval(second)[0]  # the intervals themselves overlap
    nothing = paired(0.0, first, first)
    assert nothing.p == 1.0


def test_the_lexical_baseline_is_that_of_a_dictionary_of_n_grams():
    from sklearn.feature_extraction.text import TfidfVectorizer

    with gzip.open(SAMPLE / "sts17.es-es.test.jsonl.gz", "rt") as stream:
        rows = [json.loads(line) for line in stream]
    first, second = [r["sentence1"] for r in rows], [r["sentence2"] for r in rows]
    grams = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True).fit(first + second)
    exact = np.asarray(grams.transform(first).multiply(grams.transform(second)).sum(1)).ravel()
    assert np.abs(lexical_similarity(first, second) - exact).max() < 0.02
    gold = np.array([r["score"] for r in rows])
    assert spearman(gold, lexical_similarity(first, second)) == pytest.approx(81.14, abs=0.05)


def test_the_bootstrap_of_many_pairs_stays_in_bounded_memory():
    """It draws blocks of two million numbers whatever the number of pairs, and fewer resamples of more pairs."""
    import tracemalloc

    rng = np.random.default_rng(0)
    gold, scores = rng.integers(0, 6, 300_000).astype(float), rng.normal(size=300_000)
    tracemalloc.start()
    samples = bootstrap(gold, scores, "large", resamples=100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(samples) == 100
    assert peak < 300e6  # 300,000 x 100 numbers of 8 bytes would be 240 MB for every one of five arrays
