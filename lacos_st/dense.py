"""`LacosDense` and `LacosLayerNorm`: ST's modules, over a transformer that computes in another dtype.

A base may have such modules of its own around its pooling, as the embedded one has: what is not linear before the mean
lets an embedding tell more apart than a token state has dimensions (`recipes/bloom-mini/student.py`). They belong to
the base and are frozen with it.

ST casts every module to the dtype of the first, which for an 8-bit base is whatever its device computes best in. These
stay as they were made (fp32 when loaded), take input in any dtype, and follow the model to its device. Padding costs
the dense layer nothing: it computes real tokens only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sentence_transformers.sentence_transformer.modules import Dense, LayerNorm
from torch import Tensor, nn


def _move_only(module: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """For `nn.Module._apply`: go where `fn` takes a tensor, but not to another dtype."""

    def moved(tensor: Tensor) -> Tensor:
        if tensor.is_meta:
            return fn(tensor)
        return tensor.to(fn(tensor[:0] if tensor.dim() else tensor.new_empty(0)).device)

    return nn.Module._apply(module, moved, recurse)


class LacosDense(Dense):
    """ST's `Dense`, with the same arguments, that takes its input in any dtype.

    Example:
        >>> dense = LacosDense(2, 3, module_input_name="token_embeddings")
        >>> dense({"token_embeddings": torch.zeros(1, 4, 2, dtype=torch.bfloat16)})["token_embeddings"].dtype
        torch.float32
    """

    linear: nn.Linear
    out_features: int
    module_input_name: str
    module_output_name: str
    _apply = _move_only

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        """As ST's; where there is an attention mask, padding becomes 0."""
        name, mask = self.module_input_name, features.get("attention_mask")
        values = features[name].to(self.linear.weight.dtype)
        if mask is None or mask.shape != values.shape[:-1]:
            return super().forward({**features, name: values})
        real = mask.bool()
        made = super().forward({name: values[real]})[self.module_output_name]  # under autocast in its dtype
        out = made.new_zeros(*mask.shape, made.shape[-1])
        out[real] = made
        return {**features, self.module_output_name: out}


class LacosLayerNorm(LayerNorm):
    """ST's `LayerNorm`, that takes its input in any dtype."""

    norm: nn.LayerNorm
    _apply = _move_only

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        """As ST's, in the dtype of its own weights."""
        embedding = features["sentence_embedding"].to(self.norm.weight.dtype)
        return super().forward({**features, "sentence_embedding": embedding})
