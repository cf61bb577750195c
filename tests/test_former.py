"""Class paths of before there were packages, which saved models and pickles name, still lead to the classes."""

import json
import pickle
import warnings
from importlib import import_module

import numpy as np
import pytest
from tiny import CORPUS

import lacos_st
from lacos_st.model.model import LacosSentenceTransformer

PATHS = [
    "transformer.LacosTransformer",
    "pooling.LacosPooling",
    "dense.LacosDense",
    "dense.LacosLayerNorm",
    "bloom.LacosBloomModel",
    "quantization.LacosLinear8bit",
    "embedding_table.LacosEmbedding8bit",
    "losses.MaskedMultipleNegativesRankingLoss",
    "losses.CachedMaskedMultipleNegativesRankingLoss",
    "model.LacosSentenceTransformer",
    "evaluation.STSEvaluator",
]


@pytest.mark.parametrize("path", PATHS)
def test_a_former_path_is_todays_class(path):
    module, name = path.split(".")
    former = getattr(import_module(f"lacos_st.{module}"), name)
    assert former.__name__ == name
    if name in lacos_st.__all__:
        assert former is getattr(lacos_st, name)


def test_a_pickle_of_before_is_read():
    former = b"\x80\x04clacos_st.pooling\nLacosPooling\n."
    assert pickle.loads(former) is lacos_st.LacosPooling


def test_a_model_that_names_former_paths_loads(tiny_bloom, tmp_path):
    options = {"attention": "symmetric"}
    model = LacosSentenceTransformer(tiny_bloom, transformer_options=options).add_lora(rank=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that stock classes cannot express it
        model.save_pretrained(str(tmp_path / "model"))
    listing = tmp_path / "model" / "modules.json"
    entries = json.loads(listing.read_text())
    assert [entry["type"] for entry in entries] == ["lacos_st.LacosTransformer", "lacos_st.LacosPooling"]
    entries[0]["type"], entries[1]["type"] = "lacos_st.transformer.LacosTransformer", "lacos_st.pooling.LacosPooling"
    listing.write_text(json.dumps(entries))
    loaded = LacosSentenceTransformer(tmp_path / "model")
    np.testing.assert_array_equal(loaded.encode(list(CORPUS)), model.eval().encode(list(CORPUS)))
