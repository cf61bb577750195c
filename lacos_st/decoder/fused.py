"""Fewer passes over memory between the 8-bit layers of any decoder, when it encodes on a CPU.

Between two integer products PyTorch reads and writes the activations many times: norm, largest value, division,
rounding. Two modules do that in one pass each (`kernels.c`) and leave their output rounded for the layers that read it:

- a root-mean-square norm, `x / rms(x) * gain`;
- a gated feed-forward, `down(act(gate(x)) * up(x))`.

No architecture is known here. Which norm is read by which layers has been seen (`outliers.py`); what a replacement
computes is compared with the original on noise, and where it differs the original stays. Parameters keep their names.
Training computes with PyTorch's operations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lacos_st.decoder import kernels
from lacos_st.decoder.outliers import Inputs, is_norm
from lacos_st.decoder.quantization import LacosLinear8bit
from lacos_st.decoder.rounding import remember_rounding


class FusedRMSNorm(nn.Module):
    """A root-mean-square norm that leaves its output rounded for the layers that read it.

    Args:
        weight: (H,), shared with the norm that it replaces, under the same name.
        eps: Added to the mean square.
        offset: The gain is `weight + offset`: 0, or 1 in some families.
        reader: One of the layers that read it; None: none does.
    """

    def __init__(self, weight: nn.Parameter, eps: float, offset: float, reader: LacosLinear8bit | None) -> None:
        super().__init__()
        self.weight, self.eps, self.offset = weight, eps, offset
        self._reader = (reader,)  # no module of this one

    def forward(self, hidden: Tensor) -> Tensor:
        """Norm the last dimension."""
        (reader,) = self._reader
        if torch.is_grad_enabled() or not kernels.usable(hidden):
            return self.normed(hidden)
        outliers = None if reader is None else reader.outliers
        inliers = None if outliers is None else outliers.inliers
        flat = hidden.reshape(-1, hidden.shape[-1]).contiguous()
        y, q, s = kernels.rms_norm_quantize(flat, self.gain(), inliers, self.eps)
        y = y.view(hidden.shape)
        if reader is not None and reader.compute_form == "w8a8":
            remember_rounding(y, outliers, (q, s))
        return y

    def gain(self) -> Tensor:
        """What a column is multiplied by, in fp32."""
        return self.weight.float() + self.offset if self.offset else self.weight.float()

    def normed(self, hidden: Tensor) -> Tensor:
        """The norm by PyTorch's operations, computed in fp32."""
        x = hidden.float()
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return (x * self.gain()).to(hidden.dtype)


class FusedGatedMLP(nn.Module):
    """`down(act(gate(x)) * up(x))` whose product is rounded as it is made; children as in the module it replaces.

    Args:
        mlp: The module that it replaces.
        gelu: Whether the activation is GELU in its tanh form; else SiLU.
    """

    def __init__(self, mlp: Any, gelu: bool) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self.act_fn, self.gelu = mlp.act_fn, gelu

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., H) to (..., H)."""
        gate, up = self.gate_proj(x), self.up_proj(x)
        down: Any = getattr(self.down_proj, "base_layer", self.down_proj)  # an adapter may lie over it
        if torch.is_grad_enabled() or not kernels.usable(gate) or down.compute_form != "w8a8":
            return self.down_proj(self.act_fn(gate) * up)
        inliers, width = None if down.outliers is None else down.outliers.inliers, gate.shape[-1]
        y, q, s = kernels.gate_quantize(gate.reshape(-1, width), up.reshape(-1, width), inliers, self.gelu)
        y = y.view(gate.shape)
        remember_rounding(y, down.outliers, (q, s))
        return self.down_proj(y)


def fuse_(model: nn.Module, inputs: Inputs) -> None:
    """Give a model the modules of this file where they compute the same, in place.

    Args:
        model: A decoder with 8-bit layers, not BLOOM, which has passes of its own.
        inputs: What `keep_outliers_` has seen.
    """
    readers = {norm: layer for layer, norm in inputs.norms.items()}
    for path, module in list(model.named_modules()):
        new: nn.Module | None = None
        if is_norm(module):
            new = _fused_norm(module, readers.get(module))
        elif all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
            new = _fused_mlp(module)
        if new is not None:
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, new.train(module.training))


def _fused_norm(module: nn.Module, reader: nn.Module | None) -> FusedRMSNorm | None:
    """A fused norm that computes what `module` does, or None."""
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(eps, float) or getattr(module, "bias", None) is not None:
        return None
    weight: nn.Parameter = module.weight  # type: ignore[assignment]
    x = _noise(3, len(weight), weight)
    for offset in (0.0, 1.0):
        fused = FusedRMSNorm(weight, eps, offset, reader)  # type: ignore[arg-type]
        if torch.allclose(fused.normed(x), module(x), rtol=1e-4, atol=1e-5):
            return fused
    return None


def _fused_mlp(module: Any) -> FusedGatedMLP | None:
    """A fused feed-forward that computes what `module` does, or None."""
    parts = module.gate_proj, module.up_proj, module.down_proj
    if not all(isinstance(getattr(part, "base_layer", part), LacosLinear8bit) for part in parts):
        return None
    x = _noise(3, module.gate_proj.in_features, next(module.parameters()))
    probe = _noise(2, 8, x)
    acts = {False: functional.silu(probe), True: functional.gelu(probe, approximate="tanh")}
    with torch.no_grad():
        found = [gelu for gelu, y in acts.items() if torch.allclose(module.act_fn(probe), y, atol=1e-6)]
        if not found:
            return None
        expected = module.down_proj(module.act_fn(module.gate_proj(x)) * module.up_proj(x))
        same = torch.allclose(module(x), expected, rtol=1e-4, atol=1e-5)
    return FusedGatedMLP(module, found[0]) if same else None


def _noise(rows: int, columns: int, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    dtype = like.dtype if like.is_floating_point() else torch.float32
    return torch.randn(rows, columns, generator=generator, dtype=torch.float32).to(like.device, dtype)
