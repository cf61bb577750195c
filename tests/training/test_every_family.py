"""Training over every family of decoders: what was interrupted ends as if it had not been, and no base changes."""

import importlib
import json

import families
import pytest
import torch
from safetensors.torch import load_file
from tiny import CORPUS
from transformers import TrainerCallback

from lacos_st.config import LacosConfig
from lacos_st.decoder.quantization import LacosLinear8bit
from lacos_st.model.model import LacosSentenceTransformer
from lacos_st.training.train import train

FAMILIES = sorted(families.CONFIGS.keys() - {"falcon"})  # of which bitsandbytes quantises nothing


class Killed(BaseException):
    """Nothing catches it, so that nothing is put in order."""


class Kill(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            raise Killed


def int8_bytes(model):
    return [layer.weight.data for layer in model.modules() if isinstance(layer, LacosLinear8bit)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_killed_run_goes_on_to_the_same_adapter_over_the_same_bytes(family, tiny_bloom, tmp_path, monkeypatch):
    base = families.write(family, tiny_bloom, tmp_path / family)
    data = tmp_path / "data.jsonl"
    rows = [{"anchor": CORPUS[i % 11], "positive": CORPUS[(i * 3 + 1) % 11] + f" {i}"} for i in range(40)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    # `lacos_st.training.train` is the function too
    monkeypatch.setattr(importlib.import_module("lacos_st.training.train"), "sts_sample", lambda model: {"en-en": 0.0})
    options = {
        "base": str(base), "train_data": [str(data)], "eval_data": [str(data)], "max_steps": 3, "batch_size": 8,
        "eval_steps": 1, "lora_rank": 2, "lora_dropout": 0.1, "learning_rate": 1e-2,
    }  # fmt: skip
    undisturbed, resumed = (LacosConfig(output=str(tmp_path / name), **options) for name in ("whole", "killed"))
    model = train(undisturbed)
    with pytest.raises(Killed):
        train(resumed, callbacks=[Kill()])
    assert not (tmp_path / "killed").exists()
    train(resumed)
    adapters = [load_file(tmp_path / name / "adapter/adapter_model.safetensors") for name in ("whole", "killed")]
    assert adapters[0].keys() == adapters[1].keys()
    assert all(torch.equal(adapters[0][key], adapters[1][key]) for key in adapters[0])
    assert any(value.abs().sum() > 0 for key, value in adapters[0].items() if "lora_B" in key)
    # the best step was loaded into it: the base under it is what it was, and what a new process reads
    for other in (LacosSentenceTransformer(base), LacosSentenceTransformer(tmp_path / "killed")):
        assert all(map(torch.equal, int8_bytes(model), int8_bytes(other)))
