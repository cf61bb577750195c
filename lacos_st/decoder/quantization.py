"""8-bit linear layers: their storage and the three ways to compute with it.

A weight matrix ``W (out, in)`` is stored as bitsandbytes stores it: int8 rows ``q`` and one absolute maximum
per row, ``W[o, i] = q[o, i] * SCB[o] / 127``. The stored bytes never change; what differs is the product ``y
= x W^T + b``:

- ``w8a8``: each token of ``x`` is rounded to int8 with its own scale; int8 x int8 -> int32. Error of the
  activations: about 0.7 %. A layer's outlier columns, where they are known (`outliers.py`), are multiplied unrounded.
- ``w8a16``: ``q`` is cast to x's dtype (exact: integers up to 127), multiplied, row scales applied. No such
  error.
- ``bnb``: bitsandbytes' LLM.int8 with its threshold for outlier columns, which depend on the batch.

Scales are applied to the *output* columns, so no dequantised copy of ``W`` in another precision is rounded a
second time. The weights are frozen: the backward pass needs the gradient of ``x`` only, ``dx = (dy * SCB /
127) q``.

Which form ``auto`` means is a pure function of the device, its features and the weights, never of timing or
of the batch, so that an embedding does not depend on who shares its batch.

This is the one file that touches bitsandbytes' internals (``state.SCB``, ``weight.CB``).
"""

import copy
import os
from functools import lru_cache
from typing import Any, Literal, get_args

import bitsandbytes as bnb
import torch
from torch import Tensor, nn
from torch.nn import functional

from lacos_st.decoder import kernels
from lacos_st.decoder.rounding import Outliers, Rounded, remember_rounding, remembered_rounding
from lacos_st.errors import LacosError
from lacos_st.quiet import without

ComputeForm = Literal["w8a8", "w8a16", "bnb"]

# oneDNN's instruction sets in the order of its documentation (ONEDNN_MAX_CPU_ISA); those from
# AVX512_CORE_BF16 on multiply bf16 natively.
_ISA_ORDER = (
    "SSE41",
    "AVX",
    "AVX2",
    "AVX2_VNNI",
    "AVX2_VNNI_2",
    "AVX512_CORE",
    "AVX512_CORE_VNNI",
    "AVX512_CORE_BF16",
    "AVX512_CORE_FP16",
    "AVX512_CORE_AMX",
    "AVX512_CORE_AMX_FP16",
    "DEFAULT",
)


@lru_cache
def _has_fast_bf16(max_isa: str) -> bool:
    """Whether this CPU multiplies bf16 faster than fp32, given the user's limit on instruction sets."""
    allowed = _ISA_ORDER.index(max_isa) if max_isa in _ISA_ORDER else len(_ISA_ORDER)
    if allowed < _ISA_ORDER.index("AVX512_CORE_BF16") or not torch.cpu._is_avx512_bf16_supported():
        return False
    if torch.cpu._is_amx_tile_supported():
        return allowed >= _ISA_ORDER.index("AVX512_CORE_AMX")
    # Intel's Sapphire Rapids and later (known by AVX-512 fp16) mean bf16 for AMX. Where a virtual machine
    # hides AMX, their AVX-512 bf16 instruction runs at a quarter of its rate: 155 GFLOP/s on two cores, fp32
    # 200.
    return not torch.cpu.get_capabilities().get("avx512_fp16", False)


def has_fast_bf16() -> bool:
    """Whether bf16 products are faster than fp32 ones on this CPU (AMX, or AVX-512 bf16 at full rate).

    Honours oneDNN's ``ONEDNN_MAX_CPU_ISA`` and its older name ``DNNL_MAX_CPU_ISA``.
    """
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "DEFAULT"
    return _has_fast_bf16(limit.upper())


def default_compute_dtype(device: torch.device | str, form: str) -> torch.dtype:
    """Return the fastest dtype that is safe for activations on ``device``.

    CPU: bf16 where its products are fast, else fp32; never fp16, which CPUs emulate. In ``w8a8`` products are of
    integers, and what lies between them is fastest in the fused kernels, which take fp32. CUDA: bf16 from Ampere on
    (and where there is no GPU to ask), else fp16.

    Args:
        device: Where the model runs.
        form: The 8-bit layers' form; ``w8a16`` for a model that is not quantised.

    Returns:
        The dtype for activations, biases and layer norms.
    """
    device = torch.device(device)
    if device.type == "cuda":
        modern = not torch.cuda.is_available() or torch.cuda.get_device_capability(device)[0] >= 8
        return torch.bfloat16 if modern else torch.float16
    fused = form == "w8a8" and kernels.library() is not None
    return torch.bfloat16 if has_fast_bf16() and not fused else torch.float32


def as_dtype(asked: Any) -> torch.dtype:
    """A dtype by itself or by name; fp32 for "auto" and where nothing is said."""
    if isinstance(asked, str) and asked != "auto":
        asked = getattr(torch, asked)
    return asked if isinstance(asked, torch.dtype) else torch.float32


def resolve_compute_form(form: str, device: torch.device | str, training: bool) -> ComputeForm:
    """Turn ``auto`` into the form used on ``device``: never one whose products are slower than full precision's.

    Args:
        form: ``auto``, ``w8a8``, ``w8a16`` or ``bnb``.
        device: Where the model runs.
        training: Whether the form is for training steps. On CUDA ``auto`` keeps 16-bit activations in both (an H200
            encodes 1.4 to 1.9 x as fast with them; `benchmarks/gpu.py`), on a CPU with fast bf16 and no compiler in
            training. Elsewhere gradients are rounded to 8 bits too: over 24 layers that costs LoRA's gradients 0.028
            in relative error, as bf16 does (0.029).

    Returns:
        The form.

    Raises:
        LacosError: If ``form`` is none of them.
    """
    if form == "auto":
        if torch.device(device).type != "cpu" or not kernels.has_fast_int8():
            return "w8a16"
        sixteen = training and has_fast_bf16() and kernels.library() is None
        return "w8a16" if sixteen else "w8a8"
    if form not in get_args(ComputeForm):
        raise LacosError(f"compute form {form!r} does not exist: choose auto, {', '.join(get_args(ComputeForm))}.")
    return form  # type: ignore[return-value]


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row of ``x`` to int8 with its own scale.

    Args:
        x: (N, K), floating.

    Returns:
        ``q`` (N, K) int8 and ``scale`` (N, 1) fp32 with ``x ~ q * scale``.
    """
    scale = x.abs().amax(-1, keepdim=True).float().mul_(1 / 127).clamp_(min=1e-20)
    return (x / scale).round_().to(torch.int8), scale


def product_w8a8(
    x: Tensor,
    weight: Tensor,
    absmax: Tensor,
    bias: Tensor | None,
    outliers: Outliers | None = None,
    more: Tensor | None = None,
    rounded: Rounded | None = None,
) -> Tensor:
    """``x W^T + b + more`` with the rows of ``x`` (N, in) rounded to int8, but for its outliers."""
    inliers = None
    if outliers is not None:
        unrounded, part = x.index_select(1, outliers.columns).float(), outliers.weights.t()
        more = unrounded @ part if more is None else torch.addmm(more, unrounded, part)
        inliers = outliers.inliers
    if kernels.usable(x):
        q, s = rounded or kernels.quantize(x.contiguous(), inliers)
        bias = None if bias is None else bias.float()
        return kernels.scale(kernels.multiply(q, weight.t()), s, absmax, bias, more)
    y = _integer_product(x if inliers is None else x * inliers.to(x.dtype), weight.t()).mul_(absmax)
    for term in (bias, more):
        if term is not None:
            y.add_(term)
    return y.to(x.dtype)


def _integer_product(x: Tensor, q: Tensor) -> Tensor:
    """``x @ q / 127`` in fp32 for floating x (N, K) and int8 q (K, O), rounding x to int8 row by row."""
    rows = x.shape[0]
    qx, row_scale = quantize_rows(x)
    if x.is_cuda and rows <= 16:  # cuBLASLt's integer product wants more than 16 rows
        qx = functional.pad(qx, (0, 0, 0, 17 - rows))
    # Cast, then scale in place: a product of int32 and fp32 takes PyTorch's slow mixed path (12 x as long).
    return kernels.multiply(qx, q)[:rows].float().mul_(row_scale * (1 / 127))


def _product_w8a16(x: Tensor, weight: Tensor, absmax: Tensor, bias: Tensor | None) -> Tensor:
    scale = absmax * (1 / 127)
    if x.dtype == torch.float16:  # 127 x activations may leave fp16's range: scale the weight, not the output
        return functional.linear(x, (weight * scale[:, None]).to(x.dtype), bias)
    y = functional.linear(x, weight.to(x.dtype))
    if x.dtype == torch.float32:
        y.mul_(scale)
        return y if bias is None else y.add_(bias)
    return (y * scale if bias is None else torch.addcmul(bias.float(), y, scale)).to(x.dtype)


def input_gradient(dy: Tensor, weight: Tensor, absmax: Tensor, form: str, more: Tensor | None = None) -> Tensor:
    """Gradient of ``x`` (N, in) in ``x W^T`` from that of the product (N, out); ``w8a8`` adds ``more`` to it."""
    if form != "w8a8":
        scale = absmax * (1 / 127)
        if dy.dtype == torch.float16:  # a small gradient over 127 leaves fp16's range: scale the weight
            return dy @ (weight * scale[:, None]).to(dy.dtype)
        return (dy * scale).to(dy.dtype) @ weight.to(dy.dtype)
    if kernels.usable(dy):
        q, s = kernels.quantize(dy.contiguous(), absmax)
        return kernels.scale(kernels.multiply(q, weight), s, None, None, more)
    dx = _integer_product(dy * absmax, weight).to(dy.dtype)
    return dx if more is None else dx.add_(more)


class _FrozenLinear(torch.autograd.Function):
    """``x W^T + b`` over a frozen 8-bit ``W``: keeps no activation, its backward needs the weights only."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        absmax: Tensor,
        bias: Tensor | None,
        outliers: Outliers | None,
        form: str,
    ) -> Tensor:
        ctx.save_for_backward(weight, absmax)
        ctx.form = form
        ctx.bias_dtype = None if bias is None else bias.dtype
        if form == "w8a8":
            return product_w8a8(x, weight, absmax, bias, outliers)
        return _product_w8a16(x, weight, absmax, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, Tensor | None, None, None]:
        (dy,) = grads
        weight, absmax = ctx.saved_tensors
        dx = dbias = None
        if ctx.needs_input_grad[0]:
            dx = input_gradient(dy, weight, absmax, ctx.form)
        if ctx.needs_input_grad[3]:
            dbias = dy.sum(0, dtype=torch.float32).to(ctx.bias_dtype)
        return dx, None, None, dbias, None, None


class LacosLinear8bit(bnb.nn.Linear8bitLt):
    """bitsandbytes' 8-bit linear layer with a choice of product; same bytes, same state-dict keys.

    Made from a loaded stock layer with `convert_linear_`. It remains a ``bnb.nn.Linear8bitLt`` for PEFT.

    Attributes:
        compute_form: The product in ``eval()`` mode.
        training_form: The product in ``train()`` mode.
        outliers: Columns of the input that ``w8a8`` does not round; None: it rounds all.
        shares_input: Whether other layers are given the same tensor.
    """

    compute_form: ComputeForm
    training_form: ComputeForm
    outliers: Outliers | None = None
    shares_input: bool = False

    def int8_weight(self) -> tuple[Tensor, Tensor]:
        """Return int8 rows (out, in) and absolute maxima (out,): ``W ~ rows * absmax[:, None] / 127``."""
        self._adopt()
        if self.weight.SCB is None:
            raise LacosError(
                "this 8-bit layer holds no quantised weight yet: move the model to a device first (`model.to('cpu')`)."
            )
        return self.weight.data, self.weight.SCB

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """Return the weights (out, in) in a floating dtype."""
        rows, absmax = self.int8_weight()
        return (rows.float() * (absmax[:, None] / 127)).to(dtype)

    def add_(self, delta: Tensor) -> None:
        """Add an update (out, in) to the weights: in float, then quantised again row by row."""
        merged = self.dequantize(torch.float32) + delta.float()
        device = merged.device
        self.weight = bnb.nn.Int8Params(merged.cpu(), requires_grad=False, has_fp16_weights=False).to(device)
        if self.outliers is not None:
            self.keep_outliers(self.outliers.columns, self.outliers.inliers)

    def _adopt(self) -> None:
        """Keep the scales on the weight, where they are loaded, saved, copied and merged.

        bitsandbytes moves them to ``state`` at the first forward pass; a layer so used can no longer load a
        state dict. References to the bytes other than the weight itself only go stale or double the memory.
        """
        scales = self.state.SCB  # read once: several threads may encode
        if scales is not None:
            if self.weight.SCB is None:
                self.weight.SCB = scales
            self.state.SCB = None
        self.weight.CB = self.state.CB = None

    def forward(self, x: Tensor) -> Tensor:
        """Compute ``x W^T + b``.

        Args:
            x: (..., in), floating.

        Returns:
            (..., out) in x's dtype (under autocast: in autocast's).
        """
        form = self.training_form if self.training else self.compute_form
        weight, absmax = self.int8_weight()
        if form == "bnb":
            state = copy.copy(self.state)  # its backward pass reads the bytes from a state that stays
            state.CB, state.SCB, state.is_training = weight, absmax, self.training
            bias = None if self.bias is None else self.bias.to(x.dtype)
            with without("bitsandbytes.autograd._functions", "inputs will be cast"):  # a line a layer a batch
                return bnb.matmul(x, self.weight, bias=bias, state=state)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        flat = x.reshape(-1, x.shape[-1])
        bias = self.bias
        if torch.is_grad_enabled() and (flat.requires_grad or (bias is not None and bias.requires_grad)):
            y = _FrozenLinear.apply(flat, weight, absmax, bias, self.outliers, form)
        elif form == "w8a8":
            y = product_w8a8(flat, weight, absmax, bias, self.outliers, rounded=self.rounded(x, flat))
        else:
            y = _product_w8a16(flat, weight, absmax, bias)
        return y.view(*x.shape[:-1], y.shape[-1])

    def rounded(self, x: Tensor, flat: Tensor) -> Rounded | None:
        """Rows of an input in int8: as the norm or the layer before has left them with it, or made now.

        Args:
            x: (..., in), as it was given to the layer.
            flat: (N, in), the same.

        Returns:
            int8 rows and scales; None where the kernels do not serve, or where gradients are wanted.
        """
        if torch.is_grad_enabled() or not kernels.usable(flat):
            return None
        inliers = None if self.outliers is None else self.outliers.inliers
        rounded = remembered_rounding(x, self.outliers)
        if rounded is not None:
            return rounded
        rounded = kernels.quantize(flat.contiguous(), inliers)
        if self.shares_input:
            remember_rounding(x, self.outliers, rounded)
        return rounded

    def keep_outliers(self, columns: Tensor, inliers: Tensor) -> None:
        """Round no longer some columns of the input.

        Args:
            columns: (c,) their numbers.
            inliers: (in,) 0 at these, 1 at the others; layers that are given the same input share this tensor.
        """
        rows, absmax = self.int8_weight()
        weights = rows.index_select(1, columns).float() * (absmax * (1 / 127))[:, None]
        self.outliers = Outliers(columns, inliers, weights)

    def _apply(self, fn: Any, recurse: bool = True) -> "LacosLinear8bit":
        self._adopt()
        scales = self.weight.SCB
        super()._apply(fn, recurse)
        if scales is not None:  # they follow the weight to its device, but stay in fp32 whatever the dtype
            self.weight.SCB = scales.to(self.weight.device)
        if self.outliers is not None:
            self.outliers = Outliers(*(part.to(self.weight.device) for part in self.outliers))
        self._adopt()
        return self


def convert_linear_(model: nn.Module, compute_form: ComputeForm = "w8a8", training_form: ComputeForm = "w8a16") -> int:
    """Give every quantised ``bnb.nn.Linear8bitLt`` in ``model`` our class, in place.

    Args:
        model: Any module; layers with trainable (fp16) weights are left alone.
        compute_form: Product in ``eval()`` mode.
        training_form: Product in ``train()`` mode.

    Returns:
        How many layers now have our class.
    """
    count = 0
    for layer in model.modules():
        if not isinstance(layer, bnb.nn.Linear8bitLt) or layer.state.has_fp16_weights:
            continue
        layer.__class__ = LacosLinear8bit
        layer.compute_form, layer.training_form = compute_form, training_form
        layer._adopt()
        count += 1
    return count


def is_quantized(model: nn.Module) -> bool:
    """Whether a model has 8-bit weights."""
    return any(parameter.dtype == torch.int8 for parameter in model.parameters())
