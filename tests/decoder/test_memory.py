"""The prediction follows what is really stored, and scales as the causes do."""

import json
from functools import partial
from pathlib import Path

import families
import pytest
import torch
from torch import nn
from transformers import AutoConfig, BloomConfig, Gemma3TextConfig, LlamaConfig
from transformers.pytorch_utils import Conv1D

from lacos_st.decoder.memory import auto_batch_size, available_memory, predict
from lacos_st.errors import LacosError
from lacos_st.model.names import base_config

ROOT = Path(__file__).parents[2]
SMALL = BloomConfig(vocab_size=250880, hidden_size=1024, n_layer=24, n_head=16)


@pytest.mark.parametrize("quantization", ["int8", "none"])
def test_weights_are_what_a_model_holds(quantization):
    from lacos_st.decoder.bloom import LacosBloomModel
    from lacos_st.decoder.embedding_table import quantize_embedding_
    from lacos_st.decoder.quantization import LacosLinear8bit, convert_linear_

    config = BloomConfig(vocab_size=500, hidden_size=64, n_layer=2, n_head=4)
    model = LacosBloomModel(config)
    if quantization == "int8":
        import bitsandbytes as bnb

        for block in model.h:
            for parent, name in [
                (block.self_attention, "query_key_value"),
                (block.self_attention, "dense"),
                (block.mlp, "dense_h_to_4h"),
                (block.mlp, "dense_4h_to_h"),
            ]:
                old = getattr(parent, name)
                new = bnb.nn.Linear8bitLt(old.in_features, old.out_features, has_fp16_weights=False)
                new.weight.data = old.weight.data
                setattr(parent, name, new.to("cpu"))
        quantize_embedding_(model)
        convert_linear_(model)
        assert sum(isinstance(layer, LacosLinear8bit) for layer in model.modules()) == 8
    held = [*model.parameters(), *model.buffers()]
    held += [tensor.SCB for tensor in held if getattr(tensor, "SCB", None) is not None]
    expected = sum(tensor.numel() * tensor.element_size() for tensor in held)
    estimate = predict(config, quantization=quantization, dtype=torch.float32, training=False)
    assert estimate.weights == expected


def test_adapter_counts_parameters_gradients_and_moments():
    entries = 24 * 16 * (1024 + 3072)
    of_attention = partial(predict, SMALL, targets=["query_key_value"])
    assert of_attention(optimizer="adamw").adapter == entries * 16
    assert of_attention(optimizer="adamw_8bit").adapter == entries * 10
    assert of_attention(rank=2, optimizer="adamw_8bit").adapter == 24 * 2 * (1024 * 16 + 3072 * 10)
    everywhere = 24 * 16 * (1024 + 3072 + 1024 + 1024 + 1024 + 4096 + 4096 + 1024)
    assert predict(SMALL, optimizer="adamw").adapter == everywhere * 16


def test_what_costs_more_is_predicted_to_cost_more():
    base = predict(SMALL, batch_size=64, length=64)
    gpu = partial(predict, SMALL, device="cuda", dtype=torch.bfloat16)
    assert gpu(batch_size=128, length=64).activations == 2 * gpu(batch_size=64, length=64).activations
    assert gpu(batch_size=64, length=128).activations == 2 * gpu(batch_size=64, length=64).activations
    assert predict(SMALL, batch_size=64, length=64, gradient_checkpointing=True).total < base.total
    assert predict(SMALL, batch_size=64, length=64, training=False).total < base.total
    exact = {"quantization": "none", "dtype": torch.float32}
    assert predict(SMALL, batch_size=64, length=64, **exact).total > base.total


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_gpus_peak_at_7b1_is_predicted_as_it_was_measured(checkpointing):
    """On an H200 by `benchmarks/gpu.py`: a step of 128 texts of 39.5 tokens on average."""
    results = json.loads((ROOT / "docs/benchmarks/h200/gpu.json").read_text(encoding="utf-8"))
    measured = results["7.1B, a training step"][f"7.1B, 64 pairs, ours{', checkpointing' * checkpointing}"]["peak GB"]
    config = BloomConfig(vocab_size=250880, hidden_size=4096, n_layer=30, n_head=32)
    estimate = predict(
        config,
        length=39,
        targets=["query_key_value"],
        dropout=0.0,
        device="cuda",
        dtype=torch.bfloat16,
        gradient_checkpointing=checkpointing,
    )
    assert estimate.total / 1e9 == pytest.approx(measured, rel=0.03)


def test_an_adapter_on_every_layer_keeps_their_inputs():
    """PEFT casts them to fp32: 14 H in 16-bit units, and a byte each for dropout."""
    one, every = ("query_key_value",), ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
    gpu = partial(predict, SMALL, batch_size=64, length=64, device="cuda", dtype=torch.bfloat16)
    unit = 2 * 64 * 64 * 1024 * 2 * 24
    assert gpu(targets=every, dropout=0.0).activations - gpu(targets=one, dropout=0.0).activations == 12 * unit
    assert gpu(targets=every, dropout=0.1).activations - gpu(targets=every, dropout=0.0).activations == 3.5 * unit


def test_weights_in_8_bits_are_about_half_of_16():
    for hidden, layers in ((1024, 24), (4096, 30)):  # 560m and 7b1
        config = BloomConfig(vocab_size=250880, hidden_size=hidden, n_layer=layers, n_head=16)
        int8 = predict(config, training=False, dtype=torch.bfloat16).weights
        half = predict(config, training=False, dtype=torch.bfloat16, quantization="none").weights
        assert int8 / half < 0.52


def test_batch_size_fills_the_budget():
    budget = 4e9
    size = auto_batch_size(SMALL, available=budget, length=64)
    assert predict(SMALL, batch_size=size, length=64).total <= budget
    assert predict(SMALL, batch_size=2 * size, length=64).total > budget
    assert auto_batch_size(SMALL, available=1e15, largest=100) == 100
    with pytest.raises(LacosError, match=r"0\.1 GB are free on cpu"):
        auto_batch_size(SMALL, available=1e8)
    assert auto_batch_size(BloomConfig(vocab_size=99, hidden_size=16, n_layer=1, n_head=2)) >= 1


@pytest.mark.parametrize("name", ["by-reference", "checkpoint-7"])
def test_an_adapter_without_its_base_counts_as_that(tiny_bloom, tiny_model, tmp_path, name):
    saved = tmp_path / name
    tiny_model.save_pretrained(str(saved), self_contained=False)
    assert not (saved / "config.json").exists()
    assert base_config(str(saved)).to_dict() == base_config(str(tiny_bloom)).to_dict()
    config = json.loads((saved / "adapter_config.json").read_text(encoding="utf-8"))
    for base, message in (("bigscience/bloom-7b1", None), (str(tmp_path / "moved"), "no directory '.*moved'")):
        content = json.dumps({**config, "base_model_name_or_path": base})
        (saved / "adapter_config.json").write_text(content, encoding="utf-8")
        if message:
            with pytest.raises(LacosError, match=message):
                base_config(str(saved))
        else:
            assert base_config(str(saved)).hidden_size == 4096


def test_a_base_on_the_hub_is_asked_for_by_its_revision(monkeypatch):
    asked = []

    def from_pretrained(name, revision):
        asked.append((name, revision))
        return SMALL

    monkeypatch.setattr(AutoConfig, "from_pretrained", from_pretrained)
    assert base_config("owner/bloom", "v2") is SMALL
    assert asked == [("owner/bloom", "v2")]


def test_errors_name_the_value():
    with pytest.raises(LacosError, match="batch_size=0"):
        predict(SMALL, batch_size=0)
    with pytest.raises(LacosError, match="w_q"):
        predict(SMALL, targets=("w_q",))


def test_table_adds_up():
    estimate = predict(SMALL)
    lines = estimate.table().splitlines()
    numbers = [float(line.split()[-2]) for line in lines]
    assert lines[-1].startswith("peak")
    assert sum(numbers[:-1]) == pytest.approx(numbers[-1], abs=0.03)


def test_free_memory_is_found():
    assert available_memory("cpu") > 0


# model, batch, tokens of a text, training, peak in GB above the process before loading, the tokenizer included: seen on
# an Intel Xeon with AMX by `benchmarks/memory.py --base`
MEASURED = [
    ("SmolLM2-135M", 64, 20, True, 3.93),
    ("SmolLM2-135M", 48, 48, True, 6.97),
    ("SmolLM2-135M", 64, 100, False, 0.54),
    ("Gemma 3 270M", 64, 20, True, 3.68),
    ("Gemma 3 270M", 48, 48, True, 6.10),
    ("Gemma 3 270M", 64, 100, False, 1.01),
]
REAL = {
    "SmolLM2-135M": LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3,
    ),
    "Gemma 3 270M": Gemma3TextConfig(
        vocab_size=262144, hidden_size=640, intermediate_size=2048, num_hidden_layers=18, num_attention_heads=4,
        num_key_value_heads=1, head_dim=256,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "batch", "length", "training", "measured"), MEASURED)
def test_other_decoders_are_predicted_as_they_were_measured(name, batch, length, training, measured):
    options = {"optimizer": "adamw_torch", "texts": 1, "compute_form": "w8a8", "dtype": torch.float32}
    estimate = predict(REAL[name], batch_size=batch, length=length, training=training, **options)
    assert estimate.total / 1e9 == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("family", sorted(families.CONFIGS))
def test_every_family_is_predicted(family):
    config = families.config_of(family)
    model = families.make(family)
    linear = [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D)]
    whole = predict(config, training=False, quantization="none", dtype=torch.float32).weights
    assert whole == 4 * sum(parameter.numel() for parameter in model.parameters())
    rows = sum(m.nf if isinstance(m, Conv1D) else m.out_features for m in linear)
    entries = sum(m.weight.numel() for m in linear)
    table = model.get_input_embeddings().weight
    eight = predict(config, training=False, dtype=torch.float32).weights
    assert whole - eight == 3 * entries - 4 * rows + 3 * table.numel() - 2 * len(table)
    one, two = (predict(config, batch_size=batch).activations for batch in (8, 16))
    assert two == 2 * one > 0
    assert predict(config, batch_size=8, gradient_checkpointing=True).activations < one
