"""Fused passes: what they compute is what the modules computed whose place they took."""

import copy

import families
import pytest
import torch
from torch import nn
from torch.nn import functional

from lacos_st.decoder import kernels
from lacos_st.decoder.fused import FusedGatedMLP, FusedRMSNorm
from lacos_st.decoder.quantization import LacosLinear8bit
from lacos_st.model.model import LacosSentenceTransformer

pytestmark = pytest.mark.skipif(kernels.library() is None, reason="no C compiler here")
OPTIONS = {"compute_form": "w8a8", "training_form": "w8a8"}


def quantised_reference(y, inliers):
    kept = y * inliers
    scale = kept.abs().amax(1) / 127
    return (kept / scale[:, None]).round().to(torch.int8), scale


@pytest.mark.parametrize("width", [64, 100])
@pytest.mark.parametrize("gelu", [False, True])
def test_a_gate_is_computed_and_rounded(gelu, width):
    torch.manual_seed(0)
    gate, up, inliers = torch.randn(7, width) * 3, torch.randn(7, width), torch.ones(width)
    inliers[[2, 9]] = 0
    y, q, s = kernels.gate_quantize(gate, up, inliers, gelu)
    exact = (
        functional.gelu(gate.double(), approximate="tanh") if gelu else functional.silu(gate.double())
    ) * up.double()
    torch.testing.assert_close(y.double(), exact, atol=2e-6, rtol=2e-6)
    expected, scale = quantised_reference(y, inliers)
    torch.testing.assert_close(s, scale)
    assert (q.int() - expected.int()).abs().max() <= 1
    assert not q[:, [2, 9]].any()
    whole, q, _ = kernels.gate_quantize(gate, up, None, gelu)
    assert torch.equal(whole, y)
    assert q[:, [2, 9]].any()


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_norm_is_computed_and_rounded(offset):
    torch.manual_seed(0)
    norm = FusedRMSNorm(nn.Parameter(torch.randn(96)), 1e-6, offset, None)
    x = torch.randn(2, 5, 96) * 30
    with torch.no_grad():
        exact = (
            x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt() * (norm.weight.double() + offset)
        )
        torch.testing.assert_close(norm(x).double(), exact, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(norm(x).double(), exact, atol=1e-5, rtol=1e-5)  # with gradients: PyTorch's operations
    norm(x).sum().backward()
    assert norm.weight.grad is not None


@pytest.mark.parametrize(
    ("family", "norms", "gates"), [("llama", 9, 4), ("gemma3", 25, 4), ("phi3", 9, 0), ("opt", 0, 0)]
)
def test_a_model_gets_them_where_they_compute_the_same(family, norms, gates, tiny_bloom, tmp_path):
    directory = families.write(family, tiny_bloom, tmp_path / family)
    model = LacosSentenceTransformer(directory, transformer_options=OPTIONS).transformer.model
    assert sum(isinstance(module, FusedRMSNorm) for module in model.modules()) == norms
    assert sum(isinstance(module, FusedGatedMLP) for module in model.modules()) == gates
    ids = torch.arange(4, 60)[None]
    with torch.no_grad():
        fused = model(input_ids=ids).last_hidden_state
    unfused = model(input_ids=ids).last_hidden_state.detach()  # with gradients each layer rounds by itself
    assert torch.cosine_similarity(fused, unfused, dim=-1).min() > 0.9995
    assert set(model.state_dict()) == set(copy.deepcopy(model).state_dict())


def test_layers_that_are_given_one_tensor_round_it_once(tiny_bloom, tmp_path, monkeypatch):
    directory = families.write("qwen2", tiny_bloom, tmp_path / "qwen2")
    model = LacosSentenceTransformer(directory, transformer_options=OPTIONS).transformer.model
    layers = sum(isinstance(module, LacosLinear8bit) for module in model.modules())
    real, rounded = kernels.quantize, []
    monkeypatch.setattr(kernels, "quantize", lambda *args: rounded.append(1) or real(*args))
    with torch.no_grad():
        model(input_ids=torch.arange(4, 40)[None])
    assert layers == 7 * 4
    assert len(rounded) == 4  # what attention gives: norms and gates round their own
