"""Accuracy on the held-out rows: the evaluator's own figures, before training and after, also of a run that went on."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from transformers import TrainerCallback

from lacos_st.cli import main
from lacos_st.config import LacosConfig
from lacos_st.model.model import LacosSentenceTransformer
from lacos_st.training.checkpoints import latest_checkpoint
from lacos_st.training.measure import MOST, Measure, held_out_loss
from lacos_st.training.train import TrainingInterrupted, train

WORDS = [
    f"{colour} {thing}" for colour in ("red", "old", "small", "quiet") for thing in ("man", "dog", "house", "river")
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """40 pairs to train on, and 12 others, two of them with one answer."""
    folder = tmp_path_factory.mktemp("tickets")
    rows = [f"the {WORDS[i % 16]} {WORDS[i * 7 % 16]} {i},{WORDS[i * 7 % 16]} near {WORDS[i % 16]}" for i in range(52)]
    for name, part in (("train", rows[:40]), ("eval", [*rows[40:], f"is it {rows[40].replace('the ', '')}"])):
        (folder / f"{name}.csv").write_text("\n".join(["question,answer", *part]) + "\n", encoding="utf-8")
    return folder


def config_for(base, data, output, **options):
    settings = {"lora_rank": 4, "lora_dropout": 0.1, "learning_rate": 1e-2, "batch_size": 8, "warmup_ratio": 0.0}
    files = {"train_data": [str(data / "train.csv")], "eval_data": [str(data / "eval.csv")]}
    return LacosConfig(base=str(base), output=str(output), eval_steps=2, **{**settings, **files, **options})


class Watch(TrainerCallback):
    """Whether measuring before the first step leaves the random state alone; and Ctrl-C in the fourth step."""

    def __init__(self, interrupt):
        self.interrupt = interrupt

    def on_train_begin(self, *args, **kwargs):
        self.state = torch.get_rng_state()

    def on_epoch_begin(self, *args, **kwargs):
        self.untouched = torch.equal(self.state, torch.get_rng_state())

    def on_step_begin(self, args, state, control, **kwargs):
        if self.interrupt and state.global_step == 3:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_run_that_went_on_has_the_figures_of_before_the_first_step(tiny_bloom, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lacos_st.training.train.sts_sample", lambda model: {})
    watch = Watch(interrupt=True)
    config = config_for(tiny_bloom, data, tmp_path / "halves")
    with pytest.raises(TrainingInterrupted):
        train(config, callbacks=[watch])
    assert watch.untouched
    assert latest_checkpoint(tmp_path / "halves.run" / "checkpoints").name == "checkpoint-4"
    said = capsys.readouterr().out
    assert "before the first step: accuracy@1 " in said
    assert "step 0: held-out loss " in said
    model = train(config)
    assert "before the first step" not in capsys.readouterr().out
    whole = train(config_for(tiny_bloom, data, tmp_path / "whole")).training_record
    halves = json.loads((tmp_path / "halves" / "training.json").read_text(encoding="utf-8"))
    assert halves["held_out"] == whole["held_out"]
    own = halves["held_out"]
    assert (own["queries"], own["texts"]) == (13, 12)

    # what is shown is what the base and the trained model do
    measure = Measure(model_rows(data), 8, 0)
    before = measure(LacosSentenceTransformer(tiny_bloom).add_lora(rank=2))
    assert own["before"] == {**before, "loss": halves["log"][0]["eval_loss"]}
    after = measure(LacosSentenceTransformer(tmp_path / "halves"))
    assert own["after"] == {**after, "loss": pytest.approx(halves["best_metric"])}
    assert own["after"] != own["before"]
    assert own["after"]["loss"] < own["before"]["loss"]

    card = ModelCard.load(tmp_path / "halves" / "README.md")
    assert "| held-out rows, 13 queries among 12 texts | before | after |" in card.content
    assert f"| accuracy@1 x 100 | {before['accuracy@1']:.2f} | {after['accuracy@1']:.2f} |" in card.content
    found = {f.metric_type: f.metric_value for f in card.data.eval_results if f.dataset_type == "held-out"}
    assert 100 * found["cosine_accuracy@1"] == pytest.approx(after["accuracy@1"])
    assert "encode_query" not in card.content
    assert model.training_record["held_out"] == own


def model_rows(data):
    lines = (data / "eval.csv").read_text(encoding="utf-8").splitlines()[1:]
    return Dataset.from_list([dict(zip(("anchor", "positive"), line.split(","), strict=True)) for line in lines])


def test_accuracy_and_rank_are_those_of_the_similarities(tiny_bloom, data):
    model, rows = LacosSentenceTransformer(tiny_bloom), model_rows(data)
    pool = list(dict.fromkeys(rows["positive"]))
    similarity = model.similarity(model.encode(rows["anchor"]), model.encode(pool)).numpy()
    right = similarity[np.arange(len(rows)), [pool.index(text) for text in rows["positive"]]]
    ranks = 1 + (similarity > right[:, None]).sum(axis=1)
    found = Measure(rows, 8, 0)(model)
    assert found["accuracy@1"] == pytest.approx(100 * (ranks == 1).mean())
    assert found["MRR@10"] == pytest.approx(100 * np.where(ranks <= 10, 1 / ranks, 0).mean())
    assert 0 < found["accuracy@1"] < 100


def test_many_rows_are_sampled_and_single_sentences_are_no_search(tiny_model):
    rows = Dataset.from_dict({"anchor": [f"q {i}" for i in range(900)], "positive": [f"a {i}" for i in range(900)]})
    measure = Measure(rows, 8, 0)
    assert (measure.queries, measure.texts) == (MOST, MOST)
    for few in (Dataset.from_dict({"anchor": ["a"] * 20, "positive": ["a"] * 20}), rows.select(range(9))):
        measure = Measure(few, 8, 0)
        assert measure.queries == 0
        assert measure(tiny_model) == {}


def test_a_loss_is_found_at_its_step():
    log = [{"step": 0, "eval_loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "eval_loss": 1.5}]
    assert [held_out_loss(log, step) for step in (0, 2, 4)] == [{"loss": 2.0}, {"loss": 1.5}, {}]


def test_the_command_line_shows_both(tiny_bloom, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lacos_st.training.train.sts_sample", lambda model: {})
    config_for(tiny_bloom, data, tmp_path / "model", max_steps=2).to_yaml(tmp_path / "recipe.yaml")
    assert main(["train", "--config", str(tmp_path / "recipe.yaml")]) == 0
    own = json.loads((tmp_path / "model" / "training.json").read_text(encoding="utf-8"))["held_out"]
    told = capsys.readouterr().out
    assert "13 held-out queries among 12 texts" in told
    for name in ("before", "after"):
        assert f"{own[name]['accuracy@1']:.2f}" in told
        assert f"{own[name]['loss']:.4f}" in told
