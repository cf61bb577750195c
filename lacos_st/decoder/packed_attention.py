"""Attention over packed tokens for any decoder that calls transformers' attention interface.

Shapes: N packed tokens, A heads of D, K key and value heads (A a multiple of K), T the length of a group's sequences.

transformers lets an attention function be registered by name (`AttentionInterface`), and architectures that go through
the interface hand it queries, keys and values whatever else they do before (rotary or learned positions, norms of
queries and keys, fused projections). Ours gets all tokens of a batch as one row, (1, A, N, D), and their `Layout`, and
attends sequence by sequence: groups of like length in one call each (`packing.py`). Causal or to both sides, with
grouped-query heads, sliding windows and soft-capped scores. Without a layout (caches, generation) it is transformers'
own function, for padded batches.

A setting that it does not know may change what a token sees, so it is an error: `generic.py` then leaves the batch
padded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lacos_st.decoder.packing import Group

NAME = "lacos_packed"
_CHUNK = 256  # query rows at a time where scores are materialised: bounds them at (heads, chunk, T)
# What architectures pass along that says nothing about what a token sees.
_NEUTRAL = {
    "position_ids", "output_attentions", "output_hidden_states", "use_cache", "cache_position", "return_dict",
    "position_embeddings", "past_key_values", "cache",
}  # fmt: skip


class UnknownAttentionError(Exception):
    """An architecture asks its attention for something that `attend` does not know."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    packed: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function that is registered as `NAME`; arguments as transformers passes them.

    Args:
        module: The attention layer.
        query: (1, A, N, D), or (batch, A, T, D) without a layout.
        key: (1, K, N, D)
        value: (1, K, N, D)
        attention_mask: For batches without a layout.
        dropout: Probability on the attention weights.
        scaling: Of the scores. Default: 1 / sqrt(D).
        sliding_window: A token sees the keys less than this far away. Default: all.
        softcap: Scores become `softcap * tanh(score / softcap)`. Default: they stay.
        is_causal: Whether a token sees what is before it alone. Default: as the model's configuration says.
        packed: The batch, as `generic.Packed`.
        **kwargs: What else the architecture passes.

    Returns:
        (1, N, A, D), and no weights.

    Raises:
        UnknownAttentionError: Something else is asked for.
    """
    if packed is None:
        if softcap is not None:
            return _padded_with_softcap(module, query, key, value, attention_mask, dropout, scaling, softcap), None
        causal = sees_one_side(module) if is_causal is None else is_causal
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, causal, sliding_window=sliding_window, **kwargs
        )
    unknown = [name for name, given in kwargs.items() if name not in _NEUTRAL and given is not None]
    if unknown:
        raise UnknownAttentionError(f"{type(module).__name__} passes {', '.join(unknown)} to its attention")
    causal = sees_one_side(module) if is_causal is None else is_causal
    if sliding_window is not None and not getattr(module.config, "is_causal", True):
        sliding_window += 1  # where a configuration lets a decoder see both sides transformers counts the last key in
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    parts = [
        _attend_group(query, key, value, group, causal, scale, sliding_window, softcap, dropout)
        for group in packed.layout.groups
    ]
    return (parts[0] if len(parts) == 1 else torch.cat(parts))[None], None


def sees_one_side(module: nn.Module) -> bool:
    """Whether a layer's tokens see only what is before them: by its configuration's `is_causal`, then its own."""
    return bool(getattr(module.config, "is_causal", True) and getattr(module, "is_causal", True))


def _attend_group(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    group: Group,
    causal: bool,
    scale: float,
    window: int | None,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    """Attention of the sequences of a group: (rows, A, D)."""

    def sequences(x: Tensor) -> Tensor:  # (1, heads, N, D) -> (S, heads, T, D)
        rows = x[0, :, group.start : group.stop]
        if group.pad is not None:
            rows = rows.index_select(1, group.pad)
        return rows.unflatten(1, (group.sequences, group.length)).transpose(0, 1)

    q, k, v = map(sequences, (query, key, value))
    window = None if window is None or window >= group.length else window
    if softcap is not None:
        out = _attend_softcapped(q, k, v, group, causal, scale, window, softcap, dropout)
    else:
        # Pads are behind a sequence's tokens: the causal mask hides them.
        plain = window is None and (causal or group.key_mask is None)
        mask = None if plain else _mask(group, causal, window, 0, group.length, q.device)
        out = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal and plain, scale=scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )  # fmt: skip
    out = out.transpose(1, 2).flatten(0, 1)  # (S * T, A, D)
    return out if group.unpad is None else out.index_select(0, group.unpad)


def _mask(group: Group, causal: bool, window: int | None, first: int, last: int, device: torch.device) -> Tensor:
    """Which keys the queries at places `first` to `last` see: (S or 1, 1, last - first, T), True where they do."""
    distance = torch.arange(first, last, device=device)[:, None] - torch.arange(group.length, device=device)
    seen = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    if window is not None:
        seen &= distance.abs() < window
    if group.key_mask is None:
        return seen[None, None]
    # A pad sees itself, so that no row is empty; nobody reads it.
    return (seen & group.key_mask) | (distance == 0)


def _attend_softcapped(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    group: Group,
    causal: bool,
    scale: float,
    window: int | None,
    softcap: float,
    dropout: float,
) -> Tensor:
    """Attention with capped scores, some queries at a time: no fused kernel knows the cap."""
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    chunks = []
    for first in range(0, group.length, _CHUNK):
        last = min(first + _CHUNK, group.length)
        mask = _mask(group, causal, window, first, last, q.device)
        chunks.append(_capped(q[:, :, first:last], k, v, mask, scale, softcap, dropout))
    return torch.cat(chunks, 2)


def _capped(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float, dropout: float
) -> Tensor:
    scores = torch.tanh(q @ k.transpose(-1, -2) * (scale / softcap)) * softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    weights = scores.softmax(-1, dtype=torch.float32).to(v.dtype)
    return functional.dropout(weights, dropout) @ v


def _padded_with_softcap(
    module: nn.Module,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    softcap: float,
) -> Tensor:
    """Transformers' fused function knows no cap: (batch, T, A, D)."""
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    if mask is None and q.shape[2] > 1 and sees_one_side(module):
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - q.shape[2])
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    return _capped(q, k, v, mask, scale, softcap, dropout).transpose(1, 2)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
