"""A directory holds a whole model or the one before it, and says where its base is from."""

import errno
import json
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers.sentence_transformer.modules import LayerNorm
from tiny import CORPUS, randomise, tree

from lacos_st.errors import LacosError
from lacos_st.model.artifact import describe_base, is_hub_name
from lacos_st.model.dense import LacosDense
from lacos_st.model.model import LacosSentenceTransformer
from lacos_st.model.placing import disk_error

TEXTS = list(CORPUS[:4])


def test_a_failed_save_leaves_the_old_model(tiny_model, tmp_path, monkeypatch):
    target = tmp_path / "model"
    tiny_model.save_pretrained(str(target))
    before = tree(target)
    randomise(tiny_model)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lacos_st.model.artifact.save_file", full)
    with pytest.raises(LacosError, match="the disk is full"):
        tiny_model.save_pretrained(str(target))
    assert tree(target) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_disk_that_takes_no_more_is_an_error_not_safetensors_own(tiny_model, tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # bytes in a file: as a disk that is full
    try:
        with pytest.raises(LacosError, match=r"Saving to .*model.* failed: .*os error"):
            tiny_model.save_pretrained(str(tmp_path / "model"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
    assert "the disk is full" in str(disk_error(RuntimeError("No space left on device (os error 28)"), tmp_path))


@pytest.mark.parametrize("model_there", [False, True])
def test_saving_among_files_of_ones_own_leaves_them(model_there, tiny_model, tmp_path):
    if model_there:
        tiny_model.save_pretrained(str(tmp_path))
    own = ["adapter_training.py", "adapters.md", "other.safetensors", "adapter/notes.md", "lexical/words.txt"]
    own += [] if model_there else ["config.json.old", "training.json"]
    for name in own:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    tiny_model.save_pretrained(str(tmp_path))
    assert all((tmp_path / name).read_text() == "mine" for name in own)


def test_a_record_of_training_goes_with_its_model(tiny_model, tmp_path):
    tiny_model.training_record = {"steps": 3}
    tiny_model.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    assert (tmp_path / "model" / "training.json").exists()
    tiny_model.training_record = None
    tiny_model.save_pretrained(str(tmp_path / "model"))
    assert not (tmp_path / "model" / "training.json").exists()


def test_replacing_a_model_removes_what_the_new_one_does_not_have(tiny_bloom, tmp_path):
    target = str(tmp_path / "model")
    randomise(LacosSentenceTransformer(tiny_bloom).add_lora(rank=2)).save_pretrained(target)
    merged = LacosSentenceTransformer(target).merge_adapter()
    merged.save_pretrained(target)
    assert not (tmp_path / "model" / "adapter").exists()
    np.testing.assert_array_equal(LacosSentenceTransformer(target).encode(TEXTS), merged.encode(TEXTS))


def test_a_base_is_described_by_where_it_is_from(tiny_bloom, tmp_path):
    assert describe_base("owner/model", None, "abc") == {"name": "owner/model", "revision": "abc"}
    local = {"name": tiny_bloom.name, "revision": None}
    assert describe_base(str(tiny_bloom), None, None) == {"path": str(tiny_bloom), **local}
    recorded = {"name": "owner/model", "revision": "abc"}
    assert describe_base(str(tmp_path), recorded, None) == recorded
    assert is_hub_name("owner/model")
    assert not any(is_hub_name(name) for name in (None, "model", "/owner/model", "a/b/c"))


@pytest.mark.parametrize("self_contained", [True, False])
def test_a_model_that_has_lost_a_file_says_which(self_contained, tiny_model, tmp_path):
    width = tiny_model.get_embedding_dimension()
    tiny_model.append(LacosDense(width, 8))
    tiny_model.append(LayerNorm(8))
    tiny_model.save(str(tmp_path / "model"), self_contained=self_contained)
    needed = {
        name
        for name in tree(tmp_path / "model")
        if Path(name).suffix in (".json", ".safetensors")
        and not name.startswith(("sentence_bert_config", "config_sentence_transformers", "tokenizer_config"))
    }
    assert len(needed) == (12 if self_contained else 10)
    for name in needed - {"lacos.json", "adapter_config.json"}:  # without these it is another kind of directory
        (tmp_path / "model" / name).rename(tmp_path / "kept")
        with pytest.raises(LacosError, match=rf"not whole \({name} is missing\)"):
            LacosSentenceTransformer(str(tmp_path / "model"))
        (tmp_path / "model" / name).write_bytes((tmp_path / "kept").read_bytes()[:-9])
        with pytest.raises(LacosError, match=rf"not whole \({name} is damaged\)"):
            LacosSentenceTransformer(str(tmp_path / "model"))
        (tmp_path / "kept").rename(tmp_path / "model" / name)
    LacosSentenceTransformer(str(tmp_path / "model"))


def test_a_lost_shard_is_named(tiny_bloom, tmp_path):
    model = LacosSentenceTransformer(str(tiny_bloom))
    model.save_pretrained(str(tmp_path))
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(LacosError, match=r"not whole \(model-00002-of-00002.safetensors is missing\)"):
        LacosSentenceTransformer(str(tmp_path))
