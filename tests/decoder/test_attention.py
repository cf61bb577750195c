"""Fused and folded attention equals ALiBi by its definition."""

import math

import pytest
import torch

from lacos_st.decoder.attention import alibi_slopes, attend
from lacos_st.decoder.packing import plan

HIDDEN, HEADS = 48, 6  # no power of 2: ALiBi's other slopes


@pytest.mark.parametrize("heads", [1, 3, 8, 12])
def test_slopes_are_transformers(heads):
    from transformers.models.bloom.modeling_bloom import _get_alibi_slopes

    torch.testing.assert_close(torch.tensor(alibi_slopes(heads)), _get_alibi_slopes(heads, torch.device("cpu")))


MODES = ["causal", "bidirectional", "symmetric"]


def eager_attention(qkv, lengths, heads, mode):
    """ALiBi attention by its definition, in fp64, sequence by sequence."""
    hidden = qkv.shape[1] // 3
    slopes = torch.tensor(alibi_slopes(heads), dtype=torch.double)[:, None, None]
    outputs, start = [], 0
    for length in lengths:
        part = qkv[start : start + length].double().view(length, heads, 3, hidden // heads)
        q, k, v = part.permute(2, 1, 0, 3)
        distance = torch.arange(length)[None, :] - torch.arange(length)[:, None]
        bias = -slopes * distance.abs() if mode == "symmetric" else slopes * torch.arange(length)
        scores = q @ k.mT / math.sqrt(hidden // heads) + bias
        if mode == "causal":
            scores = scores.masked_fill(distance > 0, -math.inf)
        outputs.append((scores.softmax(-1) @ v).transpose(0, 1).reshape(length, hidden))
        start += length
    return torch.cat(outputs)


@pytest.mark.parametrize("mode", MODES)
def test_bf16_gradients_are_fp64s_to_rounding(mode):
    torch.manual_seed(0)
    lengths = [128, 96, 12, 10, 10, 3, 1]
    qkv = torch.randn(sum(lengths), 3 * HIDDEN).bfloat16().requires_grad_()
    dy = torch.randn(sum(lengths), HIDDEN).bfloat16()
    (ours,) = torch.autograd.grad(attend(qkv, layout_of(lengths), HEADS, mode), qkv, dy)
    (reference,) = torch.autograd.grad(eager_attention(qkv, lengths, HEADS, mode), qkv, dy.double())
    assert (ours.double() - reference.double()).norm() < 1e-2 * reference.double().norm()


def layout_of(lengths):
    boundaries = torch.tensor([0, *sorted(lengths, reverse=True)]).cumsum(0)
    return plan(1, sum(lengths), torch.device("cpu"), None, boundaries)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("lengths", [[12, 10, 10, 3, 1], [300, 300, 160, 5]])
def test_attention_by_definition(lengths, mode):
    torch.manual_seed(0)
    qkv = torch.randn(sum(lengths), 3 * HIDDEN, requires_grad=True)
    ours = attend(qkv, layout_of(lengths), HEADS, mode)
    reference = eager_attention(qkv, lengths, HEADS, mode)
    # slope x position is up to 150 here, of which fp32 keeps 1e-5
    torch.testing.assert_close(ours.double(), reference, atol=2e-5, rtol=1e-5)
    weight = torch.randn_like(ours)
    (actual,) = torch.autograd.grad((ours * weight).sum(), qkv)
    (expected,) = torch.autograd.grad((reference * weight).sum(), qkv)
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("length", [64, 2048])
def test_bf16_attention_does_not_lose_precision_with_length(length):
    torch.manual_seed(0)
    heads, hidden = 16, 1024
    qkv = torch.randn(length, 3 * hidden).bfloat16()
    with torch.no_grad():
        ours = attend(qkv, layout_of([length]), heads)
        reference = eager_attention(qkv, [length], heads, "causal")
    assert (ours.double() - reference).norm() / reference.norm() < 3e-3
