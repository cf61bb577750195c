"""The stock layout in 16 bits: whoever reads it embeds as the model it was made of, without 8 bits and adapters."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from tiny import CORPUS, randomise

from lacos_st.cli import main
from lacos_st.export.export import commands
from lacos_st.export.floating import merged_state
from lacos_st.model.model import LacosSentenceTransformer

TEXTS = list(CORPUS)


def least(a, b):
    return (
        ((a / np.linalg.norm(a, axis=1, keepdims=True)) * (b / np.linalg.norm(b, axis=1, keepdims=True))).sum(1).min()
    )


@pytest.mark.parametrize("form", ["adapter", "plain gemma", "embedded"])
def test_stock_classes_read_it(form, tiny_bloom, tiny_gemma, tmp_path, capsys):
    name = {"adapter": str(tmp_path / "model"), "plain gemma": str(tiny_gemma), "embedded": "bloom-mini"}[form]
    if form == "adapter":
        model = LacosSentenceTransformer(tiny_bloom, transformer_options={"template": "say: {text}</s>"})
        randomise(model.add_lora(rank=2)).eval().save_pretrained(name)
    options = {"transformer_options": {"quantization": "none"}} if form == "plain gemma" else {}
    expected = LacosSentenceTransformer(name, **options).encode(TEXTS)
    out = tmp_path / "out"
    assert main(["export", name, str(out)]) == 0
    assert f'SentenceTransformer("{out}")' in capsys.readouterr().out
    stock = SentenceTransformer(str(out), model_kwargs={"dtype": torch.float32})
    assert least(stock.encode(TEXTS), expected) > 0.9995
    config = json.loads((out / "config.json").read_text())
    assert (config["dtype"], "quantization_config" in config) == ("bfloat16", False)
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    assert not any("lora" in str(file) or file.name in ("adapter", "lacos.json") for file in out.rglob("*"))
    assert '"PreTrainedTokenizerFast"' in (out / "tokenizer_config.json").read_text()  # transformers 4 knows no newer
    entries = json.loads((out / "modules.json").read_text())
    assert {entry["type"].rpartition(".")[0] for entry in entries} == {"sentence_transformers.models"}
    pooling = next(entry["path"] for entry in entries if entry["type"].endswith("Pooling"))
    told = json.loads((out / pooling / "config.json").read_text())
    mode = "mean" if form == "embedded" else "weightedmean"
    assert [key for key, value in told.items() if value is True and "mode" in key] == [f"pooling_mode_{mode}_tokens"]
    assert least(LacosSentenceTransformer(out).encode(TEXTS), expected) > 0.995  # in 8 bits once more
    assert main(["export", name, str(out)]) == 2
    assert "not empty" in capsys.readouterr().err


def test_the_sum_of_base_and_adapter_is_rounded_once(tiny_model):
    model = randomise(tiny_model).eval()
    layer = model.transformer.model.h[0].mlp.dense_h_to_4h
    rows, absmax = layer.get_base_layer().int8_weight()
    expected = rows.float() * (absmax[:, None] / 127) + layer.get_delta_weight("default")
    assert torch.equal(merged_state(model.transformer.model)["h.0.mlp.dense_h_to_4h.weight"], expected.bfloat16())


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_a_converter_is_a_command_of_its_own(format, tiny_gemma, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["export", str(tiny_gemma), str(out), "--format", format]) == 0
    assert commands(format, out) in capsys.readouterr().out
    assert SentenceTransformer(str(out)).encode("a").shape == (64,)


@pytest.mark.parametrize(("name", "format"), [("out", "hf"), ("out.gguf", "gguf")])
def test_an_output_may_be_a_link(name, format, tiny_gemma, tmp_path):
    there = tmp_path / "elsewhere" / name
    (there if format == "hf" else there.parent).mkdir(parents=True)
    (tmp_path / name).symlink_to(there)
    LacosSentenceTransformer(tiny_gemma, pooling="mean").save_pretrained(str(tmp_path / "model"))
    assert main(["export", str(tmp_path / "model"), str(tmp_path / name), "--format", format]) == 0
    assert (tmp_path / name).is_symlink()
    assert (there / "model.safetensors").is_file() if format == "hf" else there.is_file()
    assert {path.name for path in (*tmp_path.iterdir(), *there.parent.iterdir())} == {"model", "elsewhere", name}


@pytest.mark.parametrize(
    ("name", "format", "message"),
    [("lacos-bloom", "onnx", "see both sides"), ("lacos-bloom", "openvino", "fails on BLOOM without its head")],
)
def test_what_a_converter_cannot_do_is_said_before(name, format, message, tmp_path, capsys):
    assert main(["export", name, str(tmp_path / "out"), "--format", format]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "out", "--format", "gguf"], "let its name end in .gguf"),
        (["x", "there.gguf", "--format", "gguf"], "exists already"),
        (["x", "there.gguf"], "named like a GGUF file"),
        (["x", "full"], "exists already and is not empty"),
        (["x", "out"], "There is no model 'x'"),
    ],
)
def test_mistakes(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.gguf").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    assert main(["export", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "there.gguf").read_text() == "mine"
