"""GGUF files: read back by transformers they embed as the model they were made of, and what they cannot hold is said."""

import json

import numpy as np
import pytest
import torch
from families import write
from tiny import CORPUS, randomise
from transformers import AutoModel, AutoTokenizer

from lacos_st.errors import LacosError
from lacos_st.export.export import export
from lacos_st.export.gguf_file import FAMILIES
from lacos_st.model.model import LacosSentenceTransformer

gguf = pytest.importorskip("gguf")
FAMILY = {"gemma3_text": "gemma3"}


def save(base, directory, pooling="mean", **options):
    model = LacosSentenceTransformer(base, pooling=pooling, transformer_options=options)
    randomise(model.add_lora(rank=2)).eval().save_pretrained(str(directory), self_contained=True)
    return model


def states(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).last_hidden_state[0].float().numpy()


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("bloom", "mistral", "gemma3_text")])
def test_a_family_is_read_back(name, tiny_bloom, tmp_path):
    check(write(FAMILY.get(name, name), tiny_bloom, tmp_path / "base"), tmp_path)


def test_bloom_is_read_back(tiny_bloom, tmp_path):
    check(tiny_bloom, tmp_path)


def check(base, tmp_path):
    model = save(base, tmp_path / "model", max_seq_length=5)
    told = export(str(tmp_path / "model"), tmp_path / "model.gguf", "gguf")
    assert "--pooling mean" in told
    read = AutoModel.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    assert model.tokenizer.get_vocab().items() <= tokenizer.get_vocab().items()
    for text in CORPUS:
        ids = model.tokenizer(text, truncation=True, max_length=5)["input_ids"]
        expected = model.encode(text)
        found = states(read, ids).mean(0)
        assert found @ expected / np.linalg.norm(found) / np.linalg.norm(expected) > 0.998, text
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    fields = {key: field.contents() for key, field in reader.fields.items()}
    assert fields[f"{fields['general.architecture']}.pooling_type"] == gguf.PoolingType.MEAN
    assert (fields["tokenizer.ggml.pre"], fields["tokenizer.ggml.add_eos_token"]) == ("bloom", True)
