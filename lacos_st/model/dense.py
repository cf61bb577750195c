"""`LacosDense` and `LacosLayerNorm`: ST's modules, over a transformer that computes in another dtype.

A base may have such modules of its own around its pooling, as the embedded one has: what is not linear before the mean
lets an embedding tell more apart than a token state has dimensions. They belong to the base and are frozen with it.

ST casts every module to the dtype of the first, which for an 8-bit base is whatever its device computes best in. These
stay as they were made, take input in any dtype, compute in fp32 at least, and follow the model to its device. A frozen
dense layer lies in 16 bits if those hold it exactly. Padding costs it nothing: it computes real tokens only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sentence_transformers.base.modules import Module
from sentence_transformers.sentence_transformer.modules import Dense, LayerNorm
from torch import Tensor, nn

from lacos_st.errors import LacosError


def move_only(module: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """For `nn.Module._apply`: go where `fn` takes a tensor, but not to another dtype."""

    def moved(tensor: Tensor) -> Tensor:
        if tensor.is_meta:
            return fn(tensor)
        return tensor.to(fn(tensor[:0] if tensor.dim() else tensor.new_empty(0)).device)

    return nn.Module._apply(module, moved, recurse)


def freeze_(module: nn.Module) -> None:
    """Let a module train no more; a dense layer that came in 16 bits, which hold it exactly, then lies in 16 bits."""
    module.requires_grad_(False)
    parameters = list(module.parameters())
    if isinstance(module, LacosDense) and all(bool((p == p.half()).all()) for p in parameters):
        for parameter in parameters:
            parameter.data = parameter.data.half()


class _LoadsSingle(Module):
    @classmethod
    def load_torch_weights(cls, *args: Any, model: nn.Module | None = None, **kwargs: Any) -> Any:
        """As ST's, but not into 16 bits where those are the process's default dtype as the module is made."""
        for parameter in [] if model is None else model.parameters():
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
        return super().load_torch_weights(*args, model=model, **kwargs)


class LacosDense(_LoadsSingle, Dense):
    """ST's `Dense`, with the same arguments, that takes its input in any dtype.

    Example:
        >>> dense = LacosDense(2, 3, module_input_name="token_embeddings")
        >>> dense({"token_embeddings": torch.zeros(1, 4, 2, dtype=torch.bfloat16)})["token_embeddings"].dtype
        torch.float32
    """

    linear: nn.Linear
    residual: nn.Linear
    use_residual: bool
    in_features: int
    out_features: int
    module_input_name: str
    module_output_name: str
    _apply = move_only

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        """As ST's; where there is an attention mask, padding becomes 0."""
        values, mask = features[self.module_input_name], features.get("attention_mask")
        if mask is None or mask.shape != values.shape[:-1]:
            return {**features, self.module_output_name: self._computed(values)}
        real = mask.bool()
        made = self._computed(values[real])  # under autocast in its dtype
        out = made.new_zeros(*mask.shape, made.shape[-1])
        out[real] = made
        return {**features, self.module_output_name: out}

    def _computed(self, values: Tensor) -> Tensor:
        made = self.activation_function(_linear(self.linear, values))
        if self.use_residual:
            made = made + (values if self.in_features == self.out_features else _linear(self.residual, values))
        return made


def _linear(layer: nn.Linear, values: Tensor) -> Tensor:
    weight, bias = layer.weight, layer.bias
    if weight.dtype == torch.float16 and weight.requires_grad and torch.is_grad_enabled():
        raise LacosError(
            "A dense layer that was loaded frozen lies in 16 bits and cannot train in them: give it 32 first, for "
            "example model[1].linear.float()."
        )
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return nn.functional.linear(values.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))


class LacosLayerNorm(_LoadsSingle, LayerNorm):
    """ST's `LayerNorm`, that takes its input in any dtype."""

    norm: nn.LayerNorm
    _apply = move_only

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        """As ST's, in the dtype of its own weights."""
        embedding = features["sentence_embedding"].to(self.norm.weight.dtype)
        return super().forward({**features, "sentence_embedding": embedding})
