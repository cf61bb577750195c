"""A message has a bounded length, whatever the data hold."""

import gzip
import json

import pytest

from lacos_st.config import LacosConfig
from lacos_st.data.load import load_training_data
from lacos_st.encoding.encode import encode_file
from lacos_st.errors import LacosError, listed, shortened, shown
from lacos_st.evaluation.local_sets import read_pairs

LONG = "x" * 1_000_000
MANY = [f"column {i}" for i in range(100_000)]


def test_values_are_shortened():
    assert shown("a\nb") == r"'a\nb'"
    assert len(shown(LONG)) <= 60
    assert len(shown([LONG] * 9)) < 1000
    assert shown({"a": None}) == "{'a': None}"
    assert listed(MANY).endswith("'column 11' and 99,988 more")
    assert listed(["a"]) == "'a'"
    assert shortened(LONG + "y", 10) == "xxxxx ... xxxxy"


def test_a_message_keeps_its_start_and_its_end():
    assert str(LacosError("short")) == "short"
    message = str(LacosError(f"Why: {LONG}. Do this."))
    assert len(message) < 3100
    assert message.startswith("Why: x")
    assert message.endswith("x. Do this.")


ROWS = {
    "long label": ("x.csv", ["premise,hypothesis,label", "a,b,entailment", f"c,d,{'l' * 100_000}"]),
    "long score": (
        "x.jsonl",
        [{"anchor": "a", "positive": "b", "score": 1}, {"anchor": "c", "positive": "d", "score": LONG}],
    ),
    "many columns": ("x.csv", [",".join(MANY), ",".join(MANY)]),
    "many keys": ("x.jsonl", [{"anchor": "a", "positive": "b"}, dict.fromkeys(MANY, "a")]),
    "many negatives": ("x.jsonl", [["a", "b", *("yes" for _ in MANY)], ["a", "b", *("no" for _ in MANY)]]),
    "long names": ("x.jsonl", [{LONG: "a b", LONG + "y": "c d", LONG + "z": "e"}] * 3),
    "long name": ("x.jsonl", [{LONG: "a b c", "b": "d e f"}, {LONG: 5, "b": "c d e"}]),
    "long unread label": ("x.jsonl", [{"anchor": "a", "positive": "b", "ok": i % 2, LONG: i % 2} for i in range(9)]),
    "nested": ("x.jsonl", [{"anchor": "a", "positive": "b"}, {"anchor": {"a": [LONG] * 9}, "positive": "d"}]),
    "twice": ("x.csv", [f"{'x' * 100_000},{'x' * 100_000}", "a,b"]),
    "a long line": ("x.jsonl", [{"anchor": "a", "positive": "b"}, LONG]),
}


@pytest.mark.parametrize("what", ROWS)
def test_messages_on_data_do_not_grow(tmp_path, what):
    name, rows = ROWS[what]
    lines = [row if isinstance(row, str) and name == "x.csv" else json.dumps(row) for row in rows]
    (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(LacosError) as raised:
        load_training_data(tmp_path / name, min_score=1 if "score" in what else None)
    message = str(raised.value)
    assert len(message) < 3100
    assert message.startswith(str(tmp_path / name))
    assert message.endswith(".")


def test_reports_on_data_do_not_grow(tmp_path):
    rows = [{"anchor": LONG, "positive": "b"}, {"anchor": [LONG], "positive": "b"}, {LONG: 1}, [LONG], LONG]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    reports = []
    load_training_data(tmp_path / "x.jsonl", on_bad_row="skip", on_report=reports.append)
    assert reports[0].sources[0].bad == 4
    assert len(str(reports[0])) < 3000


def test_messages_on_texts_to_encode_do_not_grow(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("\n".join([",".join(MANY)] * 2), encoding="utf-8")

    class Model:
        prompts = dict.fromkeys(MANY, "")

    for options in ({}, {"column": LONG}, {"prompt_name": LONG}, {"precision": LONG}):
        with pytest.raises(LacosError) as raised:
            encode_file(Model(), path, tmp_path / "x.npy", **options)
        assert len(str(raised.value)) < 3100


@pytest.mark.parametrize("row", [dict.fromkeys(MANY, 1), {"sentence1": [LONG] * 9, "sentence2": "b", "score": 1}])
def test_messages_on_evaluation_files_do_not_grow(tmp_path, row):
    path = tmp_path / "mine.en.test.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(row).encode()))
    with pytest.raises(LacosError, match=r"mine\.en\.test\.jsonl\.gz:1: ") as raised:
        list(read_pairs(path))
    assert len(str(raised.value)) < 3100


@pytest.mark.parametrize(
    "settings", [{"lora_rank": LONG}, {LONG: 1}, {"overwrite": MANY}, {"pooling": LONG}, {"template": LONG}]
)
def test_messages_on_recipes_do_not_grow(settings):
    with pytest.raises(LacosError) as raised:
        LacosConfig.from_dict(settings)
    assert len(str(raised.value)) < 3100
