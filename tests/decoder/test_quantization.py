"""8-bit layers: the stored bytes survive everything, the products are what they claim."""

import copy
import os
import subprocess
import sys

import bitsandbytes as bnb
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lacos_st.decoder import kernels, quantization
from lacos_st.decoder.quantization import (
    LacosLinear8bit,
    convert_linear_,
    default_compute_dtype,
    resolve_compute_form,
)
from lacos_st.errors import LacosError

IN, OUT = 64, 96


def stock_layer(bias=True, dtype=torch.float32):
    torch.manual_seed(0)
    layer = bnb.nn.Linear8bitLt(IN, OUT, bias=bias, has_fp16_weights=False, threshold=6.0)
    layer.weight.data.normal_()
    layer = layer.to("cpu")
    if bias:
        layer.bias.data = torch.randn(OUT, dtype=dtype)
        layer.bias.requires_grad_(False)
    return layer


def lacos_layer(form, **kwargs):
    parent = nn.Sequential(stock_layer(**kwargs)).eval()
    assert convert_linear_(parent, form, form) == 1
    return parent[0]


def dense(layer):
    rows, absmax = layer.int8_weight()
    return rows * (absmax / 127)[:, None]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("form", "tolerance"), [("w8a8", 1.2e-2), ("w8a16", 1e-6), ("bnb", 1.2e-2)])
def test_products(form, tolerance, dtype, bias):
    layer = lacos_layer(form, bias=bias, dtype=dtype)
    x = torch.randn(3, 5, IN).to(dtype)
    expected = torch.nn.functional.linear(x.float(), dense(layer), layer.bias.float() if bias else None)
    y = layer(x)
    assert y.shape == (3, 5, OUT)
    assert y.dtype == dtype
    assert (y.float() - expected).norm() / expected.norm() < tolerance + (4e-3 if dtype == torch.bfloat16 else 0)


@pytest.mark.parametrize(("form", "tolerance"), [("w8a8", 1.2e-2), ("w8a16", 1e-6)])
def test_input_gradient_and_nothing_is_kept(form, tolerance):
    layer = lacos_layer(form).train()
    x = torch.randn(7, IN, requires_grad=True)
    weight = torch.randn(7, OUT)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        y = layer(x)
    (y * weight).sum().backward()
    expected = weight @ dense(layer)
    assert (x.grad - expected).norm() / expected.norm() < tolerance
    assert not any(7 in shape for shape in saved), "a frozen layer has no use for its activations in backward"


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-5])
def test_small_fp16_gradients_do_not_vanish(size):
    layer = lacos_layer("w8a16").train().half()
    x = torch.randn(7, IN).half().requires_grad_()
    dy = (size * torch.randn(7, OUT)).half()
    (dx,) = torch.autograd.grad(layer(x), x, dy)
    expected = dy.float() @ dense(layer)
    assert (dx.float() - expected).norm() < 1e-2 * expected.norm()


def test_bias_may_train():
    layer = lacos_layer("w8a16").train()
    layer.bias.requires_grad_(True)
    layer(torch.randn(7, IN)).sum().backward()
    torch.testing.assert_close(layer.bias.grad, torch.full((OUT,), 7.0))


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 6), scale=st.floats(1e-6, 1e6), other=st.floats(1e-6, 1e6))
def test_w8a8_rows_do_not_see_each_other(rows, scale, other):
    """Also with all-zero rows and rows of any size beside."""
    layer = lacos_layer("w8a8")
    x = torch.randn(rows, IN) * scale
    mates = torch.cat([torch.zeros(1, IN), x, torch.randn(2, IN) * other])
    torch.testing.assert_close(layer(mates)[1:-2], layer(x), rtol=0, atol=0)
    torch.testing.assert_close(layer(mates)[0], layer.bias.float())


def test_zero_rows_and_empty_input():
    for form in ("w8a8", "w8a16"):
        assert lacos_layer(form)(torch.randn(0, IN)).shape == (0, OUT)


def test_state_dict_is_bitsandbytes_own_and_loads_both_ways():
    ours, theirs = lacos_layer("w8a8"), stock_layer()
    ours(torch.randn(2, IN))
    saved, expected = ours.state_dict(), theirs.state_dict()
    assert list(saved) == list(expected)
    for key in expected:
        assert saved[key].dtype == expected[key].dtype
        assert torch.equal(saved[key], expected[key])
    torch.manual_seed(1)
    other = bnb.nn.Linear8bitLt(IN, OUT, has_fp16_weights=False).to("cpu")
    other.load_state_dict(saved)
    assert torch.equal(other.weight.data, theirs.weight.data)
    assert torch.equal(other.weight.SCB, theirs.weight.SCB)
    changed = {**expected, "weight": -expected["weight"], "SCB": expected["SCB"] * 2}
    ours.load_state_dict(changed)
    torch.testing.assert_close(dense(ours), -2 * (theirs.weight * (theirs.weight.SCB / 127)[:, None]))


def test_deepcopy_dtype_and_device_moves_keep_the_bytes():
    layer = lacos_layer("w8a8")
    x = torch.randn(4, IN)
    expected, (rows, scales) = layer(x), layer.int8_weight()
    twin = copy.deepcopy(nn.Sequential(layer))
    twin[0].weight.data.zero_()
    twin[0].weight.SCB.zero_()
    assert torch.equal(layer(x), expected), "a copy shares memory with its original"
    parent = nn.Sequential(layer).to(torch.bfloat16).to("cpu").float()
    torch.testing.assert_close(parent[0](x), expected, rtol=1e-2, atol=5e-2)  # its bias was in bf16
    assert layer.weight.SCB.dtype == torch.float32
    assert torch.equal(layer.int8_weight()[0], rows)
    assert torch.equal(layer.int8_weight()[1], scales)


def test_a_gpu_keeps_16_bit_activations():
    assert {resolve_compute_form("auto", "cuda", training) for training in (False, True)} == {"w8a16"}


@pytest.mark.parametrize("form", ["w8a8", "w8a16", "bnb"])
def test_weights_are_held_once(form):
    layer = lacos_layer(form)
    layer(torch.randn(2, IN))
    held = [layer.weight.data, layer.weight.CB, layer.state.CB]
    assert sum(t.numel() for t in held if t is not None) == IN * OUT


def test_unquantised_and_trainable_layers():
    layer = nn.Sequential(bnb.nn.Linear8bitLt(IN, OUT, has_fp16_weights=False))
    convert_linear_(layer)
    with pytest.raises(LacosError, match="move the model"):
        layer(torch.randn(1, IN))
    assert layer.to("cpu")(torch.randn(1, IN)).shape == (1, OUT)
    trainable = nn.Sequential(bnb.nn.Linear8bitLt(IN, OUT, has_fp16_weights=True))
    assert convert_linear_(trainable) == 0
    assert type(trainable[0]) is bnb.nn.Linear8bitLt


@pytest.fixture
def cpu(monkeypatch):
    """Pretend to be another CPU."""

    def pretend(isa="DEFAULT", **features):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: features.get("avx512_bf16", False))
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: features.get("amx_tile", False))
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)
        clear()

    def clear():
        quantization._has_fast_bf16.cache_clear()
        kernels._multiplies.cache_clear()

    yield pretend
    monkeypatch.undo()
    clear()


ZEN4 = {"avx2": True, "avx512_vnni": True, "avx512_bf16": True}
SAPPHIRE_RAPIDS = {**ZEN4, "avx512_fp16": True, "amx_tile": True}
HIDDEN_AMX = {**ZEN4, "avx512_fp16": True}
CASCADE_LAKE = {"avx2": True, "avx512_vnni": True}


@pytest.mark.parametrize(
    ("isa", "features", "fast"),
    [
        ("DEFAULT", ZEN4, True),
        ("AVX2", ZEN4, False),
        ("AVX512_CORE_VNNI", ZEN4, False),
        ("DEFAULT", SAPPHIRE_RAPIDS, True),
        ("AVX512_CORE_FP16", SAPPHIRE_RAPIDS, False),
        ("DEFAULT", HIDDEN_AMX, False),
        ("DEFAULT", CASCADE_LAKE, False),
    ],
)
def test_bf16_only_where_fast(cpu, monkeypatch, isa, features, fast):
    cpu(isa, **features)
    assert default_compute_dtype("cpu", "w8a16") == (torch.bfloat16 if fast else torch.float32)
    assert resolve_compute_form("auto", "cpu", training=False) == "w8a8"
    if kernels.library() is not None:  # they take fp32
        assert default_compute_dtype("cpu", "w8a8") == torch.float32
        assert resolve_compute_form("auto", "cpu", training=True) == "w8a8"
    monkeypatch.setattr(kernels, "library", lambda: None)
    assert default_compute_dtype("cpu", "w8a8") == (torch.bfloat16 if fast else torch.float32)
    assert resolve_compute_form("auto", "cpu", training=True) == ("w8a16" if fast else "w8a8")


@pytest.mark.parametrize("training", [False, True])
def test_int8_products_only_where_fast(cpu, monkeypatch, training):
    """Without VNNI PyTorch's int8 product is forty times slower than fp32: ours serves, or none."""
    if kernels.library() is not None and hasattr(kernels.library(), "multiply"):
        cpu(avx2=True)  # Zen 3
        assert resolve_compute_form("auto", "cpu", training) == "w8a8"
    monkeypatch.setattr(kernels, "library", lambda: None)
    cpu(avx2=True)
    assert resolve_compute_form("auto", "cpu", training) == "w8a16"
    cpu()
    assert resolve_compute_form("auto", "cpu", training) == "w8a16"


def test_forms():
    assert resolve_compute_form("bnb", "cpu", training=True) == "bnb"
    with pytest.raises(LacosError, match="w4a4"):
        resolve_compute_form("w4a4", "cpu", training=False)


def test_import_has_no_side_effect_on_bitsandbytes():
    code = (
        "import bitsandbytes as bnb; before = bnb.nn.Linear8bitLt.forward; import lacos_st.decoder.quantization; "
        "assert bnb.nn.Linear8bitLt.forward is before"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ})


def test_class_is_bitsandbytes_for_peft():
    assert isinstance(lacos_layer("w8a8"), bnb.nn.Linear8bitLt)
    assert issubclass(LacosLinear8bit, bnb.nn.Linear8bitLt)


def test_an_update_is_added_in_float_and_quantised_again():
    layer = lacos_layer("w8a16")
    before = dense(layer)
    delta = torch.randn(OUT, IN)
    layer.add_(delta)
    step = layer.int8_weight()[1][:, None] / 127
    # half a step, and what bitsandbytes loses by rounding to fp16 first
    assert ((dense(layer) - before - delta).abs() <= step * (0.5 + 127 / 2**11)).all()
    assert isinstance(layer.weight, bnb.nn.Int8Params)
