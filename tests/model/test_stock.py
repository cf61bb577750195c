"""A saved model is one model, whoever loads it and from where."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from tiny import CORPUS, randomise

from lacos_st.model.artifact import UNNAMED
from lacos_st.model.model import LacosSentenceTransformer

TEXTS = list(CORPUS)


@pytest.fixture
def uploaded(tmp_path):
    """Puts a directory on a stand-in of the Hub, as `upload_folder` does: its files, under a commit."""

    def upload(directory, repository: str) -> dict:
        commit = "0123456789" * 4
        folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        shutil.copytree(directory, folder / "snapshots" / commit)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(commit)
        shutil.rmtree(directory)
        return {"cache_folder": str(tmp_path / "hub"), "local_files_only": True}

    return upload


def test_a_directory_uploaded_as_files_loads_by_its_name(tiny_model, tmp_path, uploaded, monkeypatch):
    randomise(tiny_model).add_lora(rank=2, name="second")
    randomise(tiny_model, seed=1)
    second = tiny_model.eval().encode(TEXTS)
    tiny_model.set_adapter("default")
    expected = tiny_model.encode(TEXTS)
    tiny_model.save(str(tmp_path / "model"))
    adapter = json.loads((tmp_path / "model" / "adapter" / "adapter_config.json").read_text())
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == (UNNAMED, None)
    places = uploaded(tmp_path / "model", "me/model")
    monkeypatch.chdir(tmp_path)
    loaded = LacosSentenceTransformer("me/model", **places)
    np.testing.assert_array_equal(loaded.encode(TEXTS), expected)
    loaded.set_adapter("second")
    np.testing.assert_array_equal(loaded.encode(TEXTS), second)
    with pytest.raises(OSError, match=r"name of this repository: push_to_hub and save\(model_name"):
        SentenceTransformer("me/model", **places)


def test_stock_classes_load_an_uploaded_directory_that_knows_its_name(tiny_model, tmp_path, uploaded):
    expected = randomise(tiny_model).encode(TEXTS, normalize_embeddings=True)
    tiny_model.save(str(tmp_path / "model"), model_name="me/model")
    places = uploaded(tmp_path / "model", "me/model")
    for cls in (SentenceTransformer, LacosSentenceTransformer):
        found = cls("me/model", **places).encode(TEXTS, normalize_embeddings=True)
        assert (found * expected).sum(1).min() > 0.999, cls.__name__


def test_a_merged_directory_uploaded_as_files_loads_by_its_name_everywhere(tiny_model, tmp_path, uploaded):
    model = randomise(tiny_model).merge_adapter()
    expected = model.encode(TEXTS, normalize_embeddings=True)
    model.save(str(tmp_path / "model"))
    places = uploaded(tmp_path / "model", "me/merged")
    for cls in (SentenceTransformer, LacosSentenceTransformer):
        found = cls("me/merged", **places).encode(TEXTS, normalize_embeddings=True)
        assert (found * expected).sum(1).min() > 0.999, cls.__name__


@pytest.mark.parametrize("adapter", [True, False])
@pytest.mark.parametrize("quantization", ["int8", "none"])
@pytest.mark.parametrize("dtype", ["half", "bfloat16", "float"])
def test_a_model_in_16_bits_is_saved_as_one(dtype, quantization, adapter, tiny_bloom, tmp_path):
    options = {"quantization": quantization}
    model = LacosSentenceTransformer(tiny_bloom, transformer_options=options)
    if adapter:
        randomise(model.add_lora(rank=2)).eval()
    expected = getattr(model, dtype)().encode(TEXTS, normalize_embeddings=True)
    model.save(str(tmp_path / "model"))
    named = {"half": torch.float16, "bfloat16": torch.bfloat16, "float": torch.float32}[dtype]
    told = json.loads((tmp_path / "model" / "config.json").read_text())["dtype"]
    assert f"torch.{told}" == str(named)
    assert load_file(tmp_path / "model" / "model.safetensors")["ln_f.weight"].dtype == named
    for cls, settings in ((SentenceTransformer, {}), (LacosSentenceTransformer, {"transformer_options": options})):
        found = cls(str(tmp_path / "model"), **settings).encode(TEXTS, normalize_embeddings=True)
        assert (found * expected).sum(1).min() > 0.995, cls.__name__  # stock attention in bfloat16: 0.997


@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_stock_and_plugin_embeddings_have_the_same_size_and_length(form, tiny_model, tmp_path):
    model = randomise(tiny_model)
    (model.merge_adapter() if form == "merged" else model).save(str(tmp_path / "model"))
    ours, stock = (
        cls(str(tmp_path / "model")).encode(TEXTS) for cls in (LacosSentenceTransformer, SentenceTransformer)
    )
    assert ours.shape == stock.shape
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), np.linalg.norm(stock, axis=1), rtol=0.01)
