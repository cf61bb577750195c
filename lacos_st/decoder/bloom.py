"""BLOOM over packed tokens: `transformers.BloomModel` with the same parameters and another forward pass.

Shapes: B sequences, padded length T, N real tokens, H hidden.

1. *Pack* (`packing.py`). The N real tokens are gathered into rows (N, H), and everything outside attention
   (embedding, layer norms, linear layers: over 95 % of the arithmetic) runs on those rows. Padding is never
   multiplied, and an answer cannot depend on it.
2. *Attend* sequence by sequence, in groups of similar length (`attention.py`): causally as BLOOM was trained, or to
   both sides (`attention_mode`).
3. *Unpack* to the caller's shape: (B, T, H) with zeros at pads, or (1, N, H) for a flattened batch.

A layer encoding in ``w8a8`` on a CPU is a chain of fused passes between its four integer products (`kernels.py`).
Caches, `output_attentions` and generation go through transformers' own forward pass, unchanged.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import BloomConfig, BloomModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.bloom.modeling_bloom import BloomBlock

from lacos_st.decoder import kernels
from lacos_st.decoder.attention import attend, attend_by_kernel, attention_mode
from lacos_st.decoder.embedding_table import floating_table
from lacos_st.decoder.lora import FusesLora, Lora, plain_layer
from lacos_st.decoder.packing import Layout, plan
from lacos_st.errors import LacosError

LAYERS = {"query_key_value": (1, 3), "dense": (1, 1), "dense_h_to_4h": (1, 4), "dense_4h_to_h": (4, 1)}
"""A block's linear layers: columns in and out, in units of the hidden size."""


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
            self.mode,
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
        context = kernels.scale(kernels.multiply(q, rows.t()), s, absmax, qkv.bias, _delta(qkv_lora, x))
        context = attend_by_kernel(context, layout, attention.num_heads, self.mode)

        q, s = kernels.quantize(context)
        rows, absmax = dense.int8_weight()
        hidden, q, s, x = kernels.scale_add_norm_quantize(
            kernels.multiply(q, rows.t()),
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
            kernels.multiply(q, rows.t()), s, absmax, up.bias, _delta(up_lora, x), keep=bool(down_lora)
        )
        rows, absmax = down.int8_weight()
        return kernels.scale(kernels.multiply(q, rows.t()), s, absmax, down.bias, _delta(down_lora, x, hidden))


def _delta(updates: list[Lora], x: Tensor | None, base: Tensor | None = None) -> Any:
    """Sum ``base`` and the LoRA updates of ``x``; None if there are none."""
    for update in updates:
        assert x is not None
        change = update.delta(x)
        base = change if base is None else change.add_(base)
    return base


def _dropout(x: Tensor, p: float) -> Tensor:
    return functional.dropout(x, p) if p else x


class LacosBloomModel(FusesLora, BloomModel):
    """Drop-in for `transformers.BloomModel`: same parameters, packed forward pass. See the head of this file.

    What a token sees follows from the configuration: `attention_mode`.
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
            if self.h and self.h[0].mode == "symmetric":
                raise LacosError(
                    "A symmetric model has neither a cache nor attentions to give: transformers' forward pass, which "
                    "would give them, does not know its bias."
                )
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
        layout = plan(batch, width, tokens.device, attention_mask, cu_seq_lens_q)

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

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> torch.nn.Module:
        """As transformers'; an 8-bit table stays one, and the rows that it keeps keep their bytes."""
        with floating_table(self):
            super().resize_token_embeddings(*args, **kwargs)
        table: torch.nn.Module = self.get_input_embeddings()
        return table


def use_packed_blocks_(model: BloomModel) -> None:
    """Give a loaded BLOOM the packed forward pass, in place: parameters, adapters and hooks stay."""
    model.__class__ = LacosBloomModel
    _convert_blocks_(model)


def _convert_blocks_(model: BloomModel) -> None:
    mode = attention_mode(model.config)
    for block in model.h:
        block.__class__ = LacosBloomBlock
        block.mode = mode


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
