"""LoRA over 8-bit layers as one function: values and gradients are those of PEFT's own forward pass."""

import copy

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear8bitLt
from torch import nn

from lacos_st.decoder import kernels
from lacos_st.decoder.lora import LacosLoraLinear, fuse_lora_
from lacos_st.decoder.quantization import convert_linear_

pytestmark = pytest.mark.skipif(kernels.library() is None, reason="no C compiler here")


@pytest.fixture(params=[True, False], ids=["bias", "no bias"])
def layers(request):
    """The same layer with an adapter, as PEFT's and as ours, with four outlier columns."""
    torch.manual_seed(0)
    linear = nn.Linear(48, 80, bias=request.param)
    eight = bnb.nn.Linear8bitLt(48, 80, bias=request.param, has_fp16_weights=False)
    eight.load_state_dict(linear.state_dict())
    holder = nn.ModuleDict({"layer": eight.to("cpu")}).requires_grad_(False)
    convert_linear_(holder, "w8a8", "w8a8")
    columns = torch.tensor([3, 7, 20, 41])
    holder["layer"].keep_outliers(columns, torch.ones(48).index_fill_(0, columns, 0))
    holder.is_loaded_in_8bit = True
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=6, target_modules=["layer"], lora_dropout=0.3), holder)
    nn.init.normal_(holder["layer"].lora_B["default"].weight)
    ours = copy.deepcopy(holder)
    fuse_lora_(ours)
    assert type(holder["layer"]) is Linear8bitLt
    assert type(ours["layer"]) is LacosLoraLinear
    return holder["layer"], ours["layer"]


def run(layer, x):
    x = x.clone().requires_grad_()
    torch.manual_seed(1)  # the same dropout
    y = layer(x)
    (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
    parts = {key: p.grad for key, p in layer.named_parameters() if p.grad is not None}
    assert {key.split(".")[0] for key in parts} == {"lora_A", "lora_B"}
    found = [y.detach(), x.grad, *parts.values()]
    layer.zero_grad()
    return found


@pytest.mark.parametrize("training", [True, False])
def test_values_and_gradients_are_pefts(layers, training):
    theirs, ours = (layer.train(training) for layer in layers)
    x = torch.randn(3, 5, 48)
    x[..., 7] *= 100
    for expected, found in zip(run(theirs, x), run(ours, x), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_what_it_does_not_serve_is_pefts(layers):
    theirs, ours = (layer.eval() for layer in layers)
    x = torch.randn(5, 48)
    for form in ("w8a16", "bnb"):
        for layer in layers:
            layer.base_layer.compute_form = form
        torch.testing.assert_close(ours(x), theirs(x))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(ours(x), theirs(x))
    for layer in layers:
        layer.enable_adapters(False)
    torch.testing.assert_close(ours(x), theirs(x))
