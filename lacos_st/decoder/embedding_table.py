"""The 8-bit embedding table: int8 rows with one absolute maximum each, 46 % of bloom-560m in half its 16-bit size.

A lookup dequantises the rows it reads and no others. Stock transformers reads no 8-bit table, so on disk it is a
floating one, and quantising that again gives back the same bytes (`quantize_table`): ``int8 -> 16 bits -> int8`` is the
identity, and saving never drifts.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import bitsandbytes as bnb
import torch
from torch import Tensor, nn

from lacos_st.errors import LacosError

# Rows whose largest entry is below this are stored as zeros: fp16 could not carry them through a saved file
# exactly.
_SMALLEST_ROW = 2.0**-16
_ADAPTED = "An adapter lies over the embedding table, which cannot be {} then: merge_adapter() first."


def quantize_table(table: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise an embedding table by rows; written in 16 bits and quantised again it has the same bytes.

    The scale is rounded to bf16 first, which fp16 holds as well. A row's largest entry is then +-127, stored
    exactly as +-absmax in bf16, fp16 or fp32; every other entry moves by at most a quarter of a step (bf16:
    127 * 2^-9), short of the half that would change its integer.

    Args:
        table: (V, H), floating.

    Returns:
        int8 rows (V, H) and absmax (V,) in fp32 (each exactly representable in bf16).
    """
    rows = torch.empty(table.shape, dtype=torch.int8, device=table.device)
    absmax = torch.empty(len(table), dtype=torch.float32, device=table.device)
    for start in range(0, len(table), 8192):  # bounded scratch memory: the table may be gigabytes
        part = table[start : start + 8192].float()
        scale = part.abs().amax(1).bfloat16().float()
        scale[scale < _SMALLEST_ROW] = 0
        inverse = torch.where(scale > 0, 127 / scale, 0)
        rows[start : start + 8192] = (part * inverse[:, None]).round_().clamp_(-127, 127).to(torch.int8)
        absmax[start : start + 8192] = scale
    return rows, absmax


class LacosEmbedding8bit(bnb.nn.Embedding8bit):
    """An embedding table of int8 rows with one absolute maximum each; looked up without a dequantised table.

    Its state dict holds one floating ``weight``, which stock transformers reads; loading that restores the
    same bytes.

    Args:
        table: (V, H) floating weights to quantise.
        dtype: Of the rows returned by a lookup.
        padding_idx: As in ``nn.Embedding``.
        scale: What a lookup multiplies rows by; some families have the square root of their hidden size there.
    """

    absmax: Tensor

    def __init__(self, table: Tensor, dtype: torch.dtype, padding_idx: int | None = None, scale: float = 1.0) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = table.shape
        self.padding_idx = padding_idx
        self.max_norm, self.norm_type = None, 2.0
        self.scale_grad_by_freq = self.sparse = False
        self.dtype, self.scale = dtype, scale
        rows, absmax = quantize_table(table.detach())
        # Buffers: sentence-transformers casts modules to the dtype of a model's first parameter, and what is set on a
        # tensor is lost on the way to another process.
        self.register_buffer("weight", rows)
        self.register_buffer("absmax", absmax.bfloat16(), persistent=False)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse floating weights in the place of the rows, as from a decoder that is tied to the table."""
        if name == "weight" and isinstance(value, Tensor) and value.is_floating_point():
            raise LacosError(
                "The embedding table is in 8 bits and frozen, and a decoder's floating weights cannot take its place. "
                "Load the base with transformer_options={'quantization': 'none'}, or do not tie the decoder to it "
                "(tie_encoder_decoder=False)."
            )
        super().__setattr__(name, value)

    def forward(self, input: Tensor) -> Tensor:
        """Look up token ids (...) -> (..., H) in ``self.dtype``."""
        ids = input.reshape(-1)
        scale = self.absmax.index_select(0, ids).float() * (self.scale / 127)
        rows = self.weight.data.index_select(0, ids) * scale[:, None]
        return rows.to(self.dtype).view(*input.shape, self.embedding_dim)

    def dequantize(self, dtype: torch.dtype = torch.float16) -> Tensor:
        """Return the whole table (V, H) in ``dtype``."""
        table = torch.empty(self.weight.shape, dtype=dtype, device=self.weight.device)
        for start in range(0, len(table), 8192):
            part = slice(start, start + 8192)
            table[part] = self.weight.data[part] * (self.absmax[part].float() * (1 / 127))[:, None]
        return table

    def add_(self, delta: Tensor) -> None:
        """Add an update (V, H) to the table: in float, then quantised again row by row."""
        rows, absmax = quantize_table(self.dequantize(torch.float32) + delta.float())
        self.weight.data.copy_(rows)
        self.absmax.copy_(absmax)

    def _apply(self, fn: Any, recurse: bool = True) -> "LacosEmbedding8bit":
        absmax = self.absmax
        super()._apply(fn, recurse)
        self.absmax = absmax.to(self.weight.device)  # bf16, which holds it exactly, whatever the model is cast to
        floating = fn(torch.empty(0, dtype=self.dtype, device=self.weight.device))
        self.dtype = floating.dtype  # a model cast to another dtype expects its embeddings in it
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.dequantize(self.dtype)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        table = state_dict.get(prefix + "weight")
        if table is None:
            args[2].append(prefix + "weight")  # local_metadata, strict, missing_keys, ...
            return
        if tuple(table.shape) != tuple(self.weight.shape):
            args[4].append(
                f"size mismatch for {prefix}weight: the saved table is {tuple(table.shape)}, "
                f"this one {tuple(self.weight.shape)}."
            )
            return
        rows, absmax = quantize_table(table)
        self.weight.data.copy_(rows)
        self.absmax.copy_(absmax)


def quantize_embedding_(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Replace the model's input embedding table by an 8-bit one, in place.

    Args:
        model: A transformers model (anything with ``get_input_embeddings``).
        dtype: Of looked-up rows; the table's own by default.

    Returns:
        ``model``. Nothing happens if the table is 8-bit already.
    """
    looked_up = model.get_input_embeddings()  # type: ignore[operator]
    table = getattr(looked_up, "base_layer", looked_up)  # an adapter may lie over it
    if not isinstance(table, LacosEmbedding8bit):
        quantized = LacosEmbedding8bit(table.weight, dtype or table.weight.dtype, table.padding_idx, _scale_of(table))
        if table is looked_up:
            model.set_input_embeddings(quantized)  # type: ignore[operator]
        else:
            looked_up.base_layer = quantized
    return model


def _scale_of(table: nn.Embedding) -> float:
    """What a table multiplies its rows by, read off the lookup of a row in fp32."""
    if type(table) is nn.Embedding or table.weight.is_meta:
        return 1.0
    row = table.weight[int(table.weight.detach().abs().amax(1).argmax())].detach().float()
    probe = copy.copy(table)
    probe._parameters, probe.padding_idx, probe.num_embeddings = {"weight": nn.Parameter(row[None])}, None, 1
    with torch.no_grad():
        found = probe(torch.tensor([0], device=row.device))[0]
    place = int(row.abs().argmax())
    scale = float(found[place] / row[place])
    if not torch.allclose(found, row * scale, rtol=1e-4, atol=1e-6):
        raise LacosError(
            f"The embedding table is a {type(table).__name__}, which does more than look rows up and scale them: load "
            "the model in full precision."
        )
    return scale


def keep_rows_(model: nn.Module, rows: Sequence[int]) -> None:
    """Keep some rows of the model's input embedding table, in place; the bytes of each stay what they are.

    Args:
        model: With an 8-bit or a floating table. Its configuration is told the new number of rows.
        rows: Which, in their new order.

    Raises:
        LacosError: An adapter lies over the table.
    """
    table = model.get_input_embeddings()  # type: ignore[operator]
    if hasattr(table, "base_layer"):
        raise LacosError(_ADAPTED.format("trimmed"))
    index = torch.tensor(rows, device=table.weight.device)
    with torch.no_grad():
        if isinstance(table, LacosEmbedding8bit):
            table.weight, table.absmax = table.weight[index], table.absmax[index]
        else:
            table.weight = nn.Parameter(table.weight[index], requires_grad=table.weight.requires_grad)
    table.num_embeddings = model.config.vocab_size = len(rows)  # type: ignore[union-attr]


@contextmanager
def floating_table(model: nn.Module) -> Iterator[None]:
    """Give a model a floating table for a while, in which host libraries know how to add and drop rows.

    Args:
        model: With an 8-bit table, else nothing happens. It gets one again at the end; rows that stay keep their bytes.

    Raises:
        LacosError: An adapter lies over the table.
    """
    table = model.get_input_embeddings()  # type: ignore[operator]
    if isinstance(getattr(table, "base_layer", None), LacosEmbedding8bit):
        raise LacosError(_ADAPTED.format("resized"))
    if not isinstance(table, LacosEmbedding8bit):
        yield
        return
    floating = nn.Embedding.from_pretrained(table.dequantize(table.dtype), padding_idx=table.padding_idx)
    model.set_input_embeddings(floating)  # type: ignore[operator]
    try:
        yield
    finally:
        quantize_embedding_(model, table.dtype)
        model.get_input_embeddings().scale = table.scale  # type: ignore[operator]
