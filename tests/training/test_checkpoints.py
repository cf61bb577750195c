"""A run's directory: whose it is, where it lies, and what goes on there."""

import errno
import json
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from transformers import TrainerCallback

from lacos_st.config import LacosConfig
from lacos_st.errors import LacosError
from lacos_st.files import locked
from lacos_st.model.model import LacosSentenceTransformer
from lacos_st.training.checkpoints import described, go_on, is_finished, prepare
from lacos_st.training.train import train


@pytest.fixture(autouse=True)
def _without_scores(monkeypatch):
    monkeypatch.setattr("lacos_st.training.train.sts_sample", lambda model: {})


def write_pairs(path, count=40):
    path.write_text("anchor,positive\n" + "".join(f"a red man {i},man {i}\n" for i in range(count)))


@pytest.fixture
def recipe(tiny_bloom, tmp_path):
    """A short run's settings."""
    write_pairs(tmp_path / "pairs.csv")
    return {
        "base": str(tiny_bloom),
        "train_data": [str(tmp_path / "pairs.csv")],
        "output": str(tmp_path / "model"),
        "batch_size": 8,
        "lora_rank": 4,
        "max_steps": 3,
        "eval_steps": 1,
    }


class PowerCut(TrainerCallback):
    """After the second checkpoint."""

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == 2:
            raise SystemExit


def rank(output):
    return json.loads((Path(output) / "adapter" / "adapter_config.json").read_text())["r"]


def test_a_model_of_another_run_does_not_finish_this_one(recipe, tmp_path):
    train(LacosConfig(**recipe))
    another = {**recipe, "lora_rank": 2}
    with pytest.raises(SystemExit):
        train(LacosConfig(**another, overwrite=True), callbacks=[PowerCut()])
    with pytest.raises(LacosError, match="not empty"):
        train(LacosConfig(**another))
    assert (tmp_path / "model.run" / "checkpoints" / "checkpoint-2").is_dir()
    assert rank(tmp_path / "model") == 4
    train(LacosConfig(**another, overwrite=True))
    assert rank(tmp_path / "model") == 2
    assert not (tmp_path / "model.run").exists()


def test_finished_is_what_has_been_moved_as_a_whole(recipe, tmp_path):
    config, output, run = LacosConfig(**recipe), tmp_path / "model", tmp_path / "model.run"
    prepare(config, output, run)
    output.mkdir()
    for folder in (output, run):
        (folder / "training.json").write_text('{"seconds": 1}')
    assert is_finished(config, output, run)
    assert not is_finished(LacosConfig(**{**recipe, "lora_rank": 2}), output, run)
    (run / "finished" / "model").mkdir(parents=True)
    assert is_finished(config, output, run)
    (run / "finished" / "model" / "modules.json").touch()
    assert not is_finished(config, output, run)
    (run / "finished" / "model" / "modules.json").unlink()
    (output / "training.json").write_text('{"seconds": 2}')
    assert not is_finished(config, output, run)
    (output / "training.json").write_text('{"seconds": 1}')
    another = {**recipe, "lora_rank": 2}
    prepare(LacosConfig(**another, overwrite=True), output, run)
    assert not is_finished(LacosConfig(**another), output, run)


def test_other_data_do_not_mix_with_an_unfinished_run(recipe, tmp_path):
    with pytest.raises(SystemExit):
        train(LacosConfig(**recipe), callbacks=[PowerCut()])
    write_pairs(tmp_path / "pairs.csv", 60)
    with pytest.raises(LacosError, match=r"pairs: '36 rows \(\w+\)' there, '54 rows \(\w+\)' now.*--overwrite"):
        train(LacosConfig(**recipe))
    assert train(LacosConfig(**recipe, overwrite=True)).training_record["rows"] == 54


def test_data_are_compared_by_their_texts(recipe, tmp_path):
    config, checkpoint = LacosConfig(**recipe), tmp_path / "checkpoints" / "checkpoint-2"
    checkpoint.mkdir(parents=True)

    def data(text):
        return DatasetDict(mine=Dataset.from_dict({"anchor": ["a", text], "positive": ["b", "c"]})), held

    held = Dataset.from_dict({"anchor": ["x"], "positive": ["y"]})
    assert go_on(config, described(data("a")), tmp_path, checkpoint) == checkpoint  # of before such records were kept
    assert go_on(config, described(data("a")), tmp_path, checkpoint) == checkpoint
    with pytest.raises(LacosError, match="mine: "):
        go_on(config, described(data("A")), tmp_path, checkpoint)
    held = Dataset.from_dict({"anchor": ["x"], "positive": ["z"]})
    with pytest.raises(LacosError, match="held-out rows: "):
        go_on(config, described(data("a")), tmp_path, checkpoint)
    assert go_on(LacosConfig(**recipe, overwrite=True), described(data("A")), tmp_path, checkpoint) is None
    assert not checkpoint.exists()


@pytest.mark.parametrize("name", ["here/", "."])
def test_the_run_lies_beside_the_output_however_that_is_written(name, recipe, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(tmp_path if name == "here/" else here)
    config = LacosConfig(**{**recipe, "output": name})
    with pytest.raises(SystemExit):
        train(config, callbacks=[PowerCut()])
    assert (tmp_path / "here.run").is_dir()
    train(config)
    assert rank(here) == 4
    assert not (tmp_path / "here.run").exists()


def test_a_link_is_the_output_that_it_leads_to(recipe, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere" / "model")
    config = LacosConfig(**{**recipe, "output": str(link)})
    (tmp_path / "elsewhere").mkdir()
    with locked(tmp_path / "elsewhere" / "model.run"), pytest.raises(LacosError, match="Another process"):
        train(config)
    train(config)
    assert link.is_symlink()
    assert rank(tmp_path / "elsewhere" / "model") == 4


def test_an_output_on_a_file_system_of_its_own(recipe, tmp_path, monkeypatch):
    def across(stage, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr("lacos_st.training.train.move_into", across)
    train(LacosConfig(**recipe))
    assert LacosSentenceTransformer(tmp_path / "model").transformer.adapter_names
    assert not (tmp_path / "model.run").exists()


def test_what_would_fail_in_the_end_is_refused_at_once(recipe, tmp_path, monkeypatch):
    missing = {**recipe, "train_data": ["missing.csv"]}
    (tmp_path / "model").write_text("precious")
    with pytest.raises(LacosError, match="is a file"):
        train(LacosConfig(**missing, overwrite=True))
    assert (tmp_path / "model").read_text() == "precious"
    monkeypatch.setattr("transformers.integrations.integration_utils.is_tensorboard_available", lambda: False)
    with pytest.raises(LacosError, match=r"report_to=\['tensorboard'\] cannot be used here: .*leave it out"):
        train(LacosConfig(**missing, report_to=["tensorboard"]))
