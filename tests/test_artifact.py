"""A directory holds a whole model or the one before it, and says where its base is from."""

import errno

import numpy as np
import pytest
import torch
from conftest import CORPUS, randomise, tree

from lacos_st.artifact import AdapterCheckpoint, describe_base, is_adapter_checkpoint, is_hub_name
from lacos_st.errors import LacosError
from lacos_st.model import LacosSentenceTransformer

TEXTS = list(CORPUS[:4])


def test_a_failed_save_leaves_the_old_model(tiny_model, tmp_path, monkeypatch):
    target = tmp_path / "model"
    tiny_model.save_pretrained(str(target))
    before = tree(target)
    randomise(tiny_model)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lacos_st.artifact.save_file", full)
    with pytest.raises(LacosError, match="the disk is full"):
        tiny_model.save_pretrained(str(target))
    assert tree(target) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_replacing_a_model_removes_what_the_new_one_does_not_have(tiny_bloom, tmp_path):
    target = str(tmp_path / "model")
    randomise(LacosSentenceTransformer(tiny_bloom).add_lora(rank=2)).save_pretrained(target)
    merged = LacosSentenceTransformer(target).merge_adapter()
    merged.save_pretrained(target)
    assert not (tmp_path / "model" / "adapter").exists()
    np.testing.assert_array_equal(LacosSentenceTransformer(target).encode(TEXTS), merged.encode(TEXTS))


def test_a_checkpoint_holds_adapters_under_the_models_own_names(tiny_model, tmp_path):
    randomise(tiny_model).add_lora(rank=2, name="second")
    tiny_model.set_adapter("default")
    checkpoint = tmp_path / "checkpoint-7"
    tiny_model.save_pretrained(str(checkpoint))
    tiny_model.save_pretrained(str(tmp_path / "checkpoint-best"))
    assert is_adapter_checkpoint(checkpoint)
    assert not is_adapter_checkpoint(tmp_path / "checkpoint-best")
    assert not (checkpoint / "model.safetensors").exists()
    expected = {key: value for key, value in tiny_model.state_dict().items() if "lora_" in key}
    found = AdapterCheckpoint(checkpoint).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    (checkpoint / "second" / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(LacosError, match="checkpoint-7' cannot be read"):
        AdapterCheckpoint(checkpoint).state_dict()


def test_a_base_is_described_by_where_it_is_from(tiny_bloom, tmp_path):
    assert describe_base("owner/model", None, "abc") == {"name": "owner/model", "revision": "abc"}
    local = {"name": tiny_bloom.name, "revision": None}
    assert describe_base(str(tiny_bloom), None, None) == {"path": str(tiny_bloom), **local}
    recorded = {"name": "owner/model", "revision": "abc"}
    assert describe_base(str(tmp_path), recorded, None) == recorded
    assert is_hub_name("owner/model")
    assert not any(is_hub_name(name) for name in (None, "model", "/owner/model", "a/b/c"))
