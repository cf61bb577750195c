"""`recipes/bloom-mini/shares.py`: what pairs would be worth at other shares of the sketch."""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes/bloom-mini"))
import shares

from lacos_st.statistics import spearman


def test_a_share_is_that_of_the_cosines(monkeypatch):
    monkeypatch.setattr(shares, "MEANING", 6)
    random, share = np.random.default_rng(0), 0.3
    parts = [shares.unit(random.normal(size=(40, width))) for width in (6, 6, 4, 4)]
    left, right = (np.hstack([(1 - share) ** 0.5 * parts[i], share**0.5 * parts[i + 2]]) for i in (0, 1))
    gold, weight = random.random(40), random.random(40)
    now, *others = shares.by_share(left, right, gold, weight)
    assert now == pytest.approx(others[shares.SHARES.index(share)])
    assert others[0] == pytest.approx(spearman(gold, (parts[0] * parts[1]).sum(1), weight))


def write(folder, name, count):
    rows = [{"sentence1": f"{name} {i}", "sentence2": "b", "score": i, "subset": "a/images"} for i in range(count)]
    with gzip.open(folder / f"{name}.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, rows)))


def test_no_test_split_is_read(tmp_path):
    counts = {"stsb.de.dev": 2, "stsb.de.train": 3, "stsb.de.test": 4, "sick.nl.trial": 5, "sick.nl.test": 6}
    for name, count in {**counts, "klue-sts.ko.dev": 7, "sts12.en.train": 8}.items():
        write(tmp_path, name, count)
    found = shares.sets_of(tmp_path)
    assert {name: len(gold) for name, (_, _, gold) in found.items()} == {"stsb.de": 5, "sick.nl": 5}
    assert found["stsb.de"][0][0] == "stsb.de.dev 0"
