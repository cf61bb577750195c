"""`recipes/bloom-mini/paired.py`: two models on pairs that weigh as the test split is composed."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes/bloom-mini"))
import paired


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
