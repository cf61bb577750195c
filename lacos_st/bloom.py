"""BLOOM over packed tokens: `transformers.BloomModel` with the same parameters and another forward pass.

Shapes: B sequences, padded length T, N real tokens, H hidden, A heads of D = H / A.

1. *Pack.* The N real tokens are gathered into rows (N, H), sequences sorted by length, and everything outside
   attention (embedding, layer norms, linear layers: over 95 % of the arithmetic) runs on those rows. Padding
   is never multiplied, and an answer cannot depend on it.
2. *Attend* sequence by sequence, in groups of similar length. BLOOM's ALiBi adds ``slope[a] * j`` to the
   score of key j; softmax ignores what is constant along a row, so under a causal mask that is ALiBi's
   ``-slope * (i - j)``.
   - Up to `_SHORT` tokens: a group is one fused call with a (A, T, T) bias that all its sequences share.
     Pads, if any, sit on the right, where the causal mask hides them.
   - Longer: the bias is a product of a number per head and a number per key, so it moves into a few extra
     columns of q and k (`_fold_alibi`) and plain causal attention computes it with memory linear in T.
     Positions and slopes are split over columns such that every factor is exact in bf16.
     Encoding in ``w8a8`` on a CPU has a kernel of its own for these lengths, which needs no padding either.
   - On CUDA: all sequences in one `varlen_attn` call over the same extra columns.
   transformers adds the bias in the model's dtype to a materialised score matrix; in bf16 that costs
   precision with length (relative error 0.5 at 2,048 tokens, 0.002 here).
3. *Unpack* to the caller's shape: (B, T, H) with zeros at pads, or (1, N, H) for a flattened batch.

Symmetric attention (``config.lacos_attention = "symmetric"``) lets tokens see both sides, with ALiBi's
``-slope * |i - j|``; BLOOM's own bias depends on the key alone and would favour the future.

Caches, `output_attentions` and generation go through transformers' own forward pass, unchanged.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from transformers import BloomConfig, BloomModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.bloom.modeling_bloom import BloomBlock

from lacos_st import kernels
from lacos_st.config import LacosError
from lacos_st.quantization import Lora, convert_linear_, plain_layer, resolve_compute_form

# Up to this many tokens a (heads, T, T) bias is cheap and fastest; above it grows quadratically and ALiBi is
# folded.
_SHORT = 128
# Up to this many tokens the C kernel beats the fused bias (twofold where lengths differ); at 128 it loses.
_KERNEL_LONGEST = 64
# Query rows at a time in long symmetric attention: bounds the bias at (heads, chunk, T).
_SYMMETRIC_CHUNK = 256


class Group(NamedTuple):
    """Sequences that attend in one call.

    They are packed rows ``start`` to ``stop``: ``sequences`` of them, padded to ``length``. ``pad``
    (sequences * length,) has the row of each padded place, ``unpad`` (stop - start,) the padded place of each
    row; both are None when all lengths are equal and a view does. ``key_mask`` (sequences, 1, 1, length)
    is False at pads.
    """

    start: int
    stop: int
    sequences: int
    length: int
    pad: Tensor | None
    unpad: Tensor | None
    key_mask: Tensor | None


class Layout(NamedTuple):
    """How a batch is packed: row r is the input's flat place ``places[r]`` (None: place r)."""

    places: Tensor | None
    groups: list[Group]
    cu_seqlens: Tensor
    longest: int


def _group(lengths: list[int], device: torch.device) -> list[Group]:
    """Cut sequences (sorted, longest first) into groups with little padding."""
    groups, start, first = [], 0, 0
    while first < len(lengths) and lengths[first] > 0:
        longest, last = lengths[first], first + 1
        shortest_allowed = longest * 3 // 4 if longest <= _SHORT else longest
        while last < len(lengths) and lengths[last] >= max(1, shortest_allowed):
            last += 1
        members = lengths[first:last]
        stop = start + sum(members)
        pad = unpad = key_mask = None
        if members[-1] != longest:
            sizes = torch.tensor(members)
            ends = sizes.cumsum(0)
            steps = torch.arange(longest)
            real = steps < sizes[:, None]
            # a pad repeats its sequence's last token: finite, and hidden from every real query
            pad = ((ends - sizes)[:, None] + torch.minimum(steps, sizes[:, None] - 1)).flatten().to(device)
            unpad = real.flatten().nonzero().flatten().to(device)
            key_mask = real[:, None, None].to(device)
        groups.append(Group(start, stop, last - first, longest, pad, unpad, key_mask))
        start, first = stop, last
    return groups


def _layout(lengths: list[int], starts: Tensor | None, mask: Tensor | None, device: torch.device) -> Layout:
    """Plan a batch from its lengths and either first places (flattened) or the mask (padded)."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    ordered = [lengths[i] for i in order]
    index = torch.tensor(order, device=device)
    if mask is not None:
        if min(lengths, default=0) == mask.shape[1]:
            places = None
        else:
            width = mask.shape[1]
            flat = mask.index_select(0, index).flatten().nonzero().flatten()
            places = index.index_select(0, flat // width) * width + flat % width
    elif order == list(range(len(lengths))):
        places = None
    else:
        assert starts is not None
        sizes = torch.tensor(ordered, device=device)
        shift = starts.index_select(0, index) - (sizes.cumsum(0) - sizes)
        places = shift.repeat_interleave(sizes) + torch.arange(sum(lengths), device=device)
    cu = functional.pad(torch.tensor(ordered, device=device).cumsum(0), (1, 0)).int()
    return Layout(places, _group(ordered, device), cu, max(lengths, default=0))


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
        return torch.tensor(alibi_slopes(heads))


@lru_cache(maxsize=16)
def _bias(heads: int, length: int, symmetric: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """ALiBi and the causal mask as one (1, A, T, T) bias, relative to the query for the sake of precision."""
    with torch.inference_mode(False):  # cached: may serve a training step later
        slopes = torch.tensor(alibi_slopes(heads), dtype=torch.float64)[:, None, None]
        distance = torch.arange(length)[None, :] - torch.arange(length)[:, None]
        bias = -slopes * distance.abs()
        if not symmetric:
            bias = bias.masked_fill(distance > 0, -math.inf)
        return bias[None].to(dtype).to(device)


_EXTRA = 8  # columns; fused kernels want head sizes that are multiples of 8


@lru_cache(maxsize=16)
def _fold_alibi(
    heads: int, head_dim: int, length: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return extra columns (A, 8) for q and (T, 8) for k whose product is ``slope * position * sqrt(D)``.

    In 16 bits a number is split into a sum of three that are each exact (slopes) or into a multiple of 256
    and a rest below 256 (positions); products of two 16-bit numbers are exact in the fp32 in which kernels
    accumulate.
    """
    with torch.inference_mode(False):
        slope = torch.tensor(alibi_slopes(heads), dtype=torch.float64) * math.sqrt(head_dim)
        q, k = torch.zeros(heads, _EXTRA), torch.zeros(length, _EXTRA)
        position = torch.arange(length)
        for column in range(3):
            part = slope.to(dtype if dtype != torch.float16 else torch.float16)
            slope = slope - part.double()
            q[:, column] = q[:, column + 3] = part.float()
            k[:, column] = position // 256 * 256
            k[:, column + 3] = position % 256
        return q.to(dtype).to(device), k.to(dtype).to(device)


def _attend_long(q: Tensor, k: Tensor, v: Tensor, symmetric: bool, dropout: float) -> Tensor:
    """Attention of one or more equally long sequences (S, A, T, D) without a (T, T) bias."""
    heads, length, dim = q.shape[1:]
    if symmetric:
        return _attend_long_symmetric(q, k, v, dropout)
    extra_q, extra_k = _fold_alibi(heads, dim, length, q.dtype, q.device)
    q = torch.cat([q, extra_q[None, :, None].expand(*q.shape[:3], _EXTRA)], -1)
    k = torch.cat([k, extra_k[None, None].expand(*k.shape[:3], _EXTRA)], -1)
    v = functional.pad(v, (0, _EXTRA))  # fused kernels want one head size for all three
    out = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=dim**-0.5)
    return out[..., :dim]


def _attend_long_symmetric(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """Symmetric ALiBi does not fold into columns: take an (A, chunk, T) bias for some queries at a time."""
    heads, length = q.shape[1:3]
    slopes = torch.tensor(alibi_slopes(heads), device=q.device)[:, None, None]
    position = torch.arange(length, device=q.device)
    chunks: list[Tensor] = []
    for part in q.split(_SYMMETRIC_CHUNK, dim=2):
        rows = position[len(chunks) * _SYMMETRIC_CHUNK :][: part.shape[2], None]
        bias = (-slopes * (position - rows).abs())[None].to(q.dtype)
        chunks.append(functional.scaled_dot_product_attention(part, k, v, attn_mask=bias, dropout_p=dropout))
    return torch.cat(chunks, 2)


def _attend_varlen(qkv: Tensor, layout: Layout) -> Tensor:
    """CUDA: causal attention of all sequences in one call over packed (N, A, 3, D) -> (N, A, D)."""
    from torch.nn.attention.varlen import varlen_attn

    heads, _, dim = qkv.shape[1:]
    extra_q, extra_k = _fold_alibi(heads, dim, layout.longest, qkv.dtype, qkv.device)
    starts = layout.cu_seqlens[:-1].repeat_interleave(layout.cu_seqlens.diff(), output_size=len(qkv))
    position = torch.arange(len(qkv), device=qkv.device) - starts
    q = torch.cat([qkv[:, :, 0], extra_q.expand(len(qkv), -1, -1)], -1)
    k = torch.cat([qkv[:, :, 1], extra_k.index_select(0, position).unsqueeze(1).expand(-1, heads, -1)], -1)
    v = functional.pad(qkv[:, :, 2], (0, _EXTRA))
    cu, longest = layout.cu_seqlens, layout.longest
    out: Any = varlen_attn(q, k, v, cu, cu, longest, longest, scale=dim**-0.5, window_size=(-1, 0))
    return out[..., :dim]


def attend(qkv: Tensor, layout: Layout, heads: int, symmetric: bool = False, dropout: float = 0.0) -> Tensor:
    """ALiBi attention over packed tokens.

    Args:
        qkv: (N, 3H) as BLOOM's fused projection returns it: per head its query, key and value.
        layout: The batch's packing.
        heads: Number of heads.
        symmetric: Both sides instead of causal.
        dropout: Probability on the attention weights.

    Returns:
        (N, H)
    """
    n, hidden = qkv.shape[0], qkv.shape[1] // 3
    dim = hidden // heads
    if qkv.is_cuda and qkv.dtype != torch.float32 and not symmetric and dropout == 0:
        return _attend_varlen(qkv.view(n, heads, 3, dim), layout).reshape(n, hidden)
    outputs: list[Tensor] = []
    for group in layout.groups:
        rows = qkv if len(layout.groups) == 1 else qkv[group.start : group.stop]
        if group.pad is not None:
            rows = _Gather.apply(rows, group.pad, group.unpad)
        parts = rows.view(group.sequences, group.length, heads, 3, dim)
        q, k, v = parts.permute(3, 0, 2, 1, 4).unbind(0)
        if group.length > _SHORT:
            out = _attend_long(q, k, v, symmetric, dropout)
        else:
            bias = _bias(heads, group.length, symmetric, qkv.dtype, qkv.device)
            if symmetric and group.key_mask is not None:
                bias = bias.masked_fill(~group.key_mask, -math.inf)
            out = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
        out = out.transpose(1, 2).reshape(group.sequences * group.length, hidden)
        if group.unpad is not None:
            out = out.index_select(0, group.unpad)
        outputs.append(out)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


class LacosBloomBlock(BloomBlock):
    """A BLOOM layer over packed rows; without a layout it is transformers' own (caches, generation)."""

    def forward(self, hidden_states: Tensor, *args: Any, layout: Layout | None = None, **kwargs: Any) -> Any:
        """Map packed rows (N, H) to (N, H)."""
        if layout is None:
            return super().forward(hidden_states, *args, **kwargs)
        fused = self._encode_int8(hidden_states, layout)
        if fused is not None:
            return fused
        attention, mlp, drop = self.self_attention, self.mlp, self.hidden_dropout if self.training else 0.0
        normed = self.input_layernorm(hidden_states)
        residual = normed if self.apply_residual_connection_post_layernorm else hidden_states
        context = attend(
            attention.query_key_value(normed),
            layout,
            attention.num_heads,
            self.symmetric,
            attention.attention_dropout.p if self.training else 0.0,
        )
        hidden_states = residual + _dropout(attention.dense(context), drop)
        normed = self.post_attention_layernorm(hidden_states)
        residual = normed if self.apply_residual_connection_post_layernorm else hidden_states
        # BLOOM's GELU is the tanh approximation
        inner = functional.gelu(mlp.dense_h_to_4h(normed), approximate="tanh")
        return residual + _dropout(mlp.dense_4h_to_h(inner), drop)

    def _encode_int8(self, hidden: Tensor, layout: Layout) -> Tensor | None:
        """The same layer in ``w8a8`` on a CPU, encoding: everything between two products is one fused pass.

        Returns:
            (N, H), or None where this path does not apply.
        """
        if self.training or torch.is_grad_enabled() or not kernels.usable(hidden):
            return None
        attention, mlp = self.self_attention, self.mlp
        layers = (attention.query_key_value, attention.dense, mlp.dense_h_to_4h, mlp.dense_4h_to_h)
        found = [plain_layer(layer) for layer in layers]
        if self.apply_residual_connection_post_layernorm or any(
            part is None or part[0].compute_form != "w8a8" or part[0].bias.dtype != torch.float32 for part in found
        ):
            return None
        (qkv, qkv_lora), (dense, dense_lora), (up, up_lora), (down, down_lora) = found  # type: ignore[misc]
        norm, post = self.input_layernorm, self.post_attention_layernorm

        q, s, x = kernels.norm_quantize(hidden, norm.weight, norm.bias, norm.eps, keep=bool(qkv_lora))
        rows, absmax = qkv.int8_weight()
        context = kernels.scale(torch._int_mm(q, rows.t()), s, absmax, qkv.bias, _delta(qkv_lora, x))
        if layout.longest <= _KERNEL_LONGEST and context.shape[1] // attention.num_heads % 6 == 0:
            slopes = _slopes(attention.num_heads)
            context = kernels.attend(context, layout.cu_seqlens, slopes, self.symmetric)
        else:
            context = attend(context, layout, attention.num_heads, self.symmetric)

        q, s = kernels.quantize(context)
        rows, absmax = dense.int8_weight()
        hidden, q, s, x = kernels.scale_add_norm_quantize(
            torch._int_mm(q, rows.t()),
            s,
            absmax,
            dense.bias,
            _delta(dense_lora, context, hidden),
            post.weight,
            post.bias,
            post.eps,
            keep=bool(up_lora),
        )
        rows, absmax = up.int8_weight()
        q, s, x = kernels.scale_gelu_quantize(
            torch._int_mm(q, rows.t()), s, absmax, up.bias, _delta(up_lora, x), keep=bool(down_lora)
        )
        rows, absmax = down.int8_weight()
        return kernels.scale(torch._int_mm(q, rows.t()), s, absmax, down.bias, _delta(down_lora, x, hidden))


def _delta(updates: list[Lora], x: Tensor | None, base: Tensor | None = None) -> Any:
    """Sum ``base`` and the LoRA updates of ``x``; None if there are none."""
    for update in updates:
        assert x is not None
        change = update.delta(x)
        base = change if base is None else change.add_(base)
    return base


def _dropout(x: Tensor, p: float) -> Tensor:
    return functional.dropout(x, p) if p else x


class LacosBloomModel(BloomModel):
    """Drop-in for `transformers.BloomModel`: same parameters, packed forward pass. See the head of this file.

    ``config.lacos_attention``: ``"causal"`` (default, BLOOM's own) or ``"symmetric"``.
    """

    _no_split_modules = ["BloomBlock", "LacosBloomBlock"]  # noqa: RUF012

    def __init__(self, config: BloomConfig) -> None:
        super().__init__(config)
        _convert_blocks_(self)

    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cu_seq_lens_q: Tensor | None = None,
        max_length_q: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Encode a batch.

        Args:
            input_ids: (B, T) token ids, or (1, N) flattened with ``cu_seq_lens_q``.
            past_key_values: A cache; with one, transformers' own forward pass runs.
            attention_mask: (B, T), 1 at real tokens; padding may be on either side.
            inputs_embeds: (B, T, H) in place of ``input_ids``.
            use_cache: Only ``True`` asks for a cache (an encoder has no use for one).
            output_attentions: ``True`` runs transformers' own forward pass.
            output_hidden_states: Whether to return the states before every layer and the last.
            return_dict: ``False`` for a tuple.
            cu_seq_lens_q: (S + 1,) boundaries of the S flattened sequences; empty ones are allowed.
            max_length_q: Accepted for compatibility; lengths are taken from ``cu_seq_lens_q``.
            **kwargs: Ignored (``position_ids`` and such: ALiBi needs none).

        Returns:
            ``last_hidden_state`` in the shape of the input, zeros at pads.
        """
        if past_key_values is not None or use_cache or output_attentions:
            return super().forward(
                input_ids,
                past_key_values,
                attention_mask,
                inputs_embeds,
                use_cache,
                output_attentions,
                output_hidden_states,
                return_dict,
                **kwargs,
            )
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass either input_ids or inputs_embeds, exactly one of them.")
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        tokens = input_ids if input_ids is not None else inputs_embeds
        assert tokens is not None
        batch, width = tokens.shape[:2]
        layout = _plan(batch, width, tokens.device, attention_mask, cu_seq_lens_q)

        if input_ids is not None:
            flat = input_ids.reshape(-1)
            rows = self.word_embeddings(flat if layout.places is None else flat.index_select(0, layout.places))
        else:
            flat = tokens.flatten(0, 1)
            rows = flat if layout.places is None else flat.index_select(0, layout.places)
        hidden = self.word_embeddings_layernorm(rows)
        states = []
        if len(hidden):  # nothing but padding: there is nothing to compute
            for block in self.h:
                if output_hidden_states:
                    states.append(hidden)
                hidden = block(hidden, layout=layout)
        elif output_hidden_states:
            states = [hidden] * len(self.h)
        hidden = self.ln_f(hidden)

        def unpack(x: Tensor) -> Tensor:
            if layout.places is not None:
                x = x.new_zeros(batch * width, x.shape[1]).index_copy(0, layout.places, x)
            return x.view(batch, width, x.shape[1])

        last = unpack(hidden)
        all_states = (*map(unpack, states), last) if output_hidden_states else None
        if return_dict is False or (return_dict is None and not self.config.return_dict):
            return (last,) if all_states is None else (last, all_states)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=last, hidden_states=all_states)


def _plan(batch: int, width: int, device: torch.device, mask: Tensor | None, cu_seqlens: Tensor | None) -> Layout:
    """Choose the packing of a padded or flattened batch."""
    if cu_seqlens is not None:
        if batch != 1 or int(cu_seqlens[-1]) != width:
            raise ValueError(
                f"a flattened batch is one row of all its tokens: got shape ({batch}, {width}) with "
                f"cu_seq_lens_q ending at {int(cu_seqlens[-1])}."
            )
        starts = cu_seqlens.to(device, torch.long)
        return _layout(starts.diff().tolist(), starts[:-1], None, device)
    if mask is None:
        return _layout([width] * batch, torch.arange(batch, device=device) * width, None, device)
    real = mask.to(device) != 0
    if real.shape != (batch, width):
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)}; packed BLOOM takes one 0/1 entry per token: "
            f"({batch}, {width})."
        )
    return _layout(real.sum(1).tolist(), None, real, device)


def _convert_blocks_(model: BloomModel) -> None:
    attention = getattr(model.config, "lacos_attention", "causal")
    if attention not in ("causal", "symmetric"):
        raise LacosError(f"config.lacos_attention is {attention!r}: choose 'causal' or 'symmetric'.")
    for block in model.h:
        block.__class__ = LacosBloomBlock
        block.symmetric = attention == "symmetric"


# Largest layer-norm gain over the median gain from which channels count as outliers. Rounding a token to
# int8 with one scale costs its ordinary channels an error in proportion: w8a8 has cosine 0.9999 to fp32 at
# ratio 1, 0.999 near 15, 0.996 with gains of 20 and 60 planted, where w8a16 still has 0.9994.
OUTLIER_RATIO = 12.0


def outlier_ratio(model: BloomModel) -> float:
    """Return the greatest layer-norm gain over its norm's median gain, over all layers: 1 without outliers.

    A pure function of the weights, so that the form which `auto` picks by it never depends on data.
    """
    ratios = [1.0]
    for block in model.h:
        for norm in (block.input_layernorm, block.post_attention_layernorm):
            gain = norm.weight.detach().abs().float()
            if not gain.is_meta:
                ratios.append(float(gain.max() / gain.median().clamp_min(1e-6)))
    return max(ratios)


def accelerate_(model: BloomModel, compute_form: str = "auto", training_form: str = "auto") -> LacosBloomModel:
    """Put a loaded BLOOM model on the fast path, in place: parameters, adapters and hooks stay.

    Args:
        model: Quantised (bitsandbytes int8) or not, with or without PEFT adapters injected.
        compute_form: ``auto``, ``w8a8``, ``w8a16`` or ``bnb``: the 8-bit layers' product in ``eval()`` mode.
        ``auto``
            is `resolve_compute_form`'s choice for the device, or ``w8a16`` if the weights have outlier
            channels.
        training_form: The same in ``train()`` mode.

    Returns:
        ``model``, now a `LacosBloomModel`. Calling it again changes the forms only.

    Raises:
        LacosError: If ``model`` is not a BLOOM model or a form does not exist.
    """
    if not isinstance(model, BloomModel):
        raise LacosError(
            f"{type(model).__name__} is no BLOOM model: only transformers.BloomModel (bigscience/bloom-*) "
            "has a fast path."
        )
    model.__class__ = LacosBloomModel
    _convert_blocks_(model)
    if outlier_ratio(model) > OUTLIER_RATIO:
        compute_form, training_form = ("w8a16" if form == "auto" else form for form in (compute_form, training_form))
    converted = convert_linear_(
        model,
        resolve_compute_form(compute_form, model.device, training=False),
        resolve_compute_form(training_form, model.device, training=True),
    )
    if converted and model.device.type == "cpu":
        # What stays in float still lies in the mapped checkpoint file, and one such tensor keeps all of it
        # resident.
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.clone()
    return model
