"""Readers, columns and mixing: what goes in comes out, and every mistake is named with file and line."""

import csv
import gzip
import io
import json
import math
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lacos_st.columns import override
from lacos_st.data import DataError, load_training_data, load_training_sources
from lacos_st.errors import LacosError
from lacos_st.hub import open_dataset
from lacos_st.mixing import match_nli, mix
from lacos_st.readers import open_file

PAIRS = [("A dog runs.", "An animal moves."), ("Le chat dort.", "Un animal dort."), ("吉他", "乐器")]
NLI = [
    ("p1", "e1", "entailment"),
    ("p1", "n1", "neutral"),
    ("p2", "e2", "entailment"),
    ("p1", "c1", "contradiction"),
    ("p1", "e3", "entailment"),
    ("p1", "c2", "contradiction"),
    ("p1", "e4", "entailment"),
    ("p3", "c3", "contradiction"),
]


def write(path: Path, content: str | bytes) -> Path:
    raw = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def table(path: Path, header: list[str], rows: list) -> Path:
    """Write rows in the format that the name says."""
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if kind == ".parquet":
        pq.write_table(pa.table({name: [row[i] for row in rows] for i, name in enumerate(header)}), path)
        return path
    if kind == ".jsonl":
        lines = [json.dumps(dict(zip(header, row, strict=True)), ensure_ascii=False) for row in rows]
        return write(path, "\n".join(lines) + "\n")
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter="\t" if kind == ".tsv" else ",").writerows([header, *rows])
    return write(path, buffer.getvalue())


def load_and_report(sources, **options):
    reports = []
    data = load_training_data(sources, on_report=reports.append, **options)
    return data, *reports


def texts(data: datasets.Dataset) -> list[tuple[str, ...]]:
    return [tuple(row.values()) for row in data]


# -- formats

ENDINGS = [".csv", ".tsv", ".jsonl", ".csv.gz", ".tsv.gz", ".jsonl.gz", ".parquet"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_format_gives_the_same_pairs(tmp_path, ending):
    data = load_training_data(table(tmp_path / f"pairs{ending}", ["anchor", "positive"], PAIRS))
    assert isinstance(data, datasets.Dataset)
    assert data.column_names == ["anchor", "positive"]
    assert texts(data) == PAIRS


@pytest.mark.parametrize("name", ["lines.txt", "lines.txt.gz"])
def test_a_text_file_gives_each_sentence_twice(tmp_path, name):
    data = load_training_data(write(tmp_path / name, "\ufeffone\r\n\n  \ntwo three\nvier"))
    assert texts(data) == [("one", "one"), ("two three", "two three"), ("vier", "vier")]


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
    lambda text: text.strip() and text not in ("nan", "NaN")
)


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".jsonl.gz", ".parquet"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(ANY_TEXT, ANY_TEXT), min_size=1, max_size=8))
def test_any_unicode_goes_round(tmp_path, ending, rows):
    path = table(tmp_path / f"x{ending}", ["anchor", "positive"], rows)
    read = [tuple(row.values.values()) for row in open_file(path).rows()]
    assert read == rows
    distinct = {tuple(" ".join(text.split()) for text in row): row for row in reversed(rows)}
    data = load_training_data(path, columns=["anchor", "positive"])  # else "0" alone is doubted to be a text
    assert Counter(texts(data)) == Counter(distinct.values())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(ANY_TEXT.filter(lambda text: "\n" not in text and not text.endswith("\r")), min_size=1))
def test_any_line_goes_round(tmp_path, lines):
    if lines[0].startswith("\ufeff"):
        lines[0] = "x" + lines[0]
    path = write(tmp_path / "x.txt", "\n".join(lines))
    assert [row.values["text"] for row in open_file(path).rows()] == lines
    assert [row.number for row in open_file(path).rows()] == list(range(1, len(lines) + 1))


def test_semicolons_of_a_spreadsheet(tmp_path):
    data = load_training_data(write(tmp_path / "x.csv", 'query;answer\n"a;b";c, d\n'))
    assert texts(data) == [("a;b", "c, d")]


def test_line_numbers_count_lines_inside_quotes(tmp_path):
    path = write(tmp_path / "x.csv", 'anchor,positive\n"two\nlines",b\n\nc\n')
    with pytest.raises(DataError, match=r"x\.csv:5: 1 fields where the header has 2"):
        load_training_data(path)


def test_arrays_in_json_lines_are_positional(tmp_path):
    path = write(tmp_path / "x.jsonl", '["a", "b", "c", "d"]\n["e", "f", "g", "h"]\n')
    assert load_training_data(path).column_names == ["anchor", "positive", "negative", "negative_2"]


def test_parquet_reads_only_the_columns_it_needs(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"anchor": ["a"], "positive": ["b"], "big": [[1.0] * 9]}), path)
    assert next(open_file(path).rows(["positive"])).values == {"positive": "b"}
    assert texts(load_training_data(path)) == [("a", "b")]


NO_UTF8 = pa.StringArray.from_buffers(3, pa.array([0, 1, 3, 4], pa.int32()).buffers()[1], pa.py_buffer(b"ab\xe9c"))


def test_a_parquet_cell_that_cannot_be_read_spoils_its_row(tmp_path):
    path = tmp_path / "x.parquet"
    lists = pa.ListArray.from_arrays([0, 1, 2, 3], NO_UTF8)
    for column in (NO_UTF8, NO_UTF8.dictionary_encode(), lists):
        pq.write_table(pa.table({"anchor": ["x", "y", "z"], "positive": column}), path)
        with pytest.raises(DataError, match=r"x\.parquet, row 2: column 'positive' cannot be read: .*byte 0xe9"):
            load_training_data(path)
        data, report = load_and_report(path, on_bad_row="skip")
        assert texts(data) == [("x", "a"), ("z", "c")]
        assert (report.sources[0].read, report.sources[0].bad) == (3, 1)


def test_a_parquet_cell_that_nobody_asked_for_spoils_nothing(tmp_path):
    path = tmp_path / "x.parquet"
    far = pa.array([2**50] * 3, pa.timestamp("ms"))
    pq.write_table(pa.table({"when": far, "note": NO_UTF8, "anchor": ["a", "b", "c"], "positive": list("def")}), path)
    assert texts(load_training_data(path)) == [("a", "d"), ("b", "e"), ("c", "f")]
    assert list(open_file(path).first().values) == ["when", "note", "anchor", "positive"]


def test_a_column_of_parquet_occurs_once(tmp_path):
    names = ["anchor", "positive", "positive"]
    pq.write_table(pa.table([pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], names=names), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x\.parquet names column 'positive' twice"):
        load_training_data(tmp_path / "x.parquet")


# -- what columns mean


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (["query", "Answer"], ["anchor", "positive"]),
        (["Sentence 1", "sentence-2"], ["anchor", "positive"]),
        (["question1", "question2", "id"], ["anchor", "positive"]),
        (["anchor", "positive", "negative_1", "negative_2"], ["anchor", "positive", "negative", "negative_2"]),
        (["query", "pos", "neg"], ["anchor", "positive", "negative"]),
        (["en", "fr"], ["anchor", "positive"]),
        (["sentence", "id"], ["anchor", "positive"]),
        (["titel"], ["anchor", "positive"]),
    ],
)
def test_known_names(tmp_path, header, expected):
    row = [f"text {i}" for i in range(len(header))]
    assert load_training_data(table(tmp_path / "x.csv", header, [row])).column_names == expected


def test_extra_columns_do_not_matter(tmp_path):
    rows = [("1", "a", "web", "b")]
    assert texts(load_training_data(table(tmp_path / "x.tsv", ["id", "query", "lang", "answer"], rows))) == [("a", "b")]


def test_lists_of_positives_and_negatives(tmp_path):
    lines = [
        {"query": "q1", "pos": ["p1", "p2"], "neg": ["n1", "n2"]},
        {"query": "q2", "pos": ["p3"], "neg": ["n3", "n4", "n5"]},
        {"query": "q3", "pos": ["p4"], "neg": ["n6"]},
    ]
    path = write(tmp_path / "x.jsonl", "\n".join(map(json.dumps, lines)))
    with pytest.raises(DataError, match=r"x\.jsonl:3: 1 negatives where the first row has 2"):
        load_training_data(path)
    data, report = load_and_report(path, on_bad_row="skip")
    assert texts(data) == [("q1", "p1", "n1", "n2"), ("q1", "p2", "n1", "n2"), ("q2", "p3", "n3", "n4")]
    assert report.notes == [
        f"{path}: 1 row(s) have more negatives than the first, which has 2: 2 kept. Give every row as many."
    ]


@pytest.mark.parametrize("first", ['{"anchor": "a", "positive": "b"}', '["a", "b"]', '{"en": "a", "fr": "b"}'])
def test_negatives_that_the_first_row_has_not_are_counted(tmp_path, first):
    keys = list(json.loads(first)) if first.startswith("{") else ["anchor", "positive"]
    rows = [dict(zip(keys, ("c", "d"), strict=True)) | {"Hard-Negative": value} for value in (["e"], None, [], "f")]
    path = write(tmp_path / "x.jsonl", "\n".join([first, *map(json.dumps, rows)]))
    notes = [f"{path}: 2 row(s) have more negatives than the first, which has 0: 0 kept. Give every row as many."]
    data, report = load_and_report(path)
    assert (texts(data), report.notes) == ([("a", "b"), ("c", "d")], notes)
    load_training_sources(path, on_report=lambda report: notes.append(*report.notes))
    assert notes[0] == notes[1]
    _, report = load_and_report(path, columns=keys)  # said to be left out
    assert report.notes == []


@pytest.mark.parametrize(
    "columns",
    [
        ["c", "a"],
        {"anchor": "c", "positive": "a"},
        ["anchor=c", "positive=a"],
    ],
)
def test_columns_override_names(tmp_path, columns):
    path = table(tmp_path / "x.csv", ["a", "anchor", "c"], [("1a", "2b", "3c")])
    assert texts(load_training_data(path, columns=columns)) == [("3c", "1a")]
    assert texts(load_training_data(path, columns={str(path): columns})) == [("3c", "1a")]


def test_columns_of_single_sentences_and_negatives(tmp_path):
    path = table(tmp_path / "x.csv", ["a", "b", "c"], [("1a", "2b", "3c")])
    assert texts(load_training_data(path, columns="b")) == [("2b", "2b")]
    assert texts(load_training_data(path, columns=["c", "b", "a"])) == [("3c", "2b", "1a")]
    assert texts(load_training_data(path, columns={"anchor": "a", "positive": "b", "negative": ["c", "a"]})) == [
        ("1a", "2b", "3c", "1a")
    ]


# -- NLI

TRIPLETS = [("p1", "e1", "c1"), ("p1", "e3", "c2"), ("p1", "e4", "c1")]


@pytest.mark.parametrize("labels", ["names", "ints", "digits", "floats"])
@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_nli_becomes_triplets(tmp_path, labels, ending):
    number = {"entailment": 0, "neutral": 1, "contradiction": 2}
    as_given = {
        "names": str,
        "ints": number.get,
        "digits": lambda name: str(number[name]),
        "floats": lambda name: float(number[name]),
    }
    rows = [(premise, hypothesis, as_given[labels](label)) for premise, hypothesis, label in NLI]
    path = table(tmp_path / f"x{ending}", ["premise", "hypothesis", "label"], rows)
    data, report = load_and_report(path)
    assert data.column_names == ["anchor", "positive", "negative"]
    assert texts(data) == TRIPLETS
    assert (report.sources[0].read, report.sources[0].used, report.sources[0].unused) == (8, 3, 5)


def test_nli_with_names_under_other_columns(tmp_path):
    path = table(tmp_path / "x.jsonl", ["sentence1", "sentence2", "gold_label"], [*NLI, ("p1", "x", "-")])
    assert texts(load_training_data(path)) == TRIPLETS


def test_nli_without_contradictions_or_among_pairs_gives_pairs(tmp_path):
    nli = table(tmp_path / "nli.csv", ["premise", "hypothesis", "label"], NLI)
    entailed = [(p, h) for p, h, label in NLI if label == "entailment"]
    alone = [row for row in NLI if row[2] == "entailment"]
    only = table(tmp_path / "only.csv", ["premise", "hypothesis", "label"], alone)
    assert texts(load_training_data(only)) == entailed
    pairs = table(tmp_path / "pairs.csv", ["anchor", "positive"], PAIRS)
    data, report = load_and_report([nli, pairs])
    assert sorted(texts(data)) == sorted(entailed + PAIRS)
    assert any("nli.csv has 1 negative(s) a row, another source 0: 0 kept" in note for note in report.notes)


def test_a_hypothesis_with_both_labels_is_not_used(tmp_path):
    rows = [("p", "h", 0), ("p", "h", 2), ("p", "e", 0), ("p", "c", 2), ("p", "e ", 0)]
    path = table(tmp_path / "x.jsonl", ["premise", "hypothesis", "label"], rows)
    assert texts(load_training_data(path)) == [("p", "e", "c")]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6), st.integers(-1, 2)), max_size=40))
def test_joining_nli_rows(rows):
    columns = np.asarray(rows, np.int64).reshape(-1, 3).T
    entailed, contradicted, alone = match_nli(columns[0].astype(np.uint64), columns[1].astype(np.uint64), columns[2])
    both = {(p, h) for p, h, label in rows if label == 0} & {(p, h) for p, h, label in rows if label == 2}
    wanted = {(p, h) for p, h, label in rows if label == 0} - both
    refuted = {(p, h) for p, h, label in rows if label == 2} - both
    assert sorted(entailed) == list(entailed)
    assert {rows[i][:2] for i in entailed} | {rows[i][:2] for i in alone} == wanted
    assert len(entailed) + len(alone) == len(wanted)
    assert all(
        rows[i][2] == 0 and rows[j][2] == 2 and rows[i][0] == rows[j][0]
        for i, j in zip(entailed, contradicted, strict=True)
    )
    for premise in {p for p, _ in refuted}:  # contradictions take turns
        used = Counter(int(j) for i, j in zip(entailed, contradicted, strict=True) if rows[i][0] == premise)
        available = len([1 for p, _ in refuted if p == premise])
        assert not used or max(used.values()) == math.ceil(sum(used.values()) / available)


@pytest.mark.parametrize(
    "order", [["entailment", "neutral", "contradiction"], ["contradiction", "neutral", "entailment"]]
)
def test_named_class_labels_count_by_name(order):
    features = datasets.Features(
        {
            "premise": datasets.Value("string"),
            "hypothesis": datasets.Value("string"),
            "label": datasets.ClassLabel(names=order),
        }
    )
    data = datasets.Dataset.from_dict(
        {"premise": ["p", "p", "p"], "hypothesis": ["a", "b", "c"], "label": [0, 2, -1]}, features=features
    )
    assert [row.values["label"] for row in open_dataset(data).rows()] == [order[0], order[2], None]


def test_an_override_is_one_that_a_shell_reads():
    assert override(["my query", "answer"]) == "columns=['my query', 'answer'] (--columns 'my query' answer)"


# -- scores


def test_scores_need_a_threshold(tmp_path):
    rows = [("a", "b", 4.5), ("c", "d", 1.0), ("e", "f", 4.0)]
    path = table(tmp_path / "sts.csv", ["sentence1", "sentence2", "score"], rows)
    with pytest.raises(DataError, match=r"sts\.csv has scores in column 'score'.*min_score=4"):
        load_training_data(path)
    data, report = load_and_report(path, min_score=4)
    assert texts(data) == [("a", "b"), ("e", "f")]
    assert report.sources[0].unused == 1
    assert len(load_training_data(path, columns=["sentence1", "sentence2"])) == 3
    with pytest.raises(DataError, match=r"gives no training row: 3 read, 0 bad, the others below min_score=9"):
        load_training_data(path, min_score=9)


def test_a_numeric_label_is_never_guessed(tmp_path):
    path = table(tmp_path / "qqp.csv", ["question1", "question2", "label"], [("a", "b", 1), ("c", "d", 0)])
    with pytest.raises(
        DataError, match=r"qqp\.csv: what does column 'label' mean, with the values '1', '0'\?"
    ) as raised:
        load_training_data(path)
    assert "(--columns anchor=question1 positive=question2 score=label)" in str(raised.value)
    same = {"anchor": "question1", "positive": "question2", "score": "label"}
    assert texts(load_training_data(path, columns=same, min_score=1)) == [("a", "b")]
    entailed = {"premise": "question1", "hypothesis": "question2", "label": "label"}
    assert texts(load_training_data(path, columns=entailed)) == [("c", "d")]


# -- duplicates, weights, samples


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


# -- Hub and directories


def test_directories_saved_by_datasets(tmp_path):
    pairs = datasets.Dataset.from_dict({"anchor": ["a"], "positive": ["b"]})
    pairs.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": pairs, "dev": pairs.map(lambda row: {"anchor": "x"})}).save_to_disk(tmp_path / "two")
    assert texts(load_training_data(tmp_path / "one")) == [("a", "b")]
    assert texts(load_training_data(f"{tmp_path / 'two'}@1")) == [("a", "b")]


def test_hub_names_choose_subset_and_split(monkeypatch):
    asked = []

    def load(name, subset):
        asked.append((name, subset))
        return {
            split: datasets.Dataset.from_dict({"anchor": [split], "positive": [subset]}) for split in ("train", "dev")
        }

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name: ["pair-score", "pair", "triplet"])
    assert texts(load_training_data("some/data")) == [("train", "triplet")]
    assert texts(load_training_data("some/data:pair:dev@1")) == [("dev", "pair")]
    assert asked == [("some/data", "triplet"), ("some/data", "pair")]
    with pytest.raises(DataError, match=r"no split 'test', but train, dev\. Choose one: some/data:pair:SPLIT"):
        load_training_data("some/data:pair:test")
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name: ["de", "fr"])
    with pytest.raises(DataError, match=r"several subsets; choose one: some/data:SUBSET with de, fr"):
        load_training_data("some/data")


def test_hub_errors_are_one_line(monkeypatch):
    def offline(name, *_):
        raise ConnectionError(f"Couldn't reach '{name}' on the Hub\nmore")

    monkeypatch.setattr(datasets, "get_dataset_config_names", offline)
    with pytest.raises(DataError, match=r"'some/data' cannot be loaded: Couldn't reach .*HF_HUB_OFFLINE unset"):
        load_training_data("some/data")

    def unknown(name, *_):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'some/data' doesn't exist")

    monkeypatch.setattr(datasets, "get_dataset_config_names", unknown)
    with pytest.raises(DataError, match=r"doesn't exist.*owner/name\[:subset"):
        load_training_data("some/data")


def test_a_bad_row_of_a_data_set_has_its_number(tmp_path):
    datasets.Dataset.from_dict({"anchor": ["a", None], "positive": ["b", "c"]}).save_to_disk(tmp_path / "one")
    with pytest.raises(DataError, match=r"one, row 2: column 'anchor' is null"):
        load_training_data(tmp_path / "one")


# -- mistakes

BAD_ROWS = [
    ("x.csv", b"anchor,positive\na,b\nc,\n", ":3: column 'positive' is empty"),
    ("x.csv", b"anchor,positive\na,b\nc,  \n", ":3: column 'positive' is empty"),
    ("x.csv", b"anchor,positive\na,b\nc,nan\n", ":3: column 'positive' is nan"),
    ("x.csv", b"anchor,positive\na,b\nc,d,e\n", ":3: 3 fields where the header has 2"),
    ("x.csv", b'anchor,positive\na,b\n"c" d,e\n', ":3: cannot be parsed: .*Write a quote inside quotes twice"),
    ("x.csv", b'anchor,positive\na,b\n"c,e\n', ":3: cannot be parsed: unexpected end of data"),
    ("x.csv", b"anchor,positive\na,b\nc\rd,e\n", ":3: cannot be parsed: "),
    ("x.csv", b"anchor,positive\na,b\ncaf\xe9,b\n", ":3: not valid UTF-8: 0xE9 is byte 4 of the line.*iconv"),
    ("x.csv", b'anchor,positive\na,b\n"c\ncaf\xe9",b\n', ":4: not valid UTF-8: 0xE9 is byte 4 of the line"),
    ("x.tsv", b"anchor\tpositive\na\tb\nc d\n", ":3: 1 fields where the header has 2"),
    ("x.txt", b"a\n\xff\n", ":2: not valid UTF-8: 0xFF is byte 1 of the line"),
    (
        "x.jsonl",
        b'{"anchor": "a", "positive": "b"}\n{"anchor": "a"}\n',
        ":2: has no column 'positive' .it has 'anchor'.",
    ),
    ("x.jsonl", b'["a", "b"]\n["a"]\n', ":2: has no column 'anchor' .it has 'text'."),
    ("x.jsonl", b'["a", "b"]\n{"anchor": "a",}\n', ":2: not valid JSON: .* at column 1[56]"),
    ("x.jsonl", b'["a", "b"]\n{"anchor": "a"\n', r":2: not valid JSON: .* at column 15\. Mend it"),
    ("x.jsonl", b'["a", "b"]\n\n17\n', ":3: an object or an array of texts is needed, not int '17'"),
    ("x.jsonl", b'["a", "b"]\n{"anchor": NaN, "positive": "b"}\n', ":2: column 'anchor' is NaN"),
    ("x.jsonl", b'["a", "b"]\n{"anchor": 5, "positive": "b"}\n', ":2: column 'anchor' is '5', a int and not a text"),
    ("x.jsonl", b'["a", "b"]\n{"anchor": null, "positive": "b"}\n', ":2: column 'anchor' is null"),
    ("x.jsonl", b'["a", "b"]\n{"anchor": [], "positive": "b"}\n', ":2: column 'anchor' is '..', a list"),
    ("x.jsonl", b'["a", "b"]\n{"anchor": "x", "positive": []}\n', ":2: column 'positive' is an empty list"),
    (
        "x.jsonl",
        b'["a", "b"]\n{"anchor": "\\ud83d", "positive": "b"}\n',
        ":2: column 'anchor' contains half a surrogate",
    ),
    ("x.jsonl", b'["a", "b"]\n' + b"[" * 100_000 + b"\n", ":2: (JSON that is nested too deeply|not valid JSON)"),
    ("x.jsonl", b'["a", "b"]\n["caf\xe9", "b"]\n', ":2: not valid UTF-8: 0xE9 is byte 6 of the line"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_ROWS)
def test_bad_rows_are_named_or_skipped(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=f"^{tmp_path}/{name}{message}") as error:
        load_training_data(path)
    assert "on_bad_row='skip'" in str(error.value)
    data, report = load_and_report(path, on_bad_row="skip")
    assert len(data) == report.rows == 1
    assert (report.sources[0].read, report.sources[0].bad, len(report.sources[0].examples)) == (2, 1, 1)
    assert f"{path}:" in str(report)


@pytest.mark.parametrize("value", [float("nan"), None])
def test_missing_texts_in_parquet(tmp_path, value):
    values = pa.array([float("nan")]) if value else pa.array([None], pa.string())
    pq.write_table(pa.table({"anchor": values, "positive": ["b"]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=rf"x\.parquet, row 1: column 'anchor' is {'NaN' if value else 'null'}"):
        load_training_data(tmp_path / "x.parquet")


@pytest.mark.parametrize("score", ["nan", "", "high"])
def test_bad_scores(tmp_path, score):
    rows = [("a", "b", "5"), ("c", "d", score)]
    path = table(tmp_path / "x.csv", ["sentence1", "sentence2", "score"], rows)
    with pytest.raises(DataError, match=r"x\.csv:3: the score .*(is NaN|is no number)"):
        load_training_data(path, min_score=1)


def test_bad_labels(tmp_path):
    path = table(tmp_path / "x.csv", ["premise", "hypothesis", "label"], [*NLI, ("p", "h", "maybe")])
    with pytest.raises(DataError, match=r"x\.csv:10: the label 'maybe' is none of entailment, neutral"):
        load_training_data(path)


def test_only_the_first_bad_rows_are_quoted(tmp_path):
    path = write(tmp_path / "x.csv", "anchor,positive\n" + "a,\n" * 40 + "a,b\n")
    _, report = load_and_report(path, on_bad_row="skip")
    assert (report.sources[0].bad, len(report.sources[0].examples)) == (40, 5)
    assert "40 bad" in str(report)


def test_an_unclosed_quote_costs_no_more_than_the_limit_of_a_field(tmp_path):
    good = [f"a{i},b{i}\n" for i in range(30_000)]
    path = write(tmp_path / "x.csv", "anchor,positive\n" + 'c,"d\n' + "".join(good))
    data, report = load_and_report(path, on_bad_row="skip")
    assert report.sources[0].examples[0].startswith(f"{path}:2: lines 2 to ")
    assert "a field has more than 131,072 characters. Close every quote" in report.sources[0].examples[0]
    assert len(data) > 15_000


WHOLE_FILES = [
    ("x.csv", b"", "x.csv is empty"),
    ("x.csv", b"anchor,positive\n", "x.csv holds no readable row. Is there only a header"),
    ("x.csv", b"\na,b\n", "x.csv:1: the first line must name the columns"),
    ("x.csv", b"anchor,anchor\na,b\n", "x.csv:1: the header names column 'anchor' twice"),
    ("x.csv", b"anch\xe9r,b\na,b\n", "x.csv:1: not valid UTF-8"),
    ("x.csv", "anchor,positive\na,b\n".encode("utf-16"), "x.csv is UTF-16; convert it"),
    ("x.csv", b"anchor,positive\n,b\n", "x.csv:2: column 'anchor' is empty"),
    ("x.csv", b"title,body,date\na,b,c\n", "cannot tell which columns to train on; it has 'title', 'body', 'date'"),
    ("x.csv", b"id,title\na,b\n", "cannot tell which columns to train on; it has 'id', 'title'"),
    ("x.csv", b"query,sentence1,answer\na,b,c\n", "'query' and 'sentence1' could each be the anchor"),
    ("x.csv", b"premise,hypothesis\na,b\n", "cannot tell which columns"),
    ("x.jsonl", b"{}\n", "cannot tell which columns"),
    (
        "x.csv",
        b"premise,hypothesis,label\na,b,neutral\n",
        "gives no training row: 1 read, 0 bad, the others without an ent",
    ),
    ("x.json", b'[\n{"anchor": "a"}]', "First problem: .*x.json:1: not valid JSON.*jq -c"),
    ("x.json", b'[{"anchor": "a"}]', "First problem: .*x.json:1: an object .*jq -c"),
    ("x.txt", b"\n \n", "x.txt gives no training row"),
    ("x.parquet", b"PAR1 or not", "x.parquet is no readable Parquet file"),
    ("x.docx", b"abc", "x.docx: cannot tell the format. The name must end in .txt"),
]


@pytest.mark.parametrize(("name", "content", "message"), WHOLE_FILES)
def test_unusable_files(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=message):
        load_training_data(path)


def test_damaged_gzip(tmp_path):
    path = write(tmp_path / "x.txt.gz", "".join(f"line {i} {i * 7919 % 1000}\n" for i in range(5000)))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"x\.txt\.gz: damaged gzip data after line \d+"):
        load_training_data(path)
    (tmp_path / "y.txt.gz").write_bytes(b"plain text")
    with pytest.raises(DataError, match=r"y\.txt\.gz: damaged gzip data after line 0"):
        load_training_data(tmp_path / "y.txt.gz")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sources": "missing.csv"}, "There is no file 'missing.csv'"),
        ({"sources": "./some/data"}, "There is no file './some/data'"),
        ({"sources": []}, "No training data was given"),
        ({"sources": "{good}@0"}, "The weight '0' of .*good.csv' must be a number above 0"),
        ({"sources": "{good}@much"}, "The weight 'much' of"),
        ({"sources": ["{good}", "{good}"]}, "is given twice; give it once, with a weight: .*good.csv@2"),
        ({"sources": "{good}@0.001"}, "The weights leave no row to train on"),
        ({"columns": ["anchor", "nope"]}, "good.csv has no column 'nope'; it has 'anchor', 'positive'"),
        ({"columns": {"anker": "anchor"}}, "columns has the unknown role 'anker'. Known: anchor, positive"),
        ({"columns": {"{good}": ["anchor"], "other": ["x"]}}, "columns names 'other', which is none of the sources"),
        ({"on_bad_row": "ignore"}, "on_bad_row='ignore' must be 'error' or 'skip'"),
        ({"max_rows": 0}, "max_rows=0 must be at least 1"),
    ],
)
def test_wrong_arguments(tmp_path, arguments, message):
    good = str(table(tmp_path / "good.csv", ["anchor", "positive"], PAIRS))

    def fill(value):
        if isinstance(value, str):
            return value.replace("{good}", good)
        if isinstance(value, dict):
            return {fill(key): item for key, item in value.items()}
        return [fill(item) for item in value] if isinstance(value, list) else value

    with pytest.raises(LacosError, match=message):
        load_training_data(**{"sources": good, **{key: fill(value) for key, value in arguments.items()}})
