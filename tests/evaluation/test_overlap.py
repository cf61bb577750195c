"""Evaluation text in training data: found in every disguise, counted by pair and sentence, with its line."""

import csv
import gzip
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lacos_st.errors import LacosError
from lacos_st.evaluation.local_sets import read_pairs
from lacos_st.evaluation.overlap import check_overlap, normalised
from lacos_st.evaluation.tasks import SAMPLE


@pytest.fixture
def data(tmp_path):
    rows = [
        ("A man plays the guitar.", "Someone plays music.", 3.0),
        ("Two dogs run.", "Dogs are running.", 4.0),
        ("It's raining.", "The sun shines.", 1.0),
        ("नमस्ते दुनिया", "दुनिया", 2.0),
    ]
    directory = tmp_path / "eval"
    directory.mkdir()
    lines = [json.dumps({"sentence1": a, "sentence2": b, "score": s}) for a, b, s in rows]
    (directory / "mine.en.test.jsonl").write_text("\n".join(lines))
    return directory


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def counts(overlap):
    return [(entry.pairs_found, entry.sentences_found) for entry in overlap.found]


def test_a_pair_is_found_in_either_order_and_any_column(tmp_path, data):
    train = write(
        tmp_path / "train.jsonl",
        [
            {"anchor": "nothing", "positive": "at all"},
            {"anchor": "someone plays MUSIC", "positive": "other", "negative": "a man plays the guitar!!"},
        ],
    )
    found = check_overlap(train, data)
    assert counts(found) == [(1, 2)]
    assert found.rows == {str(train): 2}
    assert "train.jsonl:2" in found.found[0].examples[0]
    assert "scores on those files say nothing" in str(found)


def test_single_sentences_are_counted_but_are_no_pair(tmp_path, data):
    train = tmp_path / "corpus.txt"
    train.write_text("Two dogs run\nDogs are running\nsomething else\n", encoding="utf-8")
    found = check_overlap(train, data)
    assert counts(found) == [(0, 2)]
    assert found.pairs == 0
    assert "No evaluation pair is in the training data; 2 single sentences are." in str(found)


def test_lists_of_captions_are_compared_pair_by_pair(tmp_path, data):
    train = write(tmp_path / "t.jsonl", [{"captions": ["x", "Dogs are running", "y", "Two dogs run"]}])
    assert counts(check_overlap(train, data)) == [(1, 2)]


def test_labels_scores_and_languages_are_no_texts(tmp_path, data):
    with (data / "mine.en.test.jsonl").open("a") as stream:
        stream.write('\n{"sentence1": "No!", "sentence2": "Two dogs run.", "score": 1}')
    with (tmp_path / "t.csv").open("w", newline="") as stream:
        rows = [["genre", "sentence1", "sentence2", "Language", "score", "label"]]
        rows += [["news", "Two dogs run.", "Dogs are running.", "no", "1", "entailment"]]
        csv.writer(stream).writerows(rows)
    found = check_overlap(tmp_path / "t.csv", data)
    assert counts(found) == [(1, 2)]
    assert found.found[0].examples[0].endswith("t.csv:2: Two dogs run. | Dogs are running.")


def test_a_dev_file_that_cannot_be_read_is_not_passed_over(tmp_path, data):
    (data / "mine.xx.dev.jsonl").write_bytes((data / "mine.en.test.jsonl").read_bytes())
    with pytest.raises(LacosError, match=r"mine\.xx\.dev\.jsonl"):
        check_overlap(write(tmp_path / "t.jsonl", [{"anchor": "a", "positive": "b"}]), data)


def test_other_formats_and_several_sources(tmp_path, data):
    with (tmp_path / "t.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["anchor", "positive"], ["It 's raining", "the sun shines"]])
    with gzip.open(tmp_path / "t.txt.gz", "wt") as stream:
        stream.write("दुनिया\n")
    found = check_overlap([tmp_path / "t.csv", tmp_path / "t.txt.gz"], data)
    assert counts(found) == [(1, 2), (0, 1)]


def test_nothing_is_found_where_nothing_is(tmp_path, data):
    train = write(tmp_path / "t.jsonl", [{"anchor": "Two cats run.", "positive": "Dogs are sleeping."}])
    found = check_overlap(train, data)
    assert found.found == []
    assert found.sentences == 0


def test_two_evaluation_sentences_that_are_no_evaluation_pair(tmp_path, data):
    train = write(tmp_path / "t.jsonl", [{"a": "Two dogs run.", "b": "The sun shines."}])
    assert counts(check_overlap(train, data)) == [(0, 2)]


def test_the_packaged_sample_against_itself():
    path = SAMPLE / "sts17.es-es.test.jsonl.gz"
    found = {entry.file: entry for entry in check_overlap(path).found}
    assert found[path.name].pairs_found == found[path.name].pairs == 250
    assert found[path.name].sentences_found == found[path.name].sentences


@given(st.text(max_size=30))
def test_case_punctuation_and_spacing_hide_nothing(text):
    assert normalised(f" “{text.upper()}” …") == normalised(text.upper())
    assert normalised(text.replace(" ", "  ,")) == normalised(text)


def test_marks_that_carry_meaning_are_kept():
    assert normalised("हिन्दी") != normalised("हनद")
    assert normalised("ＡＢＣ") == "abc"


def test_a_broken_training_file_is_named(tmp_path, data):
    (tmp_path / "t.unknown").write_text("x")
    with pytest.raises(LacosError, match=r"t\.unknown"):
        check_overlap(tmp_path / "t.unknown", data)
    with pytest.raises(LacosError, match="No training data"):
        check_overlap([], data)


def test_memory_is_that_of_the_evaluation_sets(tmp_path, data):
    """A training file of 20 MB passes with less than 5 MB held."""
    import tracemalloc

    train = tmp_path / "t.txt"
    train.write_text("".join(f"a sentence with the number {i} in it and some more words\n" for i in range(60_000)))
    check_overlap(train, data)  # tables that are made once
    small = tmp_path / "s.txt"
    small.write_text("a sentence\n")
    peaks = []
    for path in (small, train):
        tracemalloc.start()
        check_overlap(path, data)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 1_000_000


@pytest.mark.skipif("LACOS_DATA" not in os.environ, reason="LACOS_DATA names no directory with sts/ in it")
@pytest.mark.slow
def test_known_overlaps_come_out():
    """STS-B was sampled from STS12 to 17, and SICK-BR became ASSIN2: the counts of the data's own notes."""
    directory = Path(os.environ["LACOS_DATA"]) / "sts"
    found = check_overlap([directory / f"{n}.train.jsonl.gz" for n in ("stsb.en", "sick.pt")], directory)
    pairs = {entry.file: entry.pairs_found for entry in found.found if entry.pairs_found > 100}
    expected = {"sts12": 1003, "sts13": 597, "sts14": 1861, "sts15": 1102}
    assert pairs == {f"{name}.en.test.jsonl.gz": n for name, n in expected.items()} | {"assin2.pt.test.jsonl.gz": 365}


def test_the_shipped_training_sample_holds_no_pair_of_the_shipped_test():
    samples = sorted((SAMPLE.parent / "samples").glob("*.jsonl*"))
    if not samples:
        pytest.skip("no training sample is in the package")
    found = check_overlap(samples)
    assert found.pairs == 0, str(found)
    assert all(rows > 0 for rows in found.rows.values())
    assert sum(1 for path in SAMPLE.glob("*.gz") for _ in read_pairs(path)) == 1000


def test_rows_that_cannot_be_read_are_not_called_clean(tmp_path, data):
    path = tmp_path / "train.jsonl"
    path.write_text('{"anchor": "a", "positive": "b"},\n', encoding="utf-8")
    with pytest.raises(LacosError, match=r"train\.jsonl:1"):
        check_overlap(path, data)
    with pytest.raises(LacosError, match=r"There is no file 'missing\.csv'"):
        check_overlap("missing.csv", data)
