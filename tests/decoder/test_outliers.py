"""Columns that are not rounded: found from the weights alone, and what `w8a8` gains by them."""

import families
import torch
from peft import LoraConfig
from tiny import randomise

from lacos_st.decoder.fast_path import accelerate_
from lacos_st.decoder.outliers import OUTLIER_COLUMNS
from lacos_st.decoder.quantization import LacosLinear8bit, product_w8a8, quantize_rows
from lacos_st.decoder.rounding import Outliers
from lacos_st.model.model import LacosSentenceTransformer

OPTIONS = {"compute_form": "w8a8", "training_form": "w8a8"}


def columns(model):
    return [layer.outliers.columns.tolist() for layer in model.modules() if isinstance(layer, LacosLinear8bit)]


def test_they_are_the_largest_and_no_adapter_or_mode_changes_them(tiny_bloom, tmp_path):
    base = families.make("llama")
    wide = [5, 9, 40]
    for layer in base.layers:
        layer.input_layernorm.weight.data[wide] = 300.0
    directory = families.write("llama", tiny_bloom, tmp_path / "llama")
    base.save_pretrained(directory)
    model = LacosSentenceTransformer(directory, transformer_options=OPTIONS).transformer.model
    found = columns(model)
    assert {len(part) for part in found} == {OUTLIER_COLUMNS}
    for layer in model.layers:
        assert set(wide) <= set(layer.self_attn.q_proj.outliers.columns.tolist())
    model.add_adapter(LoraConfig(target_modules=["q_proj", "down_proj"]))
    randomise(model).train()
    trained = [parameter.requires_grad for parameter in model.parameters()]
    accelerate_(model, "w8a8", "w8a8")
    assert columns(model) == found
    assert model.training
    assert [parameter.requires_grad for parameter in model.parameters()] == trained


def test_other_forms_need_none(tiny_bloom, tmp_path):
    directory = families.write("llama", tiny_bloom, tmp_path / "llama")
    options = {"compute_form": "w8a16", "training_form": "bnb"}
    model = LacosSentenceTransformer(directory, transformer_options=options).transformer.model
    assert {layer.outliers for layer in model.modules() if isinstance(layer, LacosLinear8bit)} == {None}


def test_the_other_columns_are_rounded_with_a_scale_of_their_own():
    torch.manual_seed(0)
    x = torch.randn(20, 64)
    x[:, [3, 30]] *= 200
    weight, absmax = quantize_rows(torch.randn(32, 64))
    absmax = absmax.flatten() * 127
    exact = x.double() @ (weight.double() * absmax[:, None].double() / 127).t()
    columns = torch.tensor([3, 30])
    known = Outliers(
        columns, torch.ones(64).index_fill_(0, columns, 0), weight[:, columns].float() * (absmax / 127)[:, None]
    )
    error = [
        float((product_w8a8(x, weight, absmax, None, outliers).double() - exact).norm() / exact.norm())
        for outliers in (None, known)
    ]
    assert error[1] < 1e-3 < error[0]
