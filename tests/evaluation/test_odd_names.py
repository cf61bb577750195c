"""Names are text in files, tables, pages and plots alike. Results of wrong types."""

import csv
import io
import json
import re

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from sentence_transformers import SentenceTransformer
from sts_sets import write_set

from lacos_st.errors import LacosError
from lacos_st.evaluation.evaluate import evaluate
from lacos_st.evaluation.report import write_report
from lacos_st.evaluation.results import MODELS, Evaluation, SetResult
from lacos_st.evaluation.tables import csv_rows, markdown
from lacos_st.files import file_name

FACTS = {
    "model": "m", "revision": "0123456789abcdef", "task": "local-x", "subset": "en", "split": "test",
    "languages": ["en"], "score": 50.0, "seconds": 1.0, "data": "d",
}  # fmt: skip
ODD = ["..", ".", "$", "$x^$", "_y", "=cmd|' /C calc'!A0", "<!--<script>", "x" * 300, "é" * 200, "a b", "*b*|c", "x."]


def result(**change):
    gold = np.arange(12.0)
    arrays = {"similarity": gold[::-1].copy(), "gold": gold}
    return SetResult(**{**FACTS, "languages": ("en",), **arrays, **change})


@pytest.mark.parametrize("text", [*ODD, "../../x", "a\\b", "", "a\0b", "\udcff", "CON:", "\n"])
def test_any_text_becomes_the_name_of_one_file(text, tmp_path):
    name = file_name(text)
    path = tmp_path / f"{name}.safetensors"
    path.touch()
    assert path.resolve().parent == tmp_path.resolve()
    assert (tmp_path / name).resolve().parent == tmp_path.resolve()
    assert re.fullmatch(r"[\w.+@-]+", name)


def test_different_texts_have_different_files():
    texts = [*ODD, "a_b", "a\tb", "x" * 301, "__", "_"]
    assert len({file_name(text) for text in texts}) == len(texts)


def test_models_with_odd_names_stay_in_the_results_folder(tiny_bloom, tmp_path):
    torch.manual_seed(0)
    small = SentenceTransformer(str(tiny_bloom))
    write_set(tmp_path / "data", "a $<b>.en.test.jsonl")
    write_set(tmp_path / "data", f"{'y' * 230}.fr.test.jsonl")
    options = {"data_dir": tmp_path / "data", "output": tmp_path / "outer" / "o", "progress": False}
    names = ["..", "a/../../b", "$x^$", "<!--<script>", "m" * 300]
    found = evaluate(dict.fromkeys(names, small), **options)
    assert {r.model for r in found.sets} == {*names, "lexical"}
    assert [path.name for path in (tmp_path / "outer").iterdir()] == ["o"]
    written = {p.relative_to(tmp_path / "outer" / "o").parts[0] for p in (tmp_path / "outer").rglob("*.*")}
    assert written == {"results", "details", "summary.md", "summary.csv", "models.json"}
    small.encode = None  # nothing is measured twice
    again = evaluate(dict.fromkeys(names, small), **options)
    assert {(r.model, r.name, r.score) for r in again.sets} == {(r.model, r.name, r.score) for r in found.sets}
    assert Evaluation.load(tmp_path / "outer" / "o").models == found.models


def test_two_names_with_one_place_are_two_models(tiny_bloom, tmp_path):
    small = SentenceTransformer(str(tiny_bloom))
    write_set(tmp_path / "data", "mine.en.test.jsonl")
    found = evaluate(
        {"a/b": small, "a__b": small}, data_dir=tmp_path / "data", output=tmp_path / "o", baseline=False, progress=False
    )
    assert [r.model for r in found.sets] == ["a/b", "a__b"]


@pytest.mark.parametrize("name", ["lexical", "", "a\nb", "\x1b[2J", "\udcff", 1])
def test_a_name_that_cannot_stand_in_a_table_is_told_so(name, tiny_bloom, tmp_path):
    write_set(tmp_path, "mine.en.test.jsonl")
    with pytest.raises(LacosError, match="The model's name"):
        evaluate({name: str(tiny_bloom)}, data_dir=tmp_path, progress=False)


def test_plots_show_any_name_as_it_is(tmp_path):
    found = Evaluation.of_sets(
        [result(model=name, task=f"local-{name}", languages=(name[:9],)) for name in [*ODD, "$a$", "$\\frac{$"]]
    )
    written = write_report(found, tmp_path / "r.html")
    assert len(written) == 5


def test_a_leading_underscore_stays_in_the_legend(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: (drawn.append(self), path.touch()))
    write_report(Evaluation.of_sets([result(model="_y"), result(model="$z$")]), tmp_path / "r.html")
    texts = {text.get_text().strip() for text in drawn[0].legends[0].get_texts()}
    assert texts == {"_y@01234567", "$z$@01234567", "lexical baseline"}
    assert not any(text.get_parse_math() for text in drawn[0].legends[0].get_texts())


def test_a_page_holds_no_markup_of_a_name(tmp_path):
    evil = "<!--<script>alert(1)</script>"
    found = Evaluation.of_sets([result(model=evil, task=evil, subset=evil, languages=(evil,)), result(model="b")])
    page = write_report(found, tmp_path / "r.html", title=evil + "\udcff")[0].read_text()
    assert "alert" in page
    assert "<script>alert" not in page
    assert "<!--" not in page.split("<style>")[0] + page.split("</style>")[1]
    data = re.search(r'id="data">(.*?)</script>', page, re.S)[1]
    assert "<" not in data
    assert f"{evil}/{evil}" in [entry["name"] for entry in json.loads(data)]
    assert page.count("<script") == page.count("</script>") == 2


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)"])
def test_no_cell_of_the_summary_is_a_formula(name):
    found = Evaluation.of_sets([result(model=name, task=name, score=-4.0)])
    rows = list(csv.DictReader(io.StringIO(csv_rows(found))))
    mine = [row for row in rows if row["kind"] in ("model", "mean")]
    assert len(mine) == 3
    assert [row["model"] for row in mine] == [f"'{name}", *[f"'{name}@01234567"] * 2]
    assert mine[0]["set"] == f"'{name}/en"
    assert mine[0]["score"] == "-4.0000"  # a number stays one
    assert not [row for row in rows for key in ("model", "set") if row[key].startswith(tuple("=+-@"))]


def test_markdown_shows_names_as_they_are():
    found = markdown(Evaluation.of_sets([result(model="<b>|$x$ *y* `z` ~~d~~ [t](u) _e_", task="a_b")]))
    assert r"\<b\>\|\$x\$ \*y\* \`z\` \~\~d\~\~ [t\](u) \_e\_@01234567" in found
    assert "| a_b/en |" in found


# -- results of wrong types ------------------------------------------------------------------------------------


def write(directory, facts, **arrays):
    path = directory / "details" / "m" / "r" / "x.safetensors"
    path.parent.mkdir(parents=True)
    arrays = {"similarity": np.arange(3.0), "gold": np.arange(3.0), **arrays}
    path.write_bytes(save(arrays, metadata={"result": json.dumps(facts)}))
    return path


@pytest.mark.parametrize(
    "change",
    [
        {"model": 1}, {"model": ["m"]}, {"model": "a\nb"}, {"model": ""}, {"model": "\ud800"}, {"revision": None},
        {"task": {}}, {"subset": 0}, {"split": True}, {"data": []}, {"languages": "en"[:0]}, {"languages": 3},
        {"languages": [1]}, {"languages": [["en"]]}, {"score": "50"}, {"score": None}, {"score": True},
        {"score": float("inf")}, {"seconds": "1"}, {"seconds": float("nan")}, {"extra": 1},
    ],
)  # fmt: skip
def test_a_result_of_wrong_type_is_an_error_with_its_name(change, tmp_path):
    path = write(tmp_path, {**FACTS, **change})
    with pytest.raises(LacosError, match=rf"{re.escape(str(path))} is damaged.*Delete it and evaluate again"):
        write_report(tmp_path, tmp_path / "r.html")


@pytest.mark.parametrize("facts", [[], 1, "x", None, {}])
def test_facts_that_are_no_mapping(facts, tmp_path):
    path = write(tmp_path, facts)
    with pytest.raises(LacosError, match=rf"{re.escape(str(path))} is damaged"):
        Evaluation.load(tmp_path)


@pytest.mark.parametrize(
    "gold", [np.arange(4.0), np.arange(3), np.ones((3, 1)), np.array([1.0, np.nan, 2.0]), np.array(1.0)]
)
def test_pairs_of_another_form(gold, tmp_path):
    path = write(tmp_path, FACTS, gold=gold)
    with pytest.raises(LacosError, match=rf"{re.escape(str(path))} is damaged \(gold"):
        Evaluation.load(tmp_path)


@pytest.mark.parametrize("content", ["{", "{}", "3", "[1]", "[null]", '["a\\nb"]', "[" * 100_000, "\xff"])
def test_a_damaged_order_of_models(content, tmp_path):
    write(tmp_path, FACTS)
    (tmp_path / MODELS).write_text(content, encoding="latin-1")
    with pytest.raises(LacosError, match=r"models\.json is damaged"):
        Evaluation.load(tmp_path)


@pytest.mark.parametrize("content", ["[]", "3", "{}", '{"scores": 1}', '{"scores": {"test": [{}]}}', "\0"])
def test_what_is_no_result_of_mteb_is_measured_again(content, tiny_bloom, tmp_path):
    small = SentenceTransformer(str(tiny_bloom))
    write_set(tmp_path / "data", "mine.en.test.jsonl")
    options = {"data_dir": tmp_path / "data", "output": tmp_path / "o", "baseline": False, "progress": False}
    score = evaluate(small, **options).sets[0].score
    (path,) = (tmp_path / "o" / "results").rglob("local-mine.json")
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({**whole, **json.loads(content)}) if content[:2] == '{"' else content)
    assert evaluate(small, **options).sets[0].score == score
    assert json.loads(path.read_text())["scores"] == whole["scores"]


def test_nothing_but_a_score_is_no_damage(tmp_path):
    write(tmp_path, {**FACTS, "score": float("nan")}, similarity=np.empty(0), gold=np.empty(0))
    assert len(Evaluation.load(tmp_path).sets) == 1
