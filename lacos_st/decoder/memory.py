"""What a run will need, before it runs: peak memory of encoding and training, and the batch that fits.

The prediction adds up what is held at the worst moment. With N tokens in a batch (texts x their mean
length), hidden size H, L layers and b bytes per activation (4 in fp32, 2 in 16 bits):

- *weights*: an int8 byte for every entry of the linear layers and the table, 4 per row for its scale, 2 per row of the
  table, b for the rest;
- *adapter*: LoRA's fp32 parameters, their gradients, and Adam's two moments (one byte each for tensors of at
  least 4,096 entries under 8-bit Adam, which leaves smaller ones in 32 bits);
- *activations*: training keeps per token and layer what the backward pass reads; a walk without memory shows what that
  is (`walk.py`). In BLOOM, whose forward pass is our own, it is the inputs of both layer norms (2H), the adapter's
  input and its dropout mask (2H; 2.5 on CUDA in 16 bits, as the adapter computes in fp32), queries, keys and values
  (3H), the
  attention's output (H) and the GELU's input (4H): about 12H with one layer adapted. Gradient checkpointing keeps H and
  holds the rest for one layer at a time;
- *scratch*: the widest stretch of one layer, int32 products included, and for ``w8a16`` the largest weight
  matrix cast to the activations' dtype.

On CUDA this is the peak that PyTorch's allocator reports, without autocast (with it a layer keeps its norms'
inputs in fp32 and the adapters' in 16 bits: 1H more with one adapter, less with four); on a CPU the growth of
the resident process from before the weights were loaded, with an allowance for what oneDNN and the allocator
keep (`_CPU_OVERHEAD`), and the tokenizer. Modules that a base has after its transformer are not counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import BloomConfig

from lacos_st.decoder.allocator import MAPPED_FROM
from lacos_st.decoder.attention import ALIBI_COLUMNS
from lacos_st.decoder.bloom import LAYERS
from lacos_st.decoder.quantization import default_compute_dtype, resolve_compute_form
from lacos_st.decoder.walk import ALL_LINEAR, build, kept_bytes, shapes_of
from lacos_st.errors import LacosError

# bytes: code pages touched first, oneDNN's compiled kernels and packed operands, the allocator's slack
_CPU_OVERHEAD = 60e6
_TOKENIZER = 1270  # bytes of its process for each of its tokens: Gemma's 262,144 take 0.33 GB
_GB = 1e9

# A block that lies in the heap (`allocator.py`) takes more than its bytes: temporary ones leave holes beside it.
_HEAP_FACTOR = 2.1  # encoding: measured 1.9 to 2.4 times the bytes asked for
# Of what training keeps, by width in units of the hidden size: the widest blocks fill holes that others have left.
# From five runs at bloom-560m's size (`benchmarks/memory.py`), which they predict within 6 %.
_KEPT_HEAP_FACTORS: dict[float, float] = {1: 2.0, 3: 2.0, 4: 1.1}

# Of decoders other than BLOOM, on a CPU: resident bytes for each byte that training keeps, and what encoding holds at
# once, in outputs of the widest layer. From SmolLM2-135M and Gemma 3 270M (benchmarks/memory.py).
_WALK_HEAP_FACTOR = 1.29
_WIDEST_AT_ONCE = 7.0


@dataclass(frozen=True)
class MemoryEstimate:
    """Predicted bytes by cause; `total` is the peak."""

    weights: float
    adapter: float
    activations: float
    scratch: float
    tokenizer: float
    overhead: float

    @property
    def total(self) -> float:
        """The predicted peak in bytes."""
        return self.weights + self.adapter + self.activations + self.scratch + self.tokenizer + self.overhead

    def table(self) -> str:
        """Return a table in GB for people."""
        parts = {
            "weights": self.weights,
            "adapter, gradients, optimizer": self.adapter,
            "activations kept": self.activations,
            "scratch": self.scratch,
            "tokenizer": self.tokenizer,
            "libraries": self.overhead,
            "peak": self.total,
        }
        return "\n".join(f"{name:32} {size / _GB:8.2f} GB" for name, size in parts.items())


def predict(
    config: Any,
    *,
    batch_size: int = 64,
    length: int = 32,
    texts: int = 2,
    training: bool = True,
    rank: int = 16,
    targets: Sequence[str] = (ALL_LINEAR,),
    dropout: float = 0.05,
    optimizer: str = "adamw_8bit",
    gradient_checkpointing: bool = False,
    quantization: str = "int8",
    compute_form: str = "auto",
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> MemoryEstimate:
    """Predict the peak memory of a run.

    Args:
        config: The base's configuration, as transformers has it.
        batch_size: Rows in a batch on this device.
        length: Mean tokens of a text after truncation; padding costs nothing.
        texts: Texts in a row: 2 for pairs, 3 for triplets; encoding has 1.
        training: A training step, or encoding.
        rank: LoRA's rank.
        targets: Layers with an adapter, by the ends of their names. Default: all linear ones.
        dropout: The adapter's dropout.
        optimizer: The Trainer's name; those with "8bit" keep moments in 8 bits.
        gradient_checkpointing: Whether layers are recomputed in the backward pass (on a CPU: with
            `give_memory_back`, without which the heap's holes take most of what it saves).
        quantization: ``int8``, or ``none`` for weights in ``dtype``.
        compute_form: The 8-bit layers' form in this mode.
        device: Where it runs.
        dtype: Of activations; the device's default if None.

    Returns:
        The estimate.

    Raises:
        LacosError: For sizes below one, a target that the base does not have, or an architecture that cannot be
            predicted.

    >>> from transformers import BloomConfig
    >>> small = BloomConfig(vocab_size=250880, hidden_size=1024, n_layer=24, n_head=16)
    >>> round(predict(small, training=False, batch_size=32).weights / 1e9, 2)
    0.56
    """
    for name, value in {"batch_size": batch_size, "length": length, "texts": texts, "rank": rank}.items():
        if not 1 <= value < 2**31:
            raise LacosError(f"{name}={value} is no size: give a whole number of at least 1 and below 2 billion.")
    device = torch.device(device)
    form = resolve_compute_form(compute_form, device, training)
    dtype = dtype or default_compute_dtype(device, form if quantization == "int8" else "w8a16")
    size = dtype.itemsize
    model = build(config, dtype)
    shapes = shapes_of(model)
    adapted = shapes.adapted(targets)
    linear, rows = sum(a * b for _, a, b in shapes.linear), sum(b for _, _, b in shapes.linear)
    vocab, width = shapes.table
    if quantization == "int8":
        weights = linear + 4.0 * rows + vocab * (width + 2.0) + shapes.rest * size
    else:
        weights = float(linear + vocab * width + shapes.rest) * size

    tokens = batch_size * length * (texts if training else 1)
    adapter = 0.0
    if training:
        for columns in (columns for pair in adapted for columns in pair):
            entries = rank * columns
            moment = 1 if "8bit" in optimizer and entries >= 4096 else 4
            adapter += entries * (4 + 4 + 2 * moment)
    largest = max(a * b for _, a, b in shapes.linear) * size if quantization == "int8" and form != "w8a8" else 0
    if isinstance(config, BloomConfig):
        ends = tuple(LAYERS) if list(targets) == [ALL_LINEAR] else tuple(targets)
        activations, scratch = _bloom(
            config, tokens, training, ends, dropout, gradient_checkpointing, form, size, device
        )
    elif training:
        kept = kept_bytes(model, rank, targets, dropout)
        if gradient_checkpointing:
            kept = kept / shapes.layers + shapes.layers * shapes.hidden * size
        holes = _WALK_HEAP_FACTOR if device.type == "cpu" else 1.0
        activations, scratch = tokens * kept * holes, 0.0
    else:
        widest = max(out for _, _, out in shapes.linear)
        activations, scratch = 0.0, float(tokens * widest * size * _WIDEST_AT_ONCE)
    tokenizer, overhead = (float(_TOKENIZER * vocab), _CPU_OVERHEAD) if device.type == "cpu" else (0.0, 0.0)
    return MemoryEstimate(weights, adapter, float(activations), float(scratch + largest), tokenizer, overhead)


def _bloom(
    config: BloomConfig,
    tokens: int,
    training: bool,
    targets: tuple[str, ...],
    dropout: float,
    gradient_checkpointing: bool,
    form: str,
    size: int,
    device: torch.device,
) -> tuple[float, float]:
    """Activations and scratch of BLOOM, whose forward pass is our own."""
    hidden, layers = config.hidden_size, config.n_layer
    unit = tokens * hidden * size
    if not training:
        # hidden states before and after; the widest int32 product and what it is rounded from; queries, keys, values
        product = [tokens * hidden * 16, tokens * hidden * 5] if form == "w8a8" else [8 * unit]
        return 2 * unit * _holes(unit, device), sum(block * _holes(block, device) for block in [*product, 4 * unit])
    widths = _kept(targets, dropout, size, hidden // config.n_head, device)
    if gradient_checkpointing:
        activations = float((sum(widths) + layers) * unit)
    else:
        activations = layers * sum(w * unit * _holes(w * unit, device, _KEPT_HEAP_FACTORS.get(w, 1.0)) for w in widths)
    # backward through the GELU: its gradient, the rounded gradient, the int32 product and its scaled copy
    return activations, tokens * hidden * (4 * size * 2 + 4 + 4 * 2)


def _kept(targets: tuple[str, ...], dropout: float, size: int, head_dim: int, device: torch.device) -> list[float]:
    """What a layer keeps per token for its backward pass, block by block, in multiples of the hidden size."""
    inputs = [LAYERS[target][0] for target in targets]
    if device.type == "cpu":
        # both norms' inputs, attention's output; the adapters' inputs, their dropout masks; q, k, v; GELU's input
        return [1, 1, 1, *inputs, *(inputs if dropout > 0 else []), 3, 4]
    # q, k, v and attention's output carry ALiBi's columns; PEFT casts an adapter's input to fp32, a mask has a byte
    attention = 4 * (1 + ALIBI_COLUMNS / head_dim)
    return [1, 1, attention, 4, *(width * (4 + (dropout > 0)) / size for width in inputs)]


def _holes(size: float, device: torch.device, factor: float = _HEAP_FACTOR) -> float:
    """Resident bytes for each byte of a block of this size that is allocated among temporary ones."""
    return factor if device.type == "cpu" and size < MAPPED_FROM else 1.0


def available_memory(device: torch.device | str = "cpu") -> int:
    """Return the bytes that a new run can take on ``device`` now."""
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


def auto_batch_size(
    config: Any, *, available: float | None = None, largest: int = 512, device: torch.device | str = "cpu", **run: Any
) -> int:
    """Return the largest batch whose predicted peak fits: ``largest``, or a power of two below it.

    Args:
        config: The base's configuration, as transformers has it.
        available: Bytes to fill; 0.9 of what is free on ``device`` if None.
        largest: Upper limit.
        device: Where it runs.
        **run: Everything else of `predict` but ``batch_size``.

    Returns:
        A batch size of at least 1.

    Raises:
        LacosError: If not even one row fits.
    """
    budget = 0.9 * available_memory(device) if available is None else available
    sizes = {2**power for power in range(largest.bit_length())} | {largest}
    fits = [size for size in sizes if predict(config, batch_size=size, device=device, **run).total <= budget]
    if not fits:
        need = predict(config, batch_size=1, device=device, **run).total
        raise LacosError(
            f"one row needs {need / _GB:.1f} GB and {budget / _GB:.1f} GB are free on {device}: use a smaller base, "
            "shorter texts (max_seq_length) or gradient_checkpointing=True."
        )
    return max(fits)
