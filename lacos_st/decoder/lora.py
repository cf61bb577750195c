"""LoRA over an 8-bit layer as one function: the layer's product and the adapter's update in one pass each way.

    y = x W^T + b + scaling * (d(x) A^T) B^T        W (out, in) frozen in int8, A (r, in), B (out, r), d: dropout

PEFT computes the two sums apart: the update is made, scaled and added, three passes over (N, out), and the gradients of
``x`` from both are made and added again. Here the update is handed to the pass that scales the integer product, and
the gradient through A to the pass that scales its backward product. What is kept for the backward pass is the same.

It serves plain LoRA, one adapter at a time, in fp32 and ``w8a8`` on a CPU with the kernels; all else is PEFT's own
forward pass. The layers are PEFT's, given a subclass of their class.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from peft.tuners.lora import Linear8bitLt, LoraLayer
from torch import Tensor, nn

from lacos_st.decoder import kernels
from lacos_st.decoder.embedding_table import LacosEmbedding8bit
from lacos_st.decoder.quantization import LacosLinear8bit, input_gradient, product_w8a8
from lacos_st.decoder.rounding import Outliers, Rounded


class Lora(NamedTuple):
    """One active LoRA update ``scaling * B A``: A (r, in), B (out, r)."""

    a: Tensor
    b: Tensor
    scaling: float

    def delta(self, x: Tensor) -> Tensor:
        """Map (N, in) to (N, out)."""
        return (x @ self.a.t()).mul_(self.scaling) @ self.b.t()


def plain_layer(layer: nn.Module) -> tuple[LacosLinear8bit, list[Lora]] | None:
    """Look through PEFT's wrapper: the 8-bit layer and its active LoRA updates in ``eval()`` mode.

    Args:
        layer: A `LacosLinear8bit` or PEFT's LoRA layer around one.

    Returns:
        None where the wrapper does more than add plain LoRA updates (DoRA, biases, other dtypes): then only
        calling it computes what it means.
    """
    if type(layer) is LacosLinear8bit:
        return layer, []
    if not isinstance(layer, LoraLayer) or type(layer.base_layer) is not LacosLinear8bit:
        return None
    updates = []
    if not layer.disable_adapters and not layer.merged:
        for name in layer.active_adapters:
            if name not in layer.lora_A:
                continue
            a, b = layer.lora_A[name], layer.lora_B[name]
            if name in layer.lora_variant or b.bias is not None or a.weight.dtype != torch.float32:
                return None
            updates.append(Lora(a.weight, b.weight, layer.scaling[name]))
    return layer.base_layer, updates


class _Adapted(torch.autograd.Function):
    """``x W^T + b + scaling * (d A^T) B^T`` over a frozen 8-bit ``W``; ``d`` is ``x``, or None where it is the same."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dropped: Tensor | None,
        a: Tensor,
        b: Tensor,
        scaling: float,
        weight: Tensor,
        absmax: Tensor,
        bias: Tensor | None,
        outliers: Outliers | None,
        rounded: Rounded | None,
    ) -> Tensor:
        read = x if dropped is None else dropped
        inner = (read @ a.t()).mul_(scaling)
        ctx.save_for_backward(read, inner, a, b, weight, absmax)
        ctx.scaling, ctx.apart = scaling, dropped is not None
        return product_w8a8(x, weight, absmax, bias, outliers, inner @ b.t(), rounded)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dy = grads[0].contiguous()
        read, inner, a, b, weight, absmax = ctx.saved_tensors
        db = dy.t() @ inner
        dinner = (dy @ b).mul_(ctx.scaling)
        da = dinner.t() @ read
        dx = dropped = None
        if ctx.needs_input_grad[0]:
            dread = dinner @ a
            dx = input_gradient(dy, weight, absmax, "w8a8", None if ctx.apart else dread)
            dropped = dread if ctx.apart else None
        return dx, dropped, da, db, None, None, None, None, None, None


class LacosLoraLinear(Linear8bitLt):
    """PEFT's LoRA layer over a `LacosLinear8bit`; see the head of this file."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As PEFT's."""
        found = None if args or kwargs or torch.is_autocast_enabled("cpu") else plain_layer(self)
        if found is None or len(found[1]) != 1 or x.dtype != torch.float32 or not kernels.usable(x.detach()):
            return super().forward(x, *args, **kwargs)
        base, (update,) = found
        if (base.training_form if self.training else base.compute_form) != "w8a8":
            return super().forward(x)
        flat = x.reshape(-1, x.shape[-1])
        dropout = self.lora_dropout[next(name for name in self.active_adapters if name in self.lora_A)]
        drops = self.training and getattr(dropout, "p", 0) > 0
        weight, absmax = base.int8_weight()
        dropped, rounded = dropout(flat) if drops else None, base.rounded(x, flat)
        y: Tensor = _Adapted.apply(flat, dropped, *update, weight, absmax, base.bias, base.outliers, rounded)
        return y.view(*x.shape[:-1], y.shape[-1])


class FusesLora:
    """What a model of transformers does with adapters that are added to it: their layers get our class."""

    def add_adapter(self, *args: Any, **kwargs: Any) -> None:
        """As transformers'."""
        super().add_adapter(*args, **kwargs)  # type: ignore[misc]
        fuse_lora_(self)  # type: ignore[arg-type]

    def load_adapter(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers'."""
        told = super().load_adapter(*args, **kwargs)  # type: ignore[misc]
        fuse_lora_(self)  # type: ignore[arg-type]
        return told


def fuse_lora_(model: nn.Module) -> None:
    """Give PEFT's LoRA layers over 8-bit layers our class, in place; all others stay."""
    for layer in model.modules():
        if type(layer) is Linear8bitLt and type(layer.base_layer) is LacosLinear8bit:
            layer.__class__ = LacosLoraLinear


def fold_lora_(model: nn.Module, name: str) -> None:
    """Add a LoRA adapter's update to the layers under it, in float, and put them in the place of PEFT's wrappers.

    Args:
        model: Holds PEFT's LoRA layers.
        name: The adapter.
    """
    for path, layer in list(model.named_modules()):
        if not isinstance(layer, LoraLayer):
            continue
        base, delta = layer.get_base_layer(), layer.get_delta_weight(name)
        if isinstance(base, LacosLinear8bit | LacosEmbedding8bit):
            base.add_(delta)
        else:
            base.weight.data += delta.to(base.weight.dtype)
        parent, _, child = path.rpartition(".")
        setattr(model.get_submodule(parent), child, base)
