"""Two processes train what one trains, and stop, resume and fail as one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers.base.sampler import DefaultBatchSampler, ProportionalBatchSampler
from tiny import CORPUS
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import ConcatDataset, SubsetRandomSampler
from two_trainings import CASES, PAIRS, TRIPLETS, recipe, with_the_trainer, write_data

from lacos_st.decoder.embedding_table import LacosEmbedding8bit
from lacos_st.errors import LacosError
from lacos_st.model.model import LacosSentenceTransformer
from lacos_st.training import processes
from lacos_st.training.train import train


def similarity(a, b):
    """The least cosine of rows."""
    return float((np.sum(a * b, 1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


@pytest.fixture
def group(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_the_8_bit_table_is_not_sent_on_every_forward(group, tiny_model, monkeypatch):
    sent = []
    send = distributed._broadcast_coalesced
    monkeypatch.setattr(
        distributed,
        "_broadcast_coalesced",
        lambda group, tensors, *rest: (sent.append(tensors), send(group, tensors, *rest)),
    )
    tiny_model.register_buffer("small", torch.zeros(3))  # so that there is something to send
    parallel = DistributedDataParallel(tiny_model)
    sent.clear()
    parallel(tiny_model.preprocess([CORPUS[0]]))
    assert [[tuple(tensor.shape) for tensor in tensors] for tensors in sent] == [[(3,)]]
    table = tiny_model.transformer.model.get_input_embeddings()
    assert isinstance(table, LacosEmbedding8bit)


@pytest.fixture(scope="module")
def trained(tiny_bloom, tmp_path_factory):
    """A directory with what two processes have trained, and the same trained by one."""
    directory = tmp_path_factory.mktemp("trained")
    write_data(directory)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("two_trainings.py"), directory, tiny_bloom, port],
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return directory


@pytest.mark.parametrize("name", CASES)
def test_two_processes_learn_what_one_learns(name, trained, tiny_bloom):
    config = recipe(trained, str(tiny_bloom), f"one_{name}", **CASES[name])
    train(config)
    one, two = (LacosSentenceTransformer(trained / f"{number}_{name}") for number in ("one", "two"))
    texts = [text for row in TRIPLETS + PAIRS for text in row]
    assert similarity(one.encode(texts), two.encode(texts)) >= (0.99999 if name == "plain" else 0.9999)
    first, second = (json.loads((trained / f"{n}_{name}" / "training.json").read_text()) for n in ("one", "two"))
    assert (first["processes"], second["processes"]) == (1, 2)
    for key in ("steps", "best_step", "rows"):
        assert first[key] == second[key]
    losses = [[entry[key] for entry in record["log"] if key in entry]
              for record in (first, second) for key in ("loss", "eval_loss")]  # fmt: skip
    assert len(losses[0]) == first["steps"]
    assert losses[2] == pytest.approx(losses[0], abs=2e-3 if name == "plain" else 2e-2)
    assert losses[3] == pytest.approx(losses[1], abs=2e-3 if name == "plain" else 2e-2)
    assert max(losses[0]) - min(losses[0]) > 0.1


def test_the_trainer_used_directly_learns_the_same_adapter(trained, tiny_bloom):
    one = with_the_trainer(str(tiny_bloom))
    begun = LacosSentenceTransformer(tiny_bloom, transformer_options={"quantization": "none"})
    assert not any("lora" in name for name, _ in begun.named_parameters())
    for rank in range(2):
        two = torch.load(trained / f"trainer.{rank}")
        assert one.keys() == two.keys()
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, atol=1e-5, rtol=0)
    assert all(value.abs().max() > 1e-3 for name, value in one.items() if "lora_B" in name)


def test_a_run_that_goes_on_in_a_later_epoch_ends_bit_for_bit_the_same(trained):
    cut, uncut = (load_file(trained / name / "adapter" / "adapter_model.safetensors") for name in ("cut", "uncut"))
    assert all(torch.equal(cut[key], uncut[key]) for key in uncut)
    logs = [json.loads((trained / name / "training.json").read_text())["log"] for name in ("cut", "uncut")]
    one, two = ([(entry["step"], entry["loss"]) for entry in log if "loss" in entry] for log in logs)
    assert one == two


def test_an_interruption_of_one_stops_all_and_one_process_goes_on(trained, tiny_bloom, caplog):
    for rank in range(2):
        assert "TrainingInterrupted: Stopped at step 3" in (trained / f"errors.{rank}").read_text().splitlines()[0]
    train(recipe(trained, str(tiny_bloom), "halves"))
    assert "had 2 process(es) and goes on with 1" in caplog.text
    whole, halves = (LacosSentenceTransformer(trained / name) for name in ("two_plain", "halves"))
    texts = [text for row in TRIPLETS for text in row]
    assert similarity(whole.encode(texts), halves.encode(texts)) >= 0.99999


def test_the_first_process_tells_of_mistakes(trained):
    first, second = ((trained / f"errors.{rank}").read_text().splitlines()[1:] for rank in range(2))
    for error, part in zip(first, ("missing.csv", "choose 8 or 10", "exists already"), strict=True):
        assert not error.startswith("ToldByFirstError")
        assert part in error
    assert [error.partition(":")[0] for error in second] == ["ToldByFirstError", "LacosError", "ToldByFirstError"]


def test_each_row_is_in_one_part_of_its_batch(monkeypatch):
    monkeypatch.setattr(processes, "PartialState", lambda: SimpleNamespace(num_processes=3))
    data = ConcatDataset([range(20), range(100, 117)])  # tails of 8 and 5 rows, then of 2
    drawn = []
    for kind in (ProportionalBatchSampler, processes.SharedBatches):
        generator = torch.Generator()
        sources = [
            DefaultBatchSampler(SubsetRandomSampler(range(len(part)), generator=generator), 12, drop_last=False)
            for part in data.datasets
        ]
        sampler = kind(data, sources, generator, seed=5)
        drawn.append(list(sampler))
        assert len(drawn[-1]) == len(sampler)
    whole, parts = drawn
    assert len(parts) == 3 * len(whole)
    for batch in whole:
        three, parts = parts[:3], parts[3:]
        assert len({len(part) for part in three}) == 1
        assert [row for part in three for row in part] == batch[: len(batch) // 3 * 3]


@pytest.mark.parametrize("name", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_sharded_parameters_are_refused(name, monkeypatch):
    monkeypatch.setenv(name, "true")
    with pytest.raises(LacosError, match="cannot shard"):
        processes.join()


def test_one_process_does_not_take_several_gpus(monkeypatch, tiny_model):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(LacosError, match="nproc-per-node 4"):
        processes.join()
    with pytest.raises(LacosError, match="DataParallel"):
        tiny_model._replicate_for_data_parallel()  # as torch's `replicate` does, which needs GPUs
    assert hasattr(torch.nn.Module, "_replicate_for_data_parallel")
