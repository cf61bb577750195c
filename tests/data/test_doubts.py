"""Columns that say something about a row's texts are never read past, whatever their names; a guess is an error."""

import csv
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lacos_st.data.load import DataError, load_training_data, load_training_sources
from lacos_st.encoding.encode import encode_file

LONG = [f"this is text number {i} of the file" for i in range(40)]


def texts(data) -> list[tuple[str, ...]]:
    return [tuple(row.values()) for row in data]


def table(path: Path, header: list[str], rows: list) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def lines(path: Path, rows: list) -> str:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


QUORA = [
    ("0", "1", "2", "How do I learn Spanish fast?", "What is the fastest way to learn Spanish?", "1"),
    ("1", "3", "4", "How do I cook rice?", "How do I cook pasta?", "0"),
]


def test_a_non_duplicate_is_no_positive(tmp_path):
    path = table(tmp_path / "q.csv", ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"], QUORA)
    for load in (load_training_data, load_training_sources):
        with pytest.raises(DataError, match=r"q\.csv: what does column 'is_duplicate' mean.* '1', '0'\?") as raised:
            load(path)
    scored = "--columns anchor=question1 positive=question2 score=is_duplicate"
    assert scored in str(raised.value)
    assert "--min-score 1" in str(raised.value)
    assert "--columns question1 question2" in str(raised.value)
    assert texts(load_training_data(path, columns=scored.split()[1:], min_score=1)) == [QUORA[0][3:5]]
    assert len(load_training_data(path, columns=["question1", "question2"])) == 2


VALUES = {
    "bool": [True, False],
    "flags": ["yes", "No"],
    "numbers": [0, 1],
    "texts": ["0", "1"],
    "floats": [0.0, 1.0],
    "fractions": [i / 40 for i in range(40)],
    "commas": [f"{i / 40}".replace(".", ",") for i in range(40)],
    "grades": [i % 7 for i in range(40)],
    "scores": [i % 30 for i in range(90)],
    "labels": ["duplicate", "different"],
    "one label": ["duplicate"],
    "phrases": ["the two sentences mean the same thing", "the two sentences mean something different"] * 20,
    "mixed": [1, "maybe"],
}


@pytest.mark.parametrize("what", VALUES)
@pytest.mark.parametrize("names", [("anchor", "positive"), ("question", "answer"), ("text",)])
def test_a_column_of_any_name_that_may_be_a_label_is_an_error(tmp_path, names, what):
    rows = [
        {**{name: f"{name} {LONG[i % 40]}" for name in names}, "quux": value, "note": f"a free text of {LONG[i % 40]}"}
        for i, value in enumerate(VALUES[what] * 3)
    ]
    with pytest.raises(DataError, match=r"what does column 'quux' mean, with the values ") as raised:
        load_training_data(lines(tmp_path / "x.jsonl", rows))
    assert repr(VALUES[what][0]) in str(raised.value)
    assert f"To leave it out: columns={list(names)}" in str(raised.value)
    assert load_training_data(str(tmp_path / "x.jsonl"), columns=list(names))


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_flags_in_other_formats(tmp_path, ending):
    rows = [("a b c d", "e f g h", True), ("i j k l", "m n o p", False)]
    path = str(tmp_path / f"x.{ending}")
    if ending == "csv":
        table(tmp_path / "x.csv", ["en", "positive", "same"], rows)
        table(tmp_path / "x.csv", ["anchor", "positive", "same"], rows)
    else:
        columns = zip(*rows, strict=True)
        pq.write_table(pa.table(dict(zip(["anchor", "positive", "same"], map(list, columns), strict=True))), path)
    with pytest.raises(DataError, match="what does column 'same' mean"):
        load_training_data(path)
    same = {"anchor": "anchor", "positive": "positive", "score": "same"}
    assert texts(load_training_data(path, columns=same, min_score=1)) == [("a b c d", "e f g h")]


def test_ids_languages_dates_and_texts_are_let_be(tmp_path):
    one = {
        "lang": "en",
        "source_lang": "en",
        "split": "train",
        "url": "https://x.org/1",
        "genre": "fiction",
        "year": 2012,
    }
    one |= {"date": "2012-01-01", "meta": {"a": 1}, "embedding": [0.5, 0.25], "nothing": None}
    rows = [
        {"id": i, "qid1": 2 * i, "pairID": f"{i}e", "": i, "Unnamed: 0": i, "doc_id": i % 3, **one}
        | {"anchor": f"a {LONG[i]}", "positive": f"b {LONG[i]}", "context": LONG[i // 5]}
        for i in range(40)
    ]
    assert len(load_training_data(lines(tmp_path / "x.jsonl", rows))) == 40


@pytest.mark.parametrize(
    ("name", "values"), [("lang", [0, 1]), ("id", [True, False]), ("index", [0, 1]), ("neg_id", [0, 1])]
)
def test_a_name_of_something_else_excuses_no_flag(tmp_path, name, values):
    rows = [{"anchor": LONG[i], "positive": LONG[-i], name: values[i % 2]} for i in range(30)]
    with pytest.raises(DataError, match=f"what does column '{name}' mean"):
        load_training_data(lines(tmp_path / "x.jsonl", rows))


def test_a_label_that_only_later_lines_have(tmp_path):
    rows = [{"anchor": LONG[i], "positive": LONG[-i], **({"match": i % 2} if i > 9 else {})} for i in range(40)]
    with pytest.raises(DataError, match="what does column 'match' mean, with the values 0, 1"):
        load_training_data(lines(tmp_path / "x.jsonl", rows))


def test_a_label_beside_each_of_several_positives(tmp_path):
    rows = [{"query": f"q {LONG[i]}", "pos": [LONG[i], LONG[-i]], "labels_": [1, 0]} for i in range(1, 9)]
    with pytest.raises(DataError, match="what does column 'labels_' mean, with the values 1, 0"):
        load_training_data(lines(tmp_path / "x.jsonl", rows))


def test_a_label_beside_triplets_and_scores(tmp_path):
    for extra in ("negative", "score"):
        rows = [
            {"anchor": LONG[i], "positive": LONG[-i], extra: LONG[i // 2], "score": 0.5, "ok": i % 2} for i in range(9)
        ]
        with pytest.raises(DataError, match=f"column '{'score' if extra == 'negative' else 'ok'}' mean"):
            load_training_data(lines(tmp_path / "x.jsonl", rows), min_score=0.1)


def test_labels_of_single_sentences_are_not_dropped_without_a_word(tmp_path):
    path = table(tmp_path / "x.csv", ["text", "label"], [("the first sentence", "a"), ("the second sentence", "b")])
    with pytest.raises(DataError, match=r"column 'label' mean, with the values 'a', 'b'\?.*--columns text\)"):
        load_training_data(path)
    assert len(load_training_data(path, columns="text")) == 2


def test_evaluation_data_are_doubted_too(tmp_path):
    path = table(tmp_path / "q.csv", ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"], QUORA)
    with pytest.raises(DataError, match="what does column 'is_duplicate' mean"):
        load_training_data(path, columns=["anchor", "positive"], if_present=True)


@pytest.mark.parametrize(
    ("feature", "shown"),
    [(datasets.Value("bool"), "False, True"), (datasets.ClassLabel(names=["other", "same"]), "'0: other', '1: same'")],
)
def test_features_of_data_sets(tmp_path, feature, shown):
    features = {"sentence1": datasets.Value("string"), "sentence2": datasets.Value("string"), "same": feature}
    rows = {"sentence1": LONG[:4], "sentence2": LONG[4:8], "same": [0, 1, 0, 1]}
    datasets.Dataset.from_dict(rows, datasets.Features(features)).save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match=f"column 'same' mean, with the values {shown}"):
        load_training_data(tmp_path / "set")
    scored = {"anchor": "sentence1", "positive": "sentence2", "score": "same"}
    assert texts(load_training_data(tmp_path / "set", columns=scored, min_score=1)) == [
        (LONG[1], LONG[5]),
        (LONG[3], LONG[7]),
    ]


def test_zero_and_one_are_no_nli_labels(tmp_path):
    rows = [(LONG[i], LONG[-i], i % 2) for i in range(1, 9)]
    path = table(tmp_path / "x.csv", ["premise", "hypothesis", "label"], rows)
    with pytest.raises(DataError, match="column 'label' mean, with the values '1', '0'"):
        load_training_data(path)
    entailed = {"premise": "premise", "hypothesis": "hypothesis", "label": "label"}
    assert texts(load_training_data(path, columns=entailed)) == [row[:2] for row in rows if row[2] == 0]


@pytest.mark.parametrize("names", [["entailment", "not_entailment"], ["not_entailment", "entailment"]])
def test_named_labels_of_two_classes_count_by_name(tmp_path, names):
    features = {"sentence1": datasets.Value("string"), "sentence2": datasets.Value("string")}
    features["label"] = datasets.ClassLabel(names=names)
    rows = {"sentence1": LONG[:2], "sentence2": LONG[2:4], "label": [0, 1]}
    datasets.Dataset.from_dict(rows, datasets.Features(features)).save_to_disk(tmp_path / "set")
    right = names.index("entailment")
    assert texts(load_training_data(tmp_path / "set")) == [(LONG[right], LONG[2 + right])]


@pytest.mark.parametrize(
    ("header", "rows"),
    [
        (["question", "answer"], [("is this the first question", "yes"), ("is this another question", "no")]),
        (
            ["titel", "klasse"],
            [(f"ein langer Titel mit der Nummer {i}", ["Sport", "Politik"][i % 2]) for i in range(20)],
        ),
    ],
)
def test_flags_and_labels_are_no_texts(tmp_path, header, rows):
    path = table(tmp_path / "x.csv", header, rows)
    with pytest.raises(DataError, match=f"column '{header[1]}' would be read as texts, and holds '{rows[0][1]}', "):
        load_training_data(path)
    assert len(load_training_data(path, columns=header)) == len(rows)


def test_a_number_at_the_end_of_an_array_is_no_negative(tmp_path):
    path = lines(tmp_path / "x.jsonl", [["the first text", "its pair", "1"], ["the second text", "no pair", "0"]])
    with pytest.raises(DataError, match="column 'negative' would be read as texts, and holds '1', '0'"):
        load_training_data(path)


# -- headers


@pytest.mark.parametrize(
    "rows",
    [
        [("A dog runs.", "An animal moves."), ("A cat sleeps.", "An animal sleeps.")],
        [("how old is the sun", "4.6 billion years"), ("who wrote Faust", "Goethe")],
        [("dog", "chien"), ("cat", "chat")],
        [("吉他", "乐器"), ("猫", "动物")],
        [("A dog runs.",), ("A cat sleeps.",)],
    ],
)
def test_a_first_pair_is_not_lost_to_the_header(tmp_path, rows):
    path = table(tmp_path / "x.csv", list(rows[0]), rows[1:])
    with pytest.raises(
        DataError, match=r"x\.csv:1: are these the names of columns, or the first row: .*anchor,positive"
    ):
        load_training_data(path)
    assert len(load_training_data(path, columns=list(rows[0]))) == len(rows) - 1


def test_without_a_header_three_columns_are_told_what_is_missing(tmp_path):
    path = table(tmp_path / "x.csv", ["A dog runs.", "An animal moves.", "1"], [("A cat runs.", "A dog moves.", "0")])
    with pytest.raises(DataError, match="If the file has no header, write the names of its columns into a first line"):
        load_training_data(path)


@pytest.mark.parametrize(
    "header", [("en", "fr"), ("pt-BR", "en"), ("Frage", "Antwort"), ("source text", "target text")]
)
def test_a_header_of_unknown_names_is_one(tmp_path, header):
    rows = [("What is the capital of France?", "Paris"), ("Who wrote the novel Emma?", "Austen")]
    path = table(tmp_path / "x.csv", list(header), rows)
    assert texts(load_training_data(path)) == rows


def test_languages_are_a_header_over_single_words_too(tmp_path):
    assert len(load_training_data(table(tmp_path / "x.csv", ["en", "fr"], [("dog", "chien"), ("cat", "chat")]))) == 2


# -- rows without negatives

TRIPLETS = [{"query": f"q{i}", "pos": [f"p{i}"], "neg": [f"n{i}"]} for i in range(3)]


@pytest.mark.parametrize("nothing", [{"neg": []}, {"neg": None}, {}])
@pytest.mark.parametrize("place", [0, 1])
def test_a_pair_without_negatives_is_a_pair(tmp_path, nothing, place):
    rows = [*TRIPLETS]
    rows.insert(place, {"query": "q", "pos": ["p"], **({"neg": None} if place == 0 and not nothing else nothing)})
    path = lines(tmp_path / "x.jsonl", rows)
    data = load_training_sources(path)
    assert sorted(texts(data["x"])) == [("q0", "p0", "n0"), ("q1", "p1", "n1"), ("q2", "p2", "n2")]
    assert texts(data["x-2"]) == [("q", "p")]
    reports = []
    assert len(load_training_data(path, on_report=reports.append)) == 3
    (source,) = reports[0].sources
    assert (source.read, source.used, source.unused, source.bad) == (4, 3, 1, 0)
    assert "1 row(s) have no negatives, and are not used beside the others" in reports[0].notes[0]


def test_pairs_without_negatives_are_used_beside_pairs(tmp_path):
    path = lines(tmp_path / "x.jsonl", [*TRIPLETS, {"query": "q", "pos": ["p"], "neg": []}])
    other = lines(tmp_path / "y.jsonl", [{"query": "a", "pos": "b"}])
    pairs = [("a", "b"), ("q", "p"), ("q0", "p0"), ("q1", "p1"), ("q2", "p2")]
    assert sorted(texts(load_training_data([path, other]))) == pairs


def test_where_no_row_has_negatives_all_are_pairs(tmp_path):
    path = lines(tmp_path / "x.jsonl", [{"query": f"q{i}", "pos": f"p{i}", "neg": []} for i in range(3)])
    assert texts(load_training_data(path)) == [("q0", "p0"), ("q1", "p1"), ("q2", "p2")]
    assert list(load_training_sources(path)) == ["x"]


def test_a_first_text_to_encode_is_not_lost_to_the_header(tmp_path):
    path = table(tmp_path / "x.csv", ["A dog runs."], [("A cat sleeps.",), ("A bird sings.",)])
    with pytest.raises(DataError, match=r"x\.csv:1: are these the names of columns, .*names: column='A dog runs\.'"):
        encode_file(None, path, tmp_path / "x.npy")
