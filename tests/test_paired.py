"""`recipes/bloom-mini/paired.py`: two models on pairs that weigh as the test split is composed."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes/bloom-mini"))
import paired


@given(st.integers(0, 2**32 - 1))
def test_a_pair_of_weight_three_counts_as_three_pairs(seed):
    random = np.random.default_rng(seed)
    first, second = random.integers(0, 6, (2, 40)).astype(float)  # with ties
    times = random.integers(1, 4, 40)
    expected = spearmanr(np.repeat(first, times), np.repeat(second, times)).statistic * 100
    assert paired.spearman(first, second, times / times.sum()) == pytest.approx(expected, abs=1e-9)


def test_files_have_their_share_of_the_test_split():
    files = np.array(["MSRvid"] * 7 + ["images"] * 2 + ["track5.en-en", "MSRpar", "headlines", "forum", "deft-news"])
    weight = paired.weights(files)
    assert weight.sum() == pytest.approx(1)
    assert weight[:7].sum() == pytest.approx(weight[7:9].sum()) == pytest.approx(250 / sum(paired.TEST.values()))
    assert weight[-1] == 0


def test_a_model_gains_nothing_over_itself_and_something_by_less_noise():
    random = np.random.default_rng(0)
    gold = random.random(500)
    noise, weight = random.normal(size=500), np.full(500, 1 / 500)
    then = gold + 0.5 * noise
    assert paired.difference(then, then, gold, weight) == (0.0, 0.0)
    gain, error = paired.difference(gold + 0.3 * noise, then, gold, weight)
    assert gain > 5 * error > 0
