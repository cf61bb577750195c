"""Readers: what goes into a file of any format comes out."""

from collections import Counter

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import PAIRS, load_and_report, table, texts, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lacos_st.data.load import DataError, load_training_data
from lacos_st.data.readers import open_file

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
