"""The embedded models: the package holds what is unpacked, unpacking is atomic, samples are readable."""

import gzip
import json
import os
import subprocess
import sys

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer, BloomModel

from lacos_st.embedded import unpack as embedded
from lacos_st.embedded.names import sample_path
from lacos_st.errors import LacosError
from lacos_st.files import cache_directory
from lacos_st.model.model import LacosSentenceTransformer


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("base") / "bloom-mini"
    embedded.unpack("bloom-mini", directory)
    return directory


def test_stock_transformers_reads_the_unpacked_base(base):
    model = BloomModel.from_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.convert_tokens_to_ids(["<unk>", "<s>", "</s>", "<pad>"]) == [0, 1, 2, 3]
    assert tokenizer.padding_side == "right"
    assert tokenizer("hello")["input_ids"][-1] == tokenizer.eos_token_id
    assert model.h[0].mlp.dense_h_to_4h.weight.dtype == torch.int8


def test_packed_and_unpacked_hold_the_same_layers(base):
    packed = load_file(embedded.ASSETS / "bloom-mini" / "model.safetensors")
    unpacked = load_file(base / "model.safetensors")
    assert unpacked.keys() - packed.keys() == {"word_embeddings.weight"}
    for key in unpacked.keys() & packed.keys():
        assert torch.equal(unpacked[key], packed[key]), key


def test_assets_stay_small():
    sizes = {p: p.stat().st_size for p in embedded.ASSETS.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert sum(sizes.values()) < 15_000_000
    assert sum(size for path, size in sizes.items() if "bloom-mini" in path.parts) <= 12_000_000


def test_unpack_refuses_a_directory_in_use_and_an_unknown_name(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note.txt").write_text("keep")
    with pytest.raises(LacosError, match="not empty"):
        embedded.unpack("bloom-mini", tmp_path / "mine")
    assert (tmp_path / "mine" / "note.txt").read_text() == "keep"
    with pytest.raises(LacosError, match="bloom-max"):
        embedded.unpack("bloom-max", tmp_path / "other")
    with pytest.raises(LacosError, match="bloom-max"):
        embedded.embedded_directory("bloom-max")


def test_a_failed_unpack_leaves_nothing(tmp_path, monkeypatch):
    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(embedded.shutil, "copyfile", full_disk)
    with pytest.raises(LacosError, match="No space left"):
        embedded.unpack("bloom-mini", tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_cache_directory_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("LACOS_CACHE", raising=False)
    assert cache_directory() == tmp_path / "xdg" / "lacos-st"
    monkeypatch.setenv("LACOS_CACHE", str(tmp_path / "own"))
    assert cache_directory() == tmp_path / "own" / "lacos-st"


UNPACK = "from lacos_st.embedded.unpack import embedded_directory as e; print(e('bloom-mini'))"


def test_unpacking_to_a_disk_that_takes_no_more_is_an_error(tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (900_000, before[1]))  # bytes in a file: as a disk that is full
    try:
        with pytest.raises(LacosError, match=r"Unpacking 'bloom-mini' to .* failed: .*os error"):
            embedded.unpack("bloom-mini", tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_many_processes_unpack_at_once_and_agree(tmp_path):
    environment = {**os.environ, "LACOS_CACHE": str(tmp_path)}
    workers = [
        subprocess.Popen([sys.executable, "-c", UNPACK], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    directories = {worker.communicate(timeout=200)[0].strip() for worker in workers}
    assert [worker.returncode for worker in workers] == [0, 0]
    (directory,) = directories
    assert (embedded.Path(directory) / "model.safetensors").is_file()
    assert [path for path in tmp_path.rglob("*") if path.name.startswith(".")] == []


def test_a_second_call_reads_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LACOS_CACHE", str(tmp_path))
    first = embedded.embedded_directory("bloom-mini")
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    assert embedded.embedded_directory("bloom-mini") == first
    assert (first / "model.safetensors").stat().st_mtime_ns == stamp


TRAIN = ["nli-train", "es-train", "fr-train", "pt-train", "it-train", "across-train"]


@pytest.mark.parametrize("name", [*TRAIN, "nli-dev"])
def test_samples_are_triplets(name):
    with gzip.open(sample_path(name), "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    assert len(rows) >= 500
    assert all(set(row) == {"anchor", "positive", "negative"} and all(row.values()) for row in rows)


def test_no_held_out_anchor_is_trained_on_and_no_sts_sentence_is_in_the_samples():
    def sentences(name):
        with gzip.open(sample_path(name), "rt", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    train, held = [row for name in TRAIN for row in sentences(name)], sentences("nli-dev")
    assert not {row["anchor"].lower() for row in train} & {row["anchor"].lower() for row in held}
    tested = set()
    for path in sample_path("sts17").glob("*.jsonl.gz"):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                tested |= {row["sentence1"].lower(), row["sentence2"].lower()}
    assert len(tested) > 500
    assert not tested & {text.lower() for row in train + held for text in row.values()}


def test_an_unknown_sample_names_the_known_ones():
    with pytest.raises(LacosError, match=r"nli-train, es-train, .*, nli-dev, sts17"):
        sample_path("nli-test")


def test_stock_sentence_transformers_loads_the_unpacked_model(tmp_path):
    embedded.unpack("lacos-bloom", tmp_path / "model")
    stock = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    ours = LacosSentenceTransformer(str(tmp_path / "model"), device="cpu")
    texts = ["A man plays a guitar.", "Um homem toca violão.", "股市下跌。"]
    a = stock.encode(texts)
    b = ours.encode(texts)  # of length 1, as the base has it
    assert a.shape == b.shape == (3, 512)
    assert (a * b).sum(1).min() >= 0.999
    assert ours.transformer.adapter_names == ["default"]
    with_adapter = ours.encode(texts)
    for layer in ours.modules():
        if isinstance(layer, LoraLayer):
            layer.enable_adapters(False)
    assert abs(ours.encode(texts) - with_adapter).max() > 1e-3  # the adapter does something: without one 0
