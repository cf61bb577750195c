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
from transformers import BloomConfig, BloomModel, PretrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.bloom.modeling_bloom import BloomBlock

from lacos_st.decoder import kernels
from lacos_st.decoder.attention import Mode, attend, attend_by_kernel
from lacos_st.decoder.embedding_table import floating_table
from lacos_st.decoder.packing import Layout, plan
from lacos_st.decoder.quantization import ComputeForm, Lora, convert_linear_, plain_layer, resolve_compute_form
from lacos_st.decoder.threads import survive_forks
from lacos_st.errors import LacosError


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


class LacosBloomModel(BloomModel):
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


def attention_mode(config: PretrainedConfig) -> Mode:
    """What a token sees in a model of this configuration.

    Args:
        config: transformers' ``is_causal`` says whether it is causal or bidirectional; ``lacos_attention:
            "symmetric"``, which transformers cannot express, counts first.

    Returns:
        ``"causal"``, ``"bidirectional"`` or ``"symmetric"``; see `attention.py`.

    Raises:
        LacosError: ``lacos_attention`` has another value.

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


def form_for(model: BloomModel, form: str, device: torch.device | str, training: bool) -> ComputeForm:
    """`resolve_compute_form` for a model's weights: ``auto`` is ``w8a16`` where they have outlier channels.

    Args:
        model: The model.
        form: ``auto``, ``w8a8``, ``w8a16`` or ``bnb``.
        device: Where it runs.
        training: Whether the form is for training steps.

    Returns:
        The form.

    Raises:
        LacosError: If ``form`` is none of them.
    """
    outliers = form == "auto" and outlier_ratio(model) > OUTLIER_RATIO
    return resolve_compute_form("w8a16" if outliers else form, device, training)


def accelerate_(model: BloomModel, compute_form: str = "auto", training_form: str = "auto") -> LacosBloomModel:
    """Put a loaded BLOOM model on the fast path, in place: parameters, adapters and hooks stay.

    Args:
        model: Quantised (bitsandbytes int8) or not, with or without PEFT adapters injected.
        compute_form: ``auto``, ``w8a8``, ``w8a16`` or ``bnb``: the 8-bit layers' product in ``eval()`` mode.
            ``auto`` is `resolve_compute_form`'s choice for the device, or ``w8a16`` if the weights have outlier
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
    survive_forks()
    model.__class__ = LacosBloomModel
    _convert_blocks_(model)
    converted = convert_linear_(
        model,
        form_for(model, compute_form, model.device, training=False),
        form_for(model, training_form, model.device, training=True),
    )
    if converted and model.device.type == "cpu":
        # What stays in float still lies in the mapped checkpoint file, and one such tensor keeps all of it
        # resident.
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.clone()
    return model
