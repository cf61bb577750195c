"""The 8-bit embedding table: its bytes survive saving, and a model takes it for an ordinary one."""

import copy

import bitsandbytes as bnb
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lacos_st.decoder.embedding_table import LacosEmbedding8bit, quantize_embedding_, quantize_table


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    scale=st.floats(1e-7, 1e3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_table_survives_saving_bit_by_bit(seed, scale, dtype):
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(50, 32, generator=generator) * scale
    table[3] = 0
    embedding = LacosEmbedding8bit(table, dtype)
    saved = embedding.state_dict()
    assert list(saved) == ["weight"]
    assert saved["weight"].dtype == dtype
    rows, absmax = quantize_table(saved["weight"])
    assert torch.equal(rows, embedding.weight.data)
    assert torch.equal(absmax, embedding.absmax)
    other = LacosEmbedding8bit(torch.randn(50, 32), torch.float32)
    other.load_state_dict(saved)
    assert torch.equal(other.weight.data, rows)
    assert torch.equal(other.absmax, absmax)
    ids = torch.randint(0, 50, (2, 7), generator=generator)
    torch.testing.assert_close(other(ids), saved["weight"].float()[ids], rtol=8e-3, atol=1e-7)


def test_embedding_keeps_its_place_in_a_model():
    model = nn.Module()
    model.table = nn.Embedding(40, 8, padding_idx=3).bfloat16()
    model.get_input_embeddings = lambda: model.table
    model.set_input_embeddings = lambda new: setattr(model, "table", new)
    before = model.table.weight.detach().clone()
    quantize_embedding_(model)
    assert isinstance(model.table, bnb.nn.Embedding8bit)
    assert model.table.padding_idx == 3
    ids = torch.arange(40)
    assert model.table(ids).dtype == torch.bfloat16
    torch.testing.assert_close(model.table(ids), before, rtol=2e-2, atol=2e-2)
    assert copy.deepcopy(model.table).float()(ids).dtype == torch.float32
    assert quantize_embedding_(model).table is model.table
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict({"table.weight": torch.zeros(41, 8)})
    with pytest.raises(RuntimeError, match="Missing"):
        model.load_state_dict({})


def test_it_goes_to_another_process():
    import pickle
    from multiprocessing.reduction import ForkingPickler

    table = LacosEmbedding8bit(torch.randn(50, 16), torch.float32)
    ids = torch.tensor([[3, 7], [49, 0]])
    twin = pickle.loads(ForkingPickler.dumps(table))
    assert torch.equal(twin(ids), table(ids))


def test_no_ids_give_no_rows():
    table = LacosEmbedding8bit(torch.randn(50, 16), torch.float32)
    assert table(torch.zeros(0, dtype=torch.long)).shape == (0, 16)
