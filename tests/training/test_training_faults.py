"""What goes wrong while training: it is named as what it is, and a step that is made smaller learns the same."""

import errno
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from lacos_st.config import LacosConfig
from lacos_st.errors import LacosError
from lacos_st.training import train as training
from lacos_st.training.checkpoints import latest_checkpoint
from lacos_st.training.train import train


@pytest.fixture(autouse=True)
def _without_scores(monkeypatch):
    monkeypatch.setattr(training, "sts_sample", lambda model: {})


@pytest.fixture
def recipe(tiny_bloom, tmp_path):
    """Four steps, each of which moves the adapter."""
    words = ["man", "dog", "house", "river", "tree", "road", "cloud", "stone"]
    lines = [
        f"the {a} and {b},a {a} with {b},no {b} but {c}" for a in words for b, c in zip(words, words[3:], strict=False)
    ]
    (tmp_path / "triplets.csv").write_text("anchor,positive,negative\n" + "\n".join(lines) + "\n")
    return {
        "base": str(tiny_bloom),
        "train_data": [str(tmp_path / "triplets.csv")],
        "output": str(tmp_path / "model"),
        "batch_size": 8,
        "lora_rank": 4,
        "lora_dropout": 0.0,
        "learning_rate": 1e-2,
        "warmup_ratio": 0.0,
        "max_steps": 4,
        "eval_steps": 2,
    }


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_says_what_to_do(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("lacos_st.model.artifact.save_file", full)
    with pytest.raises(LacosError, match="the disk is full"):
        train(LacosConfig(**recipe))
    monkeypatch.undo()
    monkeypatch.setattr(training, "sts_sample", lambda model: {})
    monkeypatch.setattr("torch.save", full)
    with pytest.raises(LacosError, match=r"Writing a checkpoint.*training goes on from the last complete checkpoint"):
        train(LacosConfig(**recipe))
    assert not (tmp_path / "model").exists()


@pytest.mark.skipif(not Path("/sys/kernel").exists(), reason="needs a directory where even root may not write")
def test_a_directory_that_may_only_be_read_is_said_before_anything_is_loaded(recipe, monkeypatch):
    monkeypatch.setattr(training, "build_model", None)
    with pytest.raises(LacosError, match=r"/sys/kernel.* cannot be written"):
        train(LacosConfig(**recipe | {"output": "/sys/kernel/model"}))


@pytest.mark.parametrize("comes_back", [False, True])
def test_a_directory_that_vanishes_while_training(comes_back, recipe, tmp_path):
    run, elsewhere = tmp_path / "model.run", tmp_path / "elsewhere"

    class Vanish(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                run.rename(elsewhere)
                run.write_text("")  # else it would be made anew

    with pytest.raises(LacosError, match=r"Writing a checkpoint to .*model\.run.*mend the directory"):
        train(LacosConfig(**recipe), callbacks=[Vanish()])
    run.unlink()
    if comes_back:
        elsewhere.rename(run)
    assert (latest_checkpoint(run / "checkpoints") is not None) == comes_back
    assert train(LacosConfig(**recipe)).training_record["steps"] == 4


@pytest.mark.parametrize("event", ["on_train_begin", "on_step_end", "on_evaluate", "on_save", "on_log", "on_train_end"])
def test_what_else_fails_is_no_checkpoint(event, recipe, monkeypatch):
    def fail(self, *args, **kwargs):
        raise ConnectionError("the tracking server is down")

    with pytest.raises(ConnectionError, match="the tracking server is down"):
        train(LacosConfig(**recipe), callbacks=[type("Fails", (TrainerCallback,), {event: fail})()])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_loss_that_is_no_number_stops_the_run(value, recipe, tmp_path, monkeypatch):
    real = training.build_loss

    def turning(*args, **options):
        loss, calls = real(*args, **options), []
        forward = loss.forward

        def third(*given):
            calls.append(torch.is_grad_enabled())  # evaluating is none
            return forward(*given) * (value if calls[-1] and sum(calls) == 3 else 1)

        loss.forward = third
        return loss

    monkeypatch.setattr(training, "build_loss", turning)
    with pytest.raises(LacosError, match=rf"The loss is {value} in step 3\..*learning_rate than 0\.01"):
        train(LacosConfig(**recipe))
    assert latest_checkpoint(tmp_path / "model.run" / "checkpoints").name == "checkpoint-2"


def test_a_bit_that_flips_in_any_file_of_a_checkpoint_is_seen(recipe, tmp_path):
    class Stop(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == 4:
                raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        train(LacosConfig(**recipe), callbacks=[Stop()])
    checkpoints = tmp_path / "model.run" / "checkpoints"
    newest = checkpoints / "checkpoint-4"
    assert latest_checkpoint(checkpoints) == newest
    generator = torch.Generator().manual_seed(0)
    files = sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size)
    assert {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state.pth"} <= {
        path.name for path in files
    }
    for file in files:
        whole = file.read_bytes()
        place = int(torch.randint(len(whole), (), generator=generator))
        bit = 1 << int(torch.randint(8, (), generator=generator))
        file.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
        with pytest.warns(UserWarning, match="checkpoint-4"):
            assert latest_checkpoint(checkpoints).name == "checkpoint-2", file
        file.write_bytes(whole)
    assert latest_checkpoint(checkpoints) == newest


def test_out_of_memory_halves_the_mini_batch_and_learns_the_same(recipe, tmp_path, monkeypatch):
    real, tried = training.build_loss, []

    def too_large(config, model, mini_batch=None, **options):
        tried.append(mini_batch)
        loss = real(config, model, mini_batch, **options)
        if mini_batch is None or mini_batch > 2:

            def fail(*args):
                raise torch.OutOfMemoryError("CUDA out of memory")

            loss.forward = fail
        return loss

    def trained(name, **options):
        # in full precision, where only the order of sums differs
        exact = {"quantization": "none", "bf16": False, "optimizer": "adamw_torch"}
        train(LacosConfig(**{**recipe, **exact, "output": str(tmp_path / name), **options}))
        state = load_file(tmp_path / name / "adapter" / "adapter_model.safetensors")
        return {key: value for key, value in state.items() if "lora_B" in key}

    with monkeypatch.context() as patch:
        patch.setattr(training, "build_loss", too_large)
        with pytest.warns(UserWarning, match="going on with 2 rows"):
            auto = trained("auto", auto_batch_size=True)
        assert tried == [None, 4, 2]
        with pytest.raises(LacosError, match=r"does not hold 8 rows at a time\. .*--auto-batch-size"):
            trained("fixed")
    for key, value in trained("whole").items():
        assert value.abs().mean() > 5e-3  # B began as 0
        torch.testing.assert_close(auto[key], value, atol=1e-4, rtol=1e-2)
