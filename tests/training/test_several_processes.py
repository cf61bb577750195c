"""What DDP sends, and what is said where several processes do not work yet."""

import pytest
import torch
from tiny import CORPUS
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from lacos_st.config import LacosConfig
from lacos_st.decoder.embedding_table import LacosEmbedding8bit
from lacos_st.errors import LacosError
from lacos_st.files import locked
from lacos_st.training.train import train


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


def test_several_processes_are_refused_before_one_finds_the_others_lock(tiny_bloom, tmp_path, monkeypatch):
    config = LacosConfig(base=str(tiny_bloom), output=str(tmp_path / "model"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with locked(tmp_path / "model.run"), pytest.raises(LacosError, match=r"2 processes.*one process"):
        train(config)
