"""`recipes/bloom-mini/pack.py`: layers in 8 bits, every entry of the table at its nearest of 16 levels."""

import doctest
import gzip
import json

import pack
import pytest
import tokenizer as recipe
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pack import fit_levels, pack_table
from safetensors.torch import load_file, save_file
from transformers import BloomConfig, BloomModel

from lacos_st.embedded import unpack as embedded
from lacos_st.embedded.packed_table import unpack_table
from lacos_st.errors import LacosError
from lacos_st.model.model import LacosSentenceTransformer


def test_examples():
    assert doctest.testmod(pack).failed == 0


def test_gaussian_entries_lose_what_sixteen_levels_must_lose():
    table = torch.randn(2000, 254, generator=torch.Generator().manual_seed(0))
    none = torch.zeros(254, dtype=torch.bool)
    error = (unpack_table(pack_table(table, none), none) - table).square().mean() / table.square().mean()
    assert 0.0090 < error < 0.0099  # Max (1960), table 1: 0.009497 for 16 levels


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 20),
    coarse=st.integers(1, 9),
    fine=st.integers(0, 3),
    seed=st.integers(0, 2**16),
)
def test_each_entry_takes_its_nearest_level_and_fine_columns_half_a_step(rows, coarse, fine, seed):
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(rows, coarse + fine, generator=generator) * 10 ** torch.randn(rows, 1, generator=generator)
    mask = torch.zeros(coarse + fine, dtype=torch.bool)
    mask[torch.randperm(coarse + fine, generator=generator)[:fine]] = True
    packed = pack_table(table, mask)
    assert packed["codes"].shape == (rows, (coarse + 1) // 2)
    restored = unpack_table(packed, mask)
    ratio = table[:, ~mask] / table[:, ~mask].square().mean(1, keepdim=True).sqrt()
    nearest = (ratio[..., None] - packed["levels"]).abs().amin(2)
    taken = (ratio - packed["levels"][_codes(packed, coarse)]).abs()
    torch.testing.assert_close(taken, nearest)
    codes, scale = packed["levels"][_codes(packed, coarse)], packed["scale"].float()[:, None]
    torch.testing.assert_close(restored[:, ~mask], codes * scale)
    best = (codes * table[:, ~mask]).sum(1, keepdim=True) / codes.square().sum(1, keepdim=True)
    torch.testing.assert_close(scale, best, rtol=2**-8, atol=0)
    step = packed["fine_scale"] / 127
    assert ((restored[:, mask] - table[:, mask]).abs() <= step * 0.5001).all()


def _codes(packed, columns):
    codes = packed["codes"].long()
    return torch.stack([codes & 15, codes >> 4], 2).flatten(1)[:, :columns]


def test_a_row_of_zeros_stays_so():
    none = torch.zeros(4, dtype=torch.bool)
    table = torch.tensor([[0.0] * 4, [1.0, 2.0, 3.0, 4.0]])
    assert unpack_table(pack_table(table, none), none)[0].tolist() == [0.0] * 4


@pytest.mark.parametrize("values", [torch.ones(5), torch.tensor([3.0]), torch.tensor([1.0, 1.0, 5.0, -2.0])])
def test_levels_of_few_values_are_those_values(values):
    assert set(fit_levels(values).tolist()) == set(values.tolist())


def test_pack_rounds_layers_by_less_than_half_a_step_and_the_table_to_16_levels(tmp_path):
    config = BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=2)
    model = BloomModel(config)
    with torch.no_grad():
        model.ln_f.weight[-2:] = 0
    model.save_pretrained(tmp_path / "full")
    recipe.build(["a text"], 300).save_pretrained(tmp_path / "full")
    pack.pack(tmp_path / "full", tmp_path / "packed")
    packed = load_file(tmp_path / "packed" / "model.safetensors")
    name = "h.0.self_attention.query_key_value"
    step = packed[f"{name}.SCB"][:, None] / 127
    error = (packed[f"{name}.weight"] * step - model.get_parameter(f"{name}.weight")).abs()
    assert (error <= step * 0.501).all()
    assert packed["word_embeddings.codes"].shape == (64, 15)
    table = {key.rpartition(".")[2]: packed[key] for key in packed if key.startswith("word_embeddings.")}
    error = unpack_table(table, model.ln_f.weight == 0) - model.word_embeddings.weight
    assert error.square().mean() < 0.02 * model.word_embeddings.weight.square().mean()
    assert (error[:, -2:].abs() <= table["fine_scale"] / 127 * 0.501).all()
    assert gzip.decompress((tmp_path / "packed" / "tokenizer.json.gz").read_bytes())[:1] == b"{"


def test_pack_names_what_is_missing_and_what_is_no_bloom(tmp_path):
    with pytest.raises(LacosError, match=r"has no config\.json"):
        pack.pack(tmp_path, tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(LacosError, match="'bert'"):
        pack.pack(tmp_path, tmp_path / "out")
    (tmp_path / "config.json").write_text('{"model_type": "bloom"}')
    save_file({"transformer.ln_f.bias": torch.tensor([0.0, torch.nan])}, tmp_path / "model.safetensors")
    with pytest.raises(LacosError, match=r"'ln_f\.bias'.*no numbers"):
        pack.pack(tmp_path, tmp_path / "out")


def test_pack_adapter_refuses_another_base(tmp_path):
    embedded.unpack("lacos-bloom", tmp_path / "model")
    pack.pack_adapter(tmp_path / "model", tmp_path / "same")
    packed = {p.relative_to(tmp_path / "same").as_posix(): p.read_bytes() for p in (tmp_path / "same").rglob("*.json")}
    for name, content in packed.items():
        assert json.loads(content) == json.loads((embedded.ASSETS / "lacos-bloom" / name).read_bytes()), name
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["h.0.self_attention.query_key_value.weight"] += 1
    save_file(weights, tmp_path / "model" / "model.safetensors")
    with pytest.raises(LacosError, match="not trained on the embedded"):
        pack.pack_adapter(tmp_path / "model", tmp_path / "other")


def test_pack_adapter_refuses_a_model_without_the_bases_modules(tmp_path):
    model = LacosSentenceTransformer("lacos-bloom")
    del model[-1]
    model.save(str(tmp_path / "model"))
    with pytest.raises(LacosError, match="has no 4_Normalize"):
        pack.pack_adapter(tmp_path / "model", tmp_path / "packed")
    assert not (tmp_path / "packed").exists()
