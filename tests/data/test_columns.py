"""What columns mean: names, overrides, NLI labels, scores."""

import json
import math
from collections import Counter

import datasets
import numpy as np
import pytest
from data_files import NLI, PAIRS, load_and_report, table, texts, write
from hypothesis import given, settings
from hypothesis import strategies as st

from lacos_st.data.columns import override
from lacos_st.data.hub import open_dataset
from lacos_st.data.load import DataError, load_training_data, load_training_sources
from lacos_st.data.mixing import match_nli

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
