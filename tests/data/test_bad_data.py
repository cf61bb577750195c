"""Every mistake in the data is named with file and line, or skipped and counted."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import NLI, PAIRS, load_and_report, table, write

from lacos_st.data.load import DataError, load_training_data
from lacos_st.errors import LacosError

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
    ("x.jsonl", b'["a", "b"]\n{"anchor": "a"\n', r":2: not valid JSON: .* at column 15\. Mend"),
    ("x.jsonl", b'["a", "b"]\n\n17\n', ":3: an object or an array of texts is needed, not int '17'"),
    ("x.jsonl", b'["a", "b"]\n{"anchor": NaN, "positive": "b"}\n', ":2: column 'anchor' is NaN"),
    ("x.jsonl", b'["a", "b"]\n{"anchor": 5, "positive": "b"}\n', ":2: column 'anchor' is 5, a int and not a text"),
    ("x.jsonl", b'["a", "b"]\n{"anchor": null, "positive": "b"}\n', ":2: column 'anchor' is null"),
    ("x.jsonl", b'["a", "b"]\n{"anchor": [], "positive": "b"}\n', ":2: column 'anchor' is \\[\\], a list"),
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
