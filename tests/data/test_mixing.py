"""Duplicates, weights, samples, and sources each by itself."""

from collections import Counter

import numpy as np
from data_files import load_and_report, table, texts
from hypothesis import given, settings
from hypothesis import strategies as st

from lacos_st.data.load import load_training_data, load_training_sources
from lacos_st.data.mixing import mix


def test_duplicates_are_dropped_whatever_their_white_space(tmp_path):
    rows = [("a  b", "c"), ("a b", " c"), ("a b", "d"), ("ab", "c")]
    first = table(tmp_path / "first.csv", ["anchor", "positive"], rows)
    second = table(tmp_path / "second.jsonl", ["anchor", "positive"], [("a\tb", "c"), ("new", "pair")])
    data, report = load_and_report([first, second])
    assert sorted(texts(data)) == sorted([("a  b", "c"), ("a b", "d"), ("ab", "c"), ("new", "pair")])
    assert [source.duplicates for source in report.sources] == [1, 1]
    assert [source.used for source in report.sources] == [3, 1]


def test_weights_repeat_and_sample(tmp_path):
    big = table(tmp_path / "big.csv", ["anchor", "positive"], [(f"a{i}", f"b{i}") for i in range(100)])
    small = table(tmp_path / "small.csv", ["anchor", "positive"], [(f"x{i}", f"y{i}") for i in range(10)])
    data, report = load_and_report([f"{big}@0.25", f"{small}@2.5"], seed=1)
    counts = Counter(data["anchor"])
    assert report.rows == len(data) == 25 + 25
    assert [source.sampled for source in report.sources] == [25, 25]
    assert sorted(n for name, n in counts.items() if name.startswith("x")) == [2] * 5 + [3] * 5
    assert {n for name, n in counts.items() if name.startswith("a")} == {1}
    same = load_training_data({str(big): 0.25, str(small): 2.5}, seed=1)
    assert texts(same) == texts(data)
    assert texts(load_training_data({str(big): 0.25, str(small): 2.5}, seed=2)) != texts(data)
    assert data["anchor"][:25] != sorted(data["anchor"][:25])  # mixed


def test_max_rows_draws_a_sample_in_the_order_of_the_file(tmp_path):
    rows = [(f"a{i:03}", f"b{i}") for i in range(200)]
    path = table(tmp_path / "x.csv", ["anchor", "positive"], rows)
    data = load_training_data(path, max_rows=50, seed=3)
    assert len(data) == 50
    assert data["anchor"][:] == sorted(data["anchor"])
    assert max(data["anchor"]) > "a150"
    assert texts(data) == texts(load_training_data(path, max_rows=50, seed=3))
    assert texts(load_training_data(path, max_rows=500)) == rows


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.booleans(), min_size=1, max_size=20), min_size=1, max_size=4),
    st.lists(st.floats(0.1, 3), min_size=4, max_size=4),
    st.integers(0, 5),
)
def test_mixtures_have_the_promised_counts(kept, weights, seed):
    keep = np.concatenate([np.asarray(flags) for flags in kept])
    bounds = np.cumsum([0, *map(len, kept)])
    rows = mix(keep, bounds, weights[: len(kept)], None, seed)
    assert keep[rows].all()
    for flags, start, weight in zip(kept, bounds, weights, strict=False):
        counts = np.bincount(rows, minlength=len(keep))[start : start + len(flags)][np.asarray(flags)]
        assert counts.sum() == int(weight) * sum(flags) + round((weight - int(weight)) * sum(flags))
        assert not len(counts) or counts.max() - counts.min() <= 1


def test_fewest_negatives_win(tmp_path):
    two = table(tmp_path / "two.csv", ["anchor", "positive", "negative_1", "negative_2"], [("a", "b", "c", "d")])
    one = table(tmp_path / "one.csv", ["anchor", "positive", "negative"], [("e", "f", "g")])
    data, report = load_and_report([two, one])
    assert sorted(texts(data)) == [("a", "b", "c"), ("e", "f", "g")]
    assert len(report.notes) == 1


def test_by_source_each_keeps_its_negatives_and_a_lone_one_its_order(tmp_path):
    two = table(tmp_path / "two.csv", ["anchor", "positive", "negative_1", "negative_2"], [("a", "b", "c", "d")])
    one = table(tmp_path / "one.csv", ["anchor", "positive"], [(f"e{i}", "f") for i in range(50)])
    data = load_training_sources([f"{two}@3", one])
    assert texts(data["two"]) == [("a", "b", "c", "d")] * 3
    assert sorted(texts(data["one"])) == sorted((f"e{i}", "f") for i in range(50))
    assert texts(load_training_sources(one)["one"]) == texts(load_training_data(one))


def test_by_source_are_the_rows_of_the_mixture(tmp_path):
    paths = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        rows = [(f"{name}{i % 30}", "p") for i in range(40)]
        paths.append(table(tmp_path / name / "x.csv", ["anchor", "positive"], rows))
    options = {"max_rows": 20, "seed": 4}
    mixed = load_training_data({str(path): 1.5 for path in paths}, **options)
    apart = load_training_sources({str(path): 1.5 for path in paths}, **options)
    assert list(apart) == ["x", "x-2"]
    assert {row[0][0] for row in texts(apart["x"])} == {"a"}
    assert sorted([*texts(apart["x"]), *texts(apart["x-2"])]) == sorted(texts(mixed))


def test_a_source_of_duplicates_only_is_left_out(tmp_path):
    paths = [table(tmp_path / name, ["anchor", "positive"], [("a", "b")]) for name in ("x.csv", "y.jsonl.gz")]
    assert list(load_training_sources(paths)) == ["x"]


def test_many_chunks(tmp_path):
    rows = [(f"anchor {i}", f"positive {i}") for i in range(20_000)]
    path = table(tmp_path / "x.jsonl.gz", ["anchor", "positive"], rows + rows[:5])
    data = load_training_data(path)
    assert texts(data.select([0, 8191, 8192, 19_999])) == [rows[i] for i in (0, 8191, 8192, 19_999)]
    assert len(data) == 20_000
