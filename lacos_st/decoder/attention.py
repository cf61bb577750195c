"""ALiBi attention over packed tokens: exact, causal or to both sides, without padding a batch.

Shapes: N packed tokens, A heads of D, T the length of a group's sequences.

BLOOM's ALiBi adds ``slope[a] * j`` to the score of key j; softmax ignores what is constant along a row, so under a
causal mask that is ALiBi's ``-slope * (i - j)``. Sequences attend in groups of similar length (`packing.py`):

- Up to `SHORT` tokens: a group is one fused call with a (A, T, T) bias that all its sequences share, or a (A, 1, T)
  bias a sequence where it is the key's alone. Pads, if any, sit on the right, where the causal mask or one of keys
  hides them. Encoding in ``w8a8`` on a CPU has a kernel of its own up to 64 tokens, which needs no padding either.
- Longer: the bias is a product of a number per head and a number per key, so it moves into a few extra columns
  of q and k (`_fold_alibi`) and plain attention computes it with memory linear in T. Positions and slopes
  are split over columns such that every factor is exact in bf16.
- On CUDA: all sequences in one `varlen_attn` call over the same extra columns.

transformers adds the bias in the model's dtype to a materialised score matrix; in bf16 that costs precision with
length (relative error 0.5 at 2,048 tokens, 0.002 here).

Two forms let tokens see both sides. ``"bidirectional"`` is what transformers makes of BLOOM where its configuration
says ``is_causal: false``: the bias stays ``slope * j`` and favours the end of a text, and stock software reads the
model. ``"symmetric"`` has ALiBi's ``-slope * |i - j|``, which only this package computes.
"""

import math
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PretrainedConfig

from lacos_st.decoder import kernels
from lacos_st.decoder.packing import SHORT, Group, Layout
from lacos_st.errors import LacosError

Mode = Literal["causal", "bidirectional", "symmetric"]

# Up to this many tokens the C kernel beats the fused bias (twofold where lengths differ); at 128 it loses.
_KERNEL_LONGEST = 64
# Query rows at a time in long symmetric attention: bounds the bias at (heads, chunk, T).
_SYMMETRIC_CHUNK = 256
ALIBI_COLUMNS = 8  # columns; fused kernels want head sizes that are multiples of 8


def attention_mode(config: PretrainedConfig) -> Mode:
    """What a token sees in a model of this configuration.

    Args:
        config: transformers' ``is_causal`` says whether it is causal or bidirectional; ``lacos_attention:
            "symmetric"``, which transformers cannot express, counts first.

    Returns:
        ``"causal"``, ``"bidirectional"`` or ``"symmetric"``; see `attention.py`.

    Raises:
        LacosError: ``lacos_attention`` has another value.

    >>> from transformers import BloomConfig
    >>> attention_mode(BloomConfig()), attention_mode(BloomConfig(is_causal=False))
    ('causal', 'bidirectional')
    """
    asked = getattr(config, "lacos_attention", None)
    if asked == "symmetric":
        return "symmetric"
    if asked not in (None, "causal"):  # the latter was written beside `is_causal` once
        raise LacosError(f"config.lacos_attention is {asked!r}: it is 'symmetric' or absent; is_causal says the rest.")
    return "causal" if getattr(config, "is_causal", True) else "bidirectional"


def set_attention_mode_(config: PretrainedConfig, mode: Mode) -> None:
    """Write ``mode`` where `attention_mode` and, as far as it knows the mode, transformers read it."""
    if mode != attention_mode(config):
        config.is_causal = mode == "causal"
        vars(config).pop("lacos_attention", None)
        if mode == "symmetric":
            config.lacos_attention = mode


def alibi_slopes(heads: int) -> list[float]:
    """Return ALiBi's slope for each head, as BLOOM computes it.

    Source: Press et al. 2022, https://arxiv.org/abs/2108.12409.

    Args:
        heads: Number of attention heads; any positive number.

    Returns:
        ``heads`` slopes in (0, 1).

    >>> alibi_slopes(2)
    [0.0625, 0.00390625]
    """
    power = 2 ** math.floor(math.log2(heads))
    base = 2 ** -(2 ** -(math.log2(power) - 3))
    slopes = [base**i for i in range(1, power + 1)]
    if power != heads:
        base = 2 ** -(2 ** -(math.log2(2 * power) - 3))
        slopes += [base**i for i in range(1, 2 * (heads - power) + 1, 2)]
    return slopes


@lru_cache(maxsize=4)
def _slopes(heads: int) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(alibi_slopes(heads), dtype=torch.float32, device="cpu")


@lru_cache(maxsize=16)
def _bias(heads: int, length: int, mode: Mode, dtype: torch.dtype, device: torch.device) -> Tensor:
    """ALiBi by distance, and the causal mask, as one (1, A, T, T) bias that a group shares."""
    with torch.inference_mode(False):  # cached: may serve a training step later
        slopes = torch.tensor(alibi_slopes(heads), dtype=torch.float64, device="cpu")[:, None, None]
        position = torch.arange(length, device="cpu")
        distance = position[None, :] - position[:, None]
        bias = -slopes * distance.abs()
        if mode == "causal":
            bias = bias.masked_fill(distance > 0, -math.inf)
        return bias[None].to(dtype).to(device)


def _key_bias(heads: int, group: Group, dtype: torch.dtype, device: torch.device) -> Tensor:
    """ALiBi by the key alone, (S or 1, A, 1, T): 0 at each sequence's last key, the favoured one, for 16 bits' sake."""
    position = torch.arange(group.length, device=device)
    last = group.length - 1 if group.key_mask is None else group.key_mask.sum(-1, keepdim=True) - 1
    slopes = _slopes(heads).to(device)[:, None, None]
    return (slopes * (position - last)).to(dtype).view(-1, heads, 1, group.length)


@lru_cache(maxsize=16)
def _fold_alibi(
    heads: int, head_dim: int, length: int, dtype: torch.dtype, device: torch.device, first: int = 0
) -> tuple[Tensor, Tensor]:
    """Return extra columns (A, 8) for q and (T, 8) for k whose product is ``slope * position * sqrt(D)``.

    Positions run from ``first``, which softmax ignores; products are best near 0.

    In 16 bits a number is split into a sum of three that are each exact (slopes) or into a multiple of 256
    and a rest below 256 (positions); products of two 16-bit numbers are exact in the fp32 in which kernels
    accumulate.
    """
    with torch.inference_mode(False):
        slope = torch.tensor(alibi_slopes(heads), dtype=torch.float64, device="cpu") * math.sqrt(head_dim)
        q, k = (torch.zeros(rows, ALIBI_COLUMNS, dtype=torch.float32, device="cpu") for rows in (heads, length))
        position = torch.arange(first, first + length, device="cpu")
        for column in range(3):
            part = slope.to(dtype)
            slope = slope - part.double()
            q[:, column] = q[:, column + 3] = part.float()
            k[:, column] = position // 256 * 256
            k[:, column + 3] = position % 256
        return q.to(dtype).to(device), k.to(dtype).to(device)


def _attend_long(q: Tensor, k: Tensor, v: Tensor, mode: Mode, dropout: float) -> Tensor:
    """Attention of one or more equally long sequences (S, A, T, D) without a (T, T) bias."""
    heads, length, dim = q.shape[1:]
    if mode == "symmetric":
        return _attend_long_symmetric(q, k, v, dropout)
    first = 1 - length if mode == "bidirectional" else 0  # the last keys, which it favours, are at 0
    extra_q, extra_k = _fold_alibi(heads, dim, length, q.dtype, q.device, first)
    q = torch.cat([q, extra_q[None, :, None].expand(*q.shape[:3], ALIBI_COLUMNS)], -1)
    k = torch.cat([k, extra_k[None, None].expand(*k.shape[:3], ALIBI_COLUMNS)], -1)
    v = functional.pad(v, (0, ALIBI_COLUMNS))  # fused kernels want one head size for all three
    causal, scale = mode == "causal", dim**-0.5
    out = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=causal, scale=scale)
    return out[..., :dim]


def _attend_long_symmetric(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """Symmetric ALiBi does not fold into columns: take an (A, chunk, T) bias for some queries at a time."""
    heads, length = q.shape[1:3]
    slopes = _slopes(heads).to(q.device)[:, None, None]
    position = torch.arange(length, device=q.device)
    chunks: list[Tensor] = []
    for part in q.split(_SYMMETRIC_CHUNK, dim=2):
        rows = position[len(chunks) * _SYMMETRIC_CHUNK :][: part.shape[2], None]
        bias = (-slopes * (position - rows).abs())[None].to(q.dtype)
        chunks.append(functional.scaled_dot_product_attention(part, k, v, attn_mask=bias, dropout_p=dropout))
    return torch.cat(chunks, 2)


def _attend_varlen(qkv: Tensor, layout: Layout, mode: Mode) -> Tensor:
    """CUDA: attention of all sequences in one call over packed (N, A, 3, D) -> (N, A, D)."""
    from torch.nn.attention.varlen import varlen_attn

    heads, _, dim = qkv.shape[1:]
    extra_q, extra_k = _fold_alibi(heads, dim, layout.longest, qkv.dtype, qkv.device)
    starts = layout.cu_seqlens[:-1].repeat_interleave(layout.cu_seqlens.diff(), output_size=len(qkv))
    position = torch.arange(len(qkv), device=qkv.device) - starts
    q = torch.cat([qkv[:, :, 0], extra_q.expand(len(qkv), -1, -1)], -1)
    k = torch.cat([qkv[:, :, 1], extra_k.index_select(0, position).unsqueeze(1).expand(-1, heads, -1)], -1)
    v = functional.pad(qkv[:, :, 2], (0, ALIBI_COLUMNS))
    cu, longest, window = layout.cu_seqlens, layout.longest, (-1, 0 if mode == "causal" else -1)
    out: Any = varlen_attn(q, k, v, cu, cu, longest, longest, scale=dim**-0.5, window_size=window)
    return out[..., :dim]


class _Gather(torch.autograd.Function):
    """``x[forward]`` with gradient ``dy[backward]``: a gather both ways, no scatter-add.

    Exact where each row of ``x`` is read at one place that matters, namely ``backward``, and the gradient
    elsewhere is 0.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: Tensor, backward: Tensor) -> Tensor:
        ctx.save_for_backward(backward)
        return x.index_select(0, forward)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0].index_select(0, ctx.saved_tensors[0]), None, None


class _ProductsBackward(torch.autograd.Function):
    """Fused attention whose gradient is computed with plain products.

    PyTorch's fused backward pass is slow on a CPU in bf16: 95 ms against 10 (512 sequences of 20 tokens, 8 heads of
    32; `benchmarks/attention.py`). What it saves, a (T, T) matrix a head, is small in a short group.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v, bias)
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, bias = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        weights = (torch.matmul(q * scale, k.transpose(-1, -2)).float() + bias).softmax(-1)
        dweights = torch.matmul(grads[0], v.transpose(-1, -2)).float()
        dscores = weights * (dweights - (weights * dweights).sum(-1, keepdim=True))
        dscores = dscores.mul_(scale).to(q.dtype)
        dv = torch.matmul(weights.to(q.dtype).transpose(-1, -2), grads[0])
        return torch.matmul(dscores, k), torch.matmul(dscores.transpose(-1, -2), q), dv, None


def attend(qkv: Tensor, layout: Layout, heads: int, mode: Mode = "causal", dropout: float = 0.0) -> Tensor:
    """ALiBi attention over packed tokens.

    Args:
        qkv: (N, 3H) as BLOOM's fused projection returns it: per head its query, key and value.
        layout: The batch's packing.
        heads: Number of heads.
        mode: What a token sees; see the head of this file.
        dropout: Probability on the attention weights.

    Returns:
        (N, H)
    """
    n, hidden = qkv.shape[0], qkv.shape[1] // 3
    dim = hidden // heads
    if qkv.is_cuda and qkv.dtype != torch.float32 and mode != "symmetric" and dropout == 0:
        return _attend_varlen(qkv.view(n, heads, 3, dim), layout, mode).reshape(n, hidden)
    outputs: list[Tensor] = []
    for group in layout.groups:
        rows = qkv if len(layout.groups) == 1 else qkv[group.start : group.stop]
        if group.pad is not None:
            rows = _Gather.apply(rows, group.pad, group.unpad)
        parts = rows.view(group.sequences, group.length, heads, 3, dim)
        q, k, v = parts.permute(3, 0, 2, 1, 4).unbind(0)
        if group.length > SHORT:
            out = _attend_long(q, k, v, mode, dropout)
        else:
            if mode == "bidirectional":
                bias = _key_bias(heads, group, qkv.dtype, qkv.device)
            else:
                bias = _bias(heads, group.length, mode, qkv.dtype, qkv.device)
            if mode != "causal" and group.key_mask is not None:
                bias = bias.masked_fill(~group.key_mask, -math.inf)
            if qkv.requires_grad and qkv.dtype == torch.bfloat16 and not qkv.is_cuda and dropout == 0:
                out = _ProductsBackward.apply(q, k, v, bias)
            else:
                out = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
        out = out.transpose(1, 2).reshape(group.sequences * group.length, hidden)
        if group.unpad is not None:
            out = out.index_select(0, group.unpad)
        outputs.append(out)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def attend_by_kernel(qkv: Tensor, layout: Layout, heads: int, mode: Mode = "causal") -> Tensor:
    """`attend` without gradients, on a CPU on which `kernels.usable`: by the C kernel where that is faster.

    Args:
        qkv: (N, 3H), see `attend`.
        layout: The batch's packing.
        heads: Number of heads.
        mode: What a token sees; see the head of this file.

    Returns:
        (N, H)
    """
    if layout.longest <= _KERNEL_LONGEST and qkv.shape[1] // heads % 6 == 0:
        return kernels.attend(qkv, layout.cu_seqlens, _slopes(heads), mode)
    return attend(qkv, layout, heads, mode)
