"""GGUF files: read back by transformers they embed as the model they were made of; what they cannot hold is said."""

import re
import warnings

import numpy as np
import pytest
import torch
from families import write
from tiny import CORPUS, randomise
from transformers import AutoConfig, AutoModel, AutoTokenizer

from lacos_st.errors import LacosError
from lacos_st.export import gguf_file
from lacos_st.export.export import export
from lacos_st.export.floating import load_floating
from lacos_st.model.model import LacosSentenceTransformer

gguf = pytest.importorskip("gguf")


def save(base, directory, pooling="mean", **options):
    model = LacosSentenceTransformer(base, pooling=pooling, transformer_options=options)
    randomise(model.add_lora(rank=2)).eval().save_pretrained(str(directory), self_contained=True)
    return model


def cosine(one, other):
    return one @ other / np.linalg.norm(one) / np.linalg.norm(other)


def states(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).last_hidden_state[0].float().numpy()


@pytest.mark.parametrize(
    "family",
    ["llama", "gemma3_text", "bloom", *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen2", "qwen3"))],
)
def test_a_family_is_read_back(family, tiny_bloom, tiny_gemma, tmp_path):
    base = {"bloom": tiny_bloom, "gemma3_text": tiny_gemma}.get(family) or write(family, tiny_bloom, tmp_path / "base")
    model = save(base, tmp_path / "model", max_seq_length=5, quantization="none")  # so that all that is lost is bf16
    told = export(str(tmp_path / "model"), tmp_path / "model.gguf", "gguf")
    assert "--pooling mean -m model.gguf" in told
    assert ("form NFC" in told) == (family == "qwen2")  # transformers gives Qwen 2 a tokenizer of its own
    config = AutoConfig.from_pretrained(base)  # transformers does not read all that the file says of Qwen 3
    read = AutoModel.from_pretrained(tmp_path, gguf_file="model.gguf", config=config, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    assert model.tokenizer.get_vocab().items() <= tokenizer.get_vocab().items()
    rounded = load_floating(str(tmp_path / "model")).transformer.model.float()
    for text in CORPUS:
        ids = model.tokenizer(text, truncation=True, max_length=5)["input_ids"]
        found = states(read, ids).mean(0)
        np.testing.assert_allclose(found, states(rounded, ids).mean(0), rtol=0, atol=1e-4, err_msg=text)
        assert cosine(found, model.encode(text)) > 0.99, text  # models this small lose digits in bf16
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    fields = {key: field.contents() for key, field in reader.fields.items()}
    assert fields[f"{fields['general.architecture']}.pooling_type"] == gguf.PoolingType.MEAN
    rule = {"qwen2": "qwen2", "gemma3_text": "default"}.get(family, "bloom")
    assert (fields["tokenizer.ggml.pre"], fields["tokenizer.ggml.add_eos_token"]) == (rule, True)
    assert fields["tokenizer.ggml.add_bos_token"] == (family == "gemma3_text")


@pytest.mark.parametrize(
    ("options", "pooling", "message"),
    [
        ({}, "weightedmean", "poolings mean, cls, lasttoken, and this model has weightedmean"),
        (
            {"attention": "bidirectional"},
            "mean",
            "bidirectional attention, and llama.cpp computes this family causally",
        ),
        ({"template": "query: {text}</s>"}, "mean", "'query: {text}</s>' has more"),
        ({"attention": "symmetric"}, "mean", "symmetric attention, which only lacos-st computes"),
    ],
)
def test_what_a_file_cannot_hold_is_said_and_nothing_written(options, pooling, message, tiny_bloom, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that stock classes cannot express symmetric attention
        save(tiny_bloom, tmp_path / "model", pooling, **options)
    with pytest.raises(LacosError, match=re.escape(message)):
        export(str(tmp_path / "model"), tmp_path / "new" / "model.gguf", "gguf")
    assert not [file for file in (tmp_path / "new").rglob("*") if file.is_file()]


def test_a_family_without_a_map_a_window_and_the_embedded_model_are_refused(tiny_bloom, tmp_path):
    with pytest.raises(LacosError, match="this is a 'phi' model"):
        export(str(write("phi", tiny_bloom, tmp_path / "phi")), tmp_path / "x.gguf", "gguf")
    save(write("mistral", tiny_bloom, tmp_path / "mistral"), tmp_path / "model")
    with pytest.raises(LacosError, match="attention window of 6 tokens"):
        export(str(tmp_path / "model"), tmp_path / "x.gguf", "gguf")
    with pytest.raises(LacosError, match="cannot hold the model's Dense, LayerNorm"):
        export("lacos-bloom", tmp_path / "x.gguf", "gguf")


def test_the_package_that_writes_the_format_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_file, "find_spec", lambda name: None)
    with pytest.raises(LacosError, match="pip install gguf"):
        export("lacos-bloom", tmp_path / "x.gguf", "gguf")
