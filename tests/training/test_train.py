import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import TrainerCallback

from lacos_st.config import LacosConfig
from lacos_st.errors import LacosError
from lacos_st.files import locked
from lacos_st.model.model import LacosSentenceTransformer
from lacos_st.training.checkpoints import latest_checkpoint
from lacos_st.training.train import TrainingInterrupted, train

WORDS = [
    f"{colour} {thing}" for colour in ("red", "old", "small", "quiet") for thing in ("man", "dog", "house", "river")
]


@pytest.fixture(scope="module")
def triplets(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "triplets.csv"
    lines = ["anchor,positive,negative"]
    for i in range(96):
        a, b, c = WORDS[i % 16], WORDS[(i * 7 + 3) % 16], WORDS[(i * 5 + 1) % 16]
        lines.append(f"the {a} {b} {i},a {a} with {b} {i},no {a} but {c} {i}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def _without_scores(monkeypatch):
    """Scores before and after take most of a short run's time; `undisturbed` (module scope) has the real ones."""
    monkeypatch.setattr("lacos_st.training.train.sts_sample", lambda model: {})


def config_for(base, data, output, **options):
    defaults = {
        "base": str(base),
        "train_data": [str(data)],
        "output": str(output),
        "bf16": True,
        "batch_size": 8,
        "gradient_accumulation_steps": 2,
        "epochs": 1,
        "eval_steps": 2,
        "logging_steps": 1,
        "lora_rank": 4,
        "lora_dropout": 0.1,
        "learning_rate": 1e-2,
    }
    return LacosConfig(**{**defaults, **options})


BRIEF = {"max_steps": 2, "warmup_ratio": 0.0}  # the first step of a warm-up has a rate of 0


def learnt(adapter):
    """Whether B, which begins as 0, is now something."""
    return all(value.abs().max() > 1e-4 for key, value in adapter.items() if "lora_B" in key)


def adapter(output):
    return load_file(Path(output) / "adapter" / "adapter_model.safetensors")


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


@pytest.fixture(scope="module")
def undisturbed(tiny_bloom, triplets, tmp_path_factory):
    """A run from beginning to end."""
    output = tmp_path_factory.mktemp("undisturbed") / "model"
    train(config_for(tiny_bloom, triplets, output))
    return output


def ranking_loss(model, triplets):
    """Stock's loss of the first 32 triplets."""
    rows = [line.split(",") for line in triplets.read_text(encoding="utf-8").splitlines()[1:33]]
    with torch.no_grad():
        features = [model.preprocess(list(texts)) for texts in zip(*rows, strict=True)]
        return float(MultipleNegativesRankingLoss(model.eval())(features, None))


def test_it_learns_what_the_loss_is_of(undisturbed, tiny_bloom, triplets):
    before, after = (ranking_loss(LacosSentenceTransformer(path), triplets) for path in (tiny_bloom, undisturbed))
    assert 0 < after < before - 0.2


def test_trains_saves_and_cleans_up(undisturbed):
    record = json.loads((undisturbed / "training.json").read_text())
    losses = [entry["loss"] for entry in record["log"] if "loss" in entry]
    assert sum(losses[-2:]) < sum(losses[:2])
    assert record["best_step"] in range(2, record["steps"] + 1, 2)
    assert set(record["scores_before"]) == set(record["scores_after"]) == {"en-en", "es-es", "es-en", "en-ar"}
    assert record["scores_before"] != record["scores_after"]
    assert not Path(f"{undisturbed}.run").exists()
    assert not [path for path in undisturbed.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
    model = LacosSentenceTransformer(undisturbed)
    assert model.max_seq_length == 128
    assert sum(load.abs().sum() for key, load in adapter(undisturbed).items() if "lora_B" in key) > 0
    figures = ModelCard.load(undisturbed / "README.md").data.eval_results
    assert len(figures) == len({(figure.dataset_type, figure.metric_type) for figure in figures}) == 8


def test_killed_and_resumed_ends_bit_for_bit_the_same(undisturbed, tiny_bloom, triplets, tmp_path):
    config = config_for(tiny_bloom, triplets, tmp_path / "model")
    config.to_yaml(tmp_path / "recipe.yaml")
    script = "import sys; from lacos_st import LacosConfig, train; train(LacosConfig.from_yaml(sys.argv[1]))"
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "recipe.yaml")],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    second = tmp_path / "model.run" / "checkpoints" / "checkpoint-4" / "trainer_state.json"
    for _ in range(1200):
        if second.exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert second.exists()
    assert not (tmp_path / "model").exists()
    train(config)
    assert_same(adapter(tmp_path / "model"), adapter(undisturbed))


class Interrupt(TrainerCallback):
    """Ctrl-C in the fourth step."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_leaves_a_checkpoint_to_go_on_from(undisturbed, tiny_bloom, triplets, tmp_path):
    config = config_for(tiny_bloom, triplets, tmp_path / "model")
    with pytest.raises(TrainingInterrupted, match="step 4"):
        train(config, callbacks=[Interrupt()])
    assert latest_checkpoint(tmp_path / "model.run" / "checkpoints").name == "checkpoint-4"
    train(config)
    assert_same(adapter(tmp_path / "model"), adapter(undisturbed))


def test_in_full_precision_too(tiny_bloom, triplets, tmp_path):
    whole, halves = (
        config_for(tiny_bloom, triplets, tmp_path / name, quantization="none") for name in ("whole", "halves")
    )
    train(whole)
    with pytest.raises(TrainingInterrupted, match="step 4"):
        train(halves, callbacks=[Interrupt()])
    train(halves)
    assert_same(adapter(tmp_path / "halves"), adapter(tmp_path / "whole"))


def test_a_batch_is_of_one_source_and_resumes_bit_for_bit(tiny_bloom, triplets, tmp_path, monkeypatch):
    lines = triplets.read_text(encoding="utf-8").splitlines()
    pairs = [line.rpartition(",")[0].replace("the", "el").replace("with", "con") for line in lines[:41]]
    (tmp_path / "es.csv").write_text("\n".join(pairs) + "\n", encoding="utf-8")
    sources = [str(triplets), str(tmp_path / "es.csv")]
    options = {"train_data": sources, "eval_data": [str(triplets)], "gradient_accumulation_steps": 1}
    whole, halves = (config_for(tiny_bloom, triplets, tmp_path / name, **options) for name in ("whole", "halves"))
    batches = []
    collate = SentenceTransformerDataCollator.__call__
    monkeypatch.setattr(
        SentenceTransformerDataCollator,
        "__call__",
        lambda self, rows: batches.append([row["anchor"][:3] for row in rows]) or collate(self, rows),
    )
    train(whole)
    assert {frozenset(batch) for batch in batches} == {frozenset({"the"}), frozenset({"el "})}
    with pytest.raises(TrainingInterrupted, match="step 4"):
        train(halves, callbacks=[Interrupt()])
    train(halves)
    assert_same(adapter(tmp_path / "halves"), adapter(tmp_path / "whole"))


@pytest.fixture
def interrupted(tiny_bloom, triplets, tmp_path):
    """A run directory with checkpoints 2 and 4."""
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == 4:
                raise RuntimeError("power cut")

    config = config_for(tiny_bloom, triplets, tmp_path / "model")
    with pytest.raises(RuntimeError, match="power cut"):
        train(config, callbacks=[Stop()])
    return config, tmp_path / "model.run" / "checkpoints"


@pytest.mark.parametrize("damage", ["optimizer.pt", "trainer_state.json", "adapter_model.safetensors"])
def test_an_incomplete_checkpoint_is_skipped(damage, interrupted):
    _, checkpoints = interrupted
    path = checkpoints / "checkpoint-4" / damage
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.warns(UserWarning, match="checkpoint-4"):
        assert latest_checkpoint(checkpoints).name == "checkpoint-2"
    (checkpoints / "checkpoint-2" / "optimizer.pt").unlink()
    with pytest.warns(UserWarning, match=r"optimizer\.pt is missing"):
        assert latest_checkpoint(checkpoints) is None


def test_a_checkpoint_of_several_processes_that_is_not_sealed_is_skipped(interrupted):
    _, checkpoints = interrupted
    newest = checkpoints / "checkpoint-4"
    (newest / "digests.json").unlink()
    assert latest_checkpoint(checkpoints) == newest  # one process has written all before it seals
    (newest / "rng_state.pth").rename(newest / "rng_state_0.pth")  # the second process had not come to it
    with pytest.warns(UserWarning, match=r"checkpoint-4.*digests\.json is missing"):
        assert latest_checkpoint(checkpoints).name == "checkpoint-2"


def test_another_recipe_does_not_mix_with_an_unfinished_run(interrupted):
    config, _ = interrupted
    changed = LacosConfig.from_dict({**config.to_dict(), "lora_rank": 2})
    with pytest.raises(LacosError, match="lora_rank: 4 there, 2 now"):
        train(changed)


def test_overwriting_goes_on_with_the_same_recipe_and_starts_afresh_with_another(interrupted, undisturbed):
    config, checkpoints = interrupted
    train(LacosConfig.from_dict({**config.to_dict(), "overwrite": True}))
    assert_same(adapter(config.output), adapter(undisturbed))
    assert not checkpoints.exists()
    train(LacosConfig.from_dict({**config.to_dict(), "overwrite": True, "lora_rank": 2}))
    assert json.loads((Path(config.output) / "training.json").read_text())["recipe"]["lora_rank"] == 2


def test_a_mistake_before_the_first_step_binds_nothing(tiny_bloom, triplets, tmp_path):
    with pytest.raises(LacosError, match=r"missing\.csv"):
        train(config_for(tiny_bloom, tmp_path / "missing.csv", tmp_path / "model"))
    train(config_for(tiny_bloom, triplets, tmp_path / "model", **BRIEF))
    assert learnt(adapter(tmp_path / "model"))


def test_killed_between_saving_and_cleaning_up(tiny_bloom, triplets, tmp_path, monkeypatch):
    config = config_for(tiny_bloom, triplets, tmp_path / "model", **BRIEF)
    remove = shutil.rmtree

    def killed(path, **options):
        if Path(path).suffix == ".run":
            raise KeyboardInterrupt
        remove(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    before = adapter(tmp_path / "model")
    assert learnt(before)
    assert train(config).training_record["steps"] == 2
    assert not (tmp_path / "model.run").exists()
    assert_same(adapter(tmp_path / "model"), before)


def test_early_stopping_counts_on_after_an_interruption(tiny_bloom, triplets, tmp_path):
    from transformers import TrainerCallback

    class Interrupt(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                os.kill(os.getpid(), signal.SIGINT)

    options = {"eval_steps": 1, "early_stopping_patience": 3, "learning_rate": 1e-9}
    steps = []
    for name in ("whole", "interrupted"):
        config = config_for(tiny_bloom, triplets, tmp_path / name, **options)
        if name == "interrupted":
            with pytest.raises(TrainingInterrupted):
                train(config, callbacks=[Interrupt()])
        train(config)
        steps.append(json.loads((tmp_path / name / "training.json").read_text())["steps"])
    assert steps[0] == steps[1]


def test_an_evaluator_of_sentence_transformers_chooses_the_best_step(tiny_bloom, triplets, tmp_path):
    from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

    evaluator = EmbeddingSimilarityEvaluator(WORDS[:8], WORDS[4:12], [0.1 * i for i in range(8)], name="mine")
    train(config_for(tiny_bloom, triplets, tmp_path / "model", max_steps=4), evaluator=evaluator)
    record = json.loads((tmp_path / "model" / "training.json").read_text())
    measured = {entry["step"]: entry["eval_mine_spearman_cosine"] for entry in record["log"] if "eval_loss" in entry}
    scores = [score for step, score in measured.items() if step]  # before the first step there is nothing to choose
    assert len(scores) == 2
    assert record["best_metric"] == max(scores)


def test_training_on_keeps_what_the_base_was_saved_with(tiny_bloom, triplets, tmp_path):
    options = {"template": 'It says "{text}":', "attention": "symmetric", "max_seq_length": 40}
    first = LacosSentenceTransformer(tiny_bloom, transformer_options=options).add_lora(rank=2, alpha=3)
    with pytest.warns(UserWarning, match="cannot express symmetric"):
        first.save(str(tmp_path / "base"))
    with pytest.warns(UserWarning, match="'lora_rank': 2"):
        trained = train(config_for(tmp_path / "base", triplets, tmp_path / "model", **BRIEF))
    kept = trained.transformer
    assert (kept.template, kept.attention, kept.max_seq_length) == tuple(options.values())
    assert trained.training_record["recipe"]["lora_alpha"] == 3
    assert learnt(adapter(tmp_path / "model"))  # its B began as 0


def test_an_output_that_is_not_empty_is_refused(tiny_bloom, triplets, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.txt").write_text("precious")
    with pytest.raises(LacosError, match="not empty"):
        train(config_for(tiny_bloom, triplets, tmp_path / "model"))
    assert (tmp_path / "model" / "thesis.txt").read_text() == "precious"


def test_one_process_at_a_time(tiny_bloom, triplets, tmp_path):
    with locked(tmp_path / "model.run"), pytest.raises(LacosError, match="Another process"):
        train(config_for(tiny_bloom, triplets, tmp_path / "model"))


def test_too_little_data_is_refused(tiny_bloom, tmp_path):
    (tmp_path / "few.csv").write_text("anchor,positive\na,b\nc,d\n")
    with pytest.raises(LacosError, match="2 different pairs"):
        train(config_for(tiny_bloom, tmp_path / "few.csv", tmp_path / "model"))


@pytest.mark.parametrize(
    "options",
    [
        {"mini_batch_size": 4, "gradient_checkpointing": True},
        {"quantization": "none", "optimizer": "adamw_torch", "bf16": False, "symmetric_loss": True},
        {"lora_targets": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"], "pooling": "lasttoken"},
        {"attention": "symmetric", "mask_margin": 0.1, "template": 'This sentence : "{text}" means in one word:"'},
        {"early_stopping_patience": 1, "epochs": 1},
    ],
    ids=["cached", "full-precision", "all-linear", "symmetric", "early-stopping"],
)
def test_options(options, tiny_bloom, triplets, tmp_path):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # symmetric attention says that stock ST cannot express it
        model = train(config_for(tiny_bloom, triplets, tmp_path / "model", **{"max_steps": 3, **options}))
    loaded = LacosSentenceTransformer(tmp_path / "model")
    texts = ["a man with guitar", "the river"]
    assert torch.allclose(
        model.encode(texts, convert_to_tensor=True).float(), loaded.encode(texts, convert_to_tensor=True).float()
    )


def test_unlabelled_sentences_train(tiny_bloom, tmp_path):
    (tmp_path / "lines.txt").write_text("\n".join(f"the {a} and the {b}" for a in WORDS for b in WORDS[:4]) + "\n")
    model = train(config_for(tiny_bloom, tmp_path / "lines.txt", tmp_path / "model", **BRIEF))
    assert learnt(adapter(tmp_path / "model"))
    assert model.training_record["rows"] > 40


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_killed_at_thirty_random_moments(undisturbed, tiny_bloom, triplets, tmp_path):
    """Start `lacos-st train` again and again, kill it after a random time, and let the last one finish."""
    import random

    generator = random.Random(0)
    config = config_for(tiny_bloom, triplets, tmp_path / "model")
    config.to_yaml(tmp_path / "recipe.yaml")
    command = [sys.executable, "-m", "lacos_st.cli", "train", "--config", str(tmp_path / "recipe.yaml")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    started = time.time()
    subprocess.run([*command, "--output", str(tmp_path / "timed")], env=environment, check=True, capture_output=True)
    whole = time.time() - started
    for _ in range(30):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(generator.uniform(0.3, 1.1) * whole)
        process.kill()
        process.wait()
        if (tmp_path / "model").exists():
            assert_same(adapter(tmp_path / "model"), adapter(undisturbed))
            shutil.rmtree(tmp_path / "model")
            shutil.rmtree(tmp_path / "model.run", ignore_errors=True)
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert_same(adapter(tmp_path / "model"), adapter(undisturbed))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "recipe.yaml", "timed"]
