"""Local files: which rows are official, which languages they are in, and what is wrong with them."""

import gzip
import json
import os
import shutil
from pathlib import Path

import mteb
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sts_sets import write_set

from lacos_st.errors import LacosError
from lacos_st.evaluation.evaluate import evaluate
from lacos_st.evaluation.local_sets import scan
from lacos_st.evaluation.tasks import MULTILINGUAL, SAMPLE, left_out, plan


@pytest.fixture
def small(tiny_bloom) -> SentenceTransformer:
    """A random BLOOM with mean pooling: embeds anything in milliseconds."""
    torch.manual_seed(0)
    return SentenceTransformer(str(tiny_bloom))


def test_mtebs_private_parts_that_are_used_are_still_there():
    """tasks.py leans on these; when one moves, this fails before a score goes wrong."""
    import inspect

    from mteb._evaluators.any_sts_evaluator import AnySTSEvaluator
    from mteb.abstasks.sts import AbsTaskSTS
    from mteb.languages.iso_mappings import _get_iso1_to_iso3, _hf_lang_to_iso_lang_script

    given = set(inspect.signature(AbsTaskSTS._evaluate_subset).parameters)
    assert given >= {"model", "data_split", "encode_kwargs", "hf_split", "hf_subset", "prediction_folder", "timer"}
    assert set(inspect.signature(AnySTSEvaluator.__init__).parameters) >= {
        "dataset",
        "sentences_column_names",
        "task_metadata",
        "hf_split",
        "hf_subset",
        "timer",
    }
    assert hasattr(AbsTaskSTS, "_calculate_scores")
    assert hasattr(AbsTaskSTS, "_normalize")
    assert _hf_lang_to_iso_lang_script("es") == "spa-Latn"
    assert _get_iso1_to_iso3()["zh"] == "zho"


def test_official_rows_get_the_official_name_and_others_do_not(tmp_path):
    for path in SAMPLE.glob("*.gz"):
        shutil.copy(path, tmp_path)
    names = {(task.name, tuple(task.files)) for task in plan(None, None, tmp_path)}
    assert names == {("STS17", ("en-ar", "en-en", "es-en", "es-es"))}
    with gzip.open(tmp_path / "sts17.en-en.test.jsonl.gz", "rt") as stream:
        lines = stream.readlines()
    with gzip.open(tmp_path / "sts17.en-en.test.jsonl.gz", "wt") as stream:
        stream.writelines(lines[:-1])  # one pair fewer is another set
    names = {(task.name, tuple(task.files)) for task in plan(None, None, tmp_path)}
    assert names == {("STS17", ("en-ar", "es-en", "es-es")), ("local-sts17", ("en-en",))}


def test_the_same_rows_with_other_scores_are_not_official(tmp_path):
    with gzip.open(SAMPLE / "sts17.en-en.test.jsonl.gz", "rt") as source:
        rows = [json.loads(line) for line in source]
    for row in rows:
        row["score"] = 5 - row["score"]
    (tmp_path / "sts17.en-en.test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [task.name for task in plan(None, None, tmp_path)] == ["local-sts17"]


@pytest.mark.skipif("LACOS_DATA" not in os.environ, reason="LACOS_DATA names no directory with sts/ in it")
def test_every_shared_file_finds_its_place():
    planned = {task.name: task for task in plan(None, None, Path(os.environ["LACOS_DATA"]) / "sts")}
    assert len(planned["SICK-R"].files["default"]) == 3
    assert set(planned["STS17"].files) == {"en-ar", "en-en", "en-tr", "es-en", "es-es"}
    assert len(planned["STSBenchmarkMultilingualSTS"].files) == 10
    assert planned["KLUE-STS"].split == "validation"
    own = {name for name, task in planned.items() if not task.official}
    assert {"local-korsts", "local-jsick", "local-sick", "local-stsb", "local-sts17"} <= own
    assert "STSBenchmark" not in {t.name for t in plan(None, None, Path(os.environ["LACOS_DATA"]) / "sts", "dev")}


def test_languages_keep_the_subsets_that_they_cover(tmp_path):
    for path in SAMPLE.glob("*.gz"):
        shutil.copy(path, tmp_path)
    write_set(tmp_path, "mine.fr.test.jsonl")

    def kept(*languages):
        return {(t.name, s) for t in plan(None, languages, tmp_path) for s in (t.keep or t.files)}

    assert kept("en", "es") == {("STS17", "en-en"), ("STS17", "es-es"), ("STS17", "es-en")}
    assert kept("en-ar") == {("STS17", "en-ar")}
    assert kept("fr") == {("local-mine", "fr")}
    with pytest.raises(LacosError, match="Leave --languages out"):
        kept("zu")


def test_bloom_languages_and_others_are_told_apart_in_mtebs_codes():
    from lacos_st.evaluation.languages import BLOOM_LANGUAGES, languages_of

    chinese = [languages_of(*key) for key in (("STSBenchmarkMultilingualSTS", "zh"), ("STSB", "default"))]
    assert chinese == [("zh",), ("zh",)]
    assert languages_of("STS17", "en-ar") == ("ar", "en")
    assert languages_of("local-usts-c", "zh") == ("zh",)
    assert len(BLOOM_LANGUAGES) == 45  # 46 on BLOOM's card, which counts the two Chinese scripts
    known = {code for name in MULTILINGUAL for s in mteb.get_task(name).hf_subsets for code in languages_of(name, s)}
    assert known & BLOOM_LANGUAGES >= {"ar", "en", "es", "fr", "hi", "zh", "te", "rw", "id"}
    assert not known & {"cmn", "arb", "swh", "npi", "ory", "arq", "ary"}


def test_dev_files_are_not_reported_as_tests(tmp_path):
    write_set(tmp_path, "mine.en.test.jsonl")
    write_set(tmp_path, "mine.en.dev.jsonl")
    write_set(tmp_path, "mine.en.train.jsonl")
    (test,) = plan(None, None, tmp_path)
    (dev,) = plan(None, None, tmp_path, "dev")
    assert [p.name for p in test.files["en"]] == ["mine.en.test.jsonl"]
    assert [p.name for p in dev.files["en"]] == ["mine.en.dev.jsonl"]


BAD_LINES = {
    "no JSON": ('{"sentence1": "a", "sen', r"mine\.en\.test\.jsonl:3: .*JSON"),
    "an array": ("[1, 2]", r"mine\.en\.test\.jsonl:3: "),
    "no score": ('{"sentence1": "a", "sentence2": "b"}', r"mine\.en\.test\.jsonl:3: no column score"),
    "a null": ('{"sentence1": null, "sentence2": "b", "score": 1}', r":3: column 'sentence1' is null"),
    "empty": ('{"sentence1": "a", "sentence2": " ", "score": 1}', r":3: column 'sentence2' is empty"),
    "text score": ('{"sentence1": "a", "sentence2": "b", "score": "4"}', r":3: score must be a finite number, not '4'"),
    "nan": ('{"sentence1": "a", "sentence2": "b", "score": NaN}', r":3: score must be a finite number, not nan"),
    "bool": ('{"sentence1": "a", "sentence2": "b", "score": true}', r":3: score must be a finite number, not True"),
}


@pytest.mark.parametrize(("line", "message"), BAD_LINES.values(), ids=list(BAD_LINES))
def test_a_malformed_line_is_named(tmp_path, small, line, message):
    path = write_set(tmp_path, "mine.en.test.jsonl", 10)
    lines = path.read_text().splitlines()
    lines[2] = line
    path.write_text("\n".join(lines))
    with pytest.raises(LacosError, match=message):
        evaluate(small, data_dir=tmp_path, progress=False)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("mine.xx.test.jsonl", {}, r"mine\.xx\.test\.jsonl: 'xx' in a file's name is no language"),
        ("klue-sts.xx.test.jsonl", {}, r"klue-sts\.xx\.test\.jsonl: 'xx' in a file's name is no language"),
        ("mine.fr.test.jsonl", {"score": "4"}, r"mine\.fr\.test\.jsonl:1: score must be a finite number"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_encoded(tmp_path, small, monkeypatch, name, change, message):
    write_set(tmp_path, "early.en.test.jsonl")
    write_set(tmp_path, name, **change)
    monkeypatch.setattr(small, "encode", lambda *a, **k: pytest.fail("it was encoded"))
    with pytest.raises(LacosError, match=message):
        evaluate(small, data_dir=tmp_path, progress=False)


def test_files_that_are_left_out_are_named(tmp_path, small, capsys):
    for name in ("mine.en.test.jsonl", "mine.en.dev.jsonl", "foo.jsonl", ".hidden"):
        write_set(tmp_path, name)
    evaluate(small, data_dir=tmp_path, baseline=False)
    first = capsys.readouterr().err.splitlines()[0]
    assert first == (
        "Left out: foo.jsonl (not named <dataset>.<language>.<split>.jsonl or .jsonl.gz); "
        "mine.en.dev.jsonl (no test set that was asked for)"
    )
    for number in range(7):
        write_set(tmp_path, f"mine{number}.en.train.jsonl")
    assert "mine3.en.train.jsonl and 3 more (no test" in left_out(tmp_path, plan(None, None, tmp_path), "test")
    (tmp_path / "foo.jsonl").unlink()
    evaluate(small, tasks="mine", data_dir=tmp_path, baseline=False)
    assert "Left out" not in capsys.readouterr().err


def test_a_truncated_archive_is_named(tmp_path, small):
    path = tmp_path / "mine.en.test.jsonl.gz"
    path.write_bytes((SAMPLE / "sts17.en-en.test.jsonl.gz").read_bytes()[:4000])
    with pytest.raises(LacosError, match="damaged gzip"):
        evaluate(small, data_dir=tmp_path, progress=False)


def test_a_constant_score_column_is_an_error(tmp_path, small):
    write_set(tmp_path, "mine.en.test.jsonl", score=3)
    with pytest.raises(LacosError, match="all 40 scores are 3, so there is nothing to correlate"):
        evaluate(small, data_dir=tmp_path, progress=False)


@pytest.mark.parametrize("pairs", [1, 2])
def test_a_correlation_needs_three_pairs(tmp_path, small, pairs):
    write_set(tmp_path, "mine.en.test.jsonl", pairs)
    with pytest.raises(LacosError, match=f"{pairs} pairs?, but a correlation needs at least three"):
        evaluate(small, data_dir=tmp_path, progress=False)


def test_a_set_that_lies_there_twice_is_named(tmp_path):
    write_set(tmp_path, "mine.en.test.jsonl")
    (tmp_path / "mine.en.test.jsonl.gz").write_bytes(gzip.compress((tmp_path / "mine.en.test.jsonl").read_bytes()))
    with pytest.raises(LacosError, match=r"mine\.en\.test\.jsonl and"):
        scan(tmp_path)
