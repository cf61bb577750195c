"""What the benchmarks share: random models at real block sizes, stock and ours, and interleaved timing.

Random weights time like trained ones; only accuracy depends on values, so layer norms and biases are randomised too
(the stock initialisation would hide errors in them). The vocabulary is small: its table costs memory, not time.
"""

import argparse
import gc
import json
import logging
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from torch import Tensor
from transformers import AutoModel, BitsAndBytesConfig, BloomConfig, BloomModel

from lacos_st.decoder.embedding_table import quantize_embedding_
from lacos_st.decoder.fast_path import accelerate_
from lacos_st.decoder.quantization import default_compute_dtype, resolve_compute_form

VOCAB = 8192
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it repeats "inputs will be cast" at every layer
transformers.utils.logging.disable_progress_bar()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layers", type=int, default=24, help="24 is bloom-560m")
    parser.add_argument("--hidden", type=int, default=1024, help="1024 is bloom-560m")
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3, help="interleaved rounds; medians are reported")
    parser.add_argument("--output", type=Path, help="write the results there as JSON")


@lru_cache(maxsize=2)
def checkpoint(layers: int, hidden: int, heads: int, outliers: bool = False, vocab: int = VOCAB) -> str:
    """Write a random fp32 BLOOM to a temporary directory and return its path.

    ``outliers`` plants what large models grow: a few channels whose layer-norm gains are 20 and 60 times the others'.
    """
    torch.manual_seed(0)
    model = BloomModel(BloomConfig(vocab_size=vocab, hidden_size=hidden, n_layer=layers, n_head=heads))
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            continue
        parameter.data = torch.randn_like(parameter) * 0.1 + (1 if "layernorm.weight" in name else 0)
        if outliers and name.endswith("layernorm.weight") and name.startswith("h."):
            parameter.data[[3, 77]] *= 20
            parameter.data[[11]] *= 60
    directory = tempfile.TemporaryDirectory(prefix="lacos-benchmark-")
    _KEEP.append(directory)
    model.save_pretrained(directory.name)
    return directory.name


_KEEP: list[tempfile.TemporaryDirectory] = []

BUILDERS = {
    # what a user of the stock stack can choose
    "stock fp32": {"dtype": torch.float32},
    "stock bf16": {"dtype": torch.bfloat16},
    "stock int8 fp32": {"dtype": torch.float32, "int8": True},  # sentence-transformers' default on a CPU
    "stock int8 bf16": {"dtype": torch.bfloat16, "int8": True},
    # ours
    "ours w8a8": {"int8": True, "form": "w8a8"},
    "ours w8a16": {"int8": True, "form": "w8a16"},
    "ours auto": {"int8": True, "form": "auto"},
    "ours unquantised": {"form": "auto"},
    "ours w8a8 bf16": {"int8": True, "form": "w8a8", "dtype": torch.bfloat16},
    "ours w8a8 fp32": {"int8": True, "form": "w8a8", "dtype": torch.float32},
    "ours w8a16 bf16": {"int8": True, "form": "w8a16", "dtype": torch.bfloat16},
    "ours w8a16 fp32": {"int8": True, "form": "w8a16", "dtype": torch.float32},
}


def build(name: str, path: str, device: str = "cpu") -> BloomModel:
    """Load the checkpoint as `BUILDERS` says."""
    options = BUILDERS[name]
    form = options.get("form")
    computed = resolve_compute_form(form or "w8a16", device, training=False)
    dtype = options.get("dtype") or default_compute_dtype(device, computed)
    extra: dict[str, Any] = {}
    if options.get("int8"):
        extra["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    model = AutoModel.from_pretrained(path, dtype=dtype, device_map={"": device}, **extra).eval()
    if form:
        if options.get("int8"):
            quantize_embedding_(model, dtype)
        accelerate_(model, form, form)
    return model


def weight_bytes(model: torch.nn.Module) -> int:
    """Bytes of parameters and buffers, and of the scales that bitsandbytes keeps on a tensor."""
    held = [*model.parameters(), *model.buffers()]
    held += [tensor.SCB for tensor in held if getattr(tensor, "SCB", None) is not None]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


def sentences(count: int, shortest: int, longest: int, seed: int = 0, side: str = "left") -> tuple[Tensor, Tensor]:
    """Random token ids (count, longest) and mask; lengths uniform in [shortest, longest], padded as BLOOM pads."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCAB, (count, longest), generator=generator)
    lengths = torch.randint(shortest, longest + 1, (count,), generator=generator)
    lengths[0] = longest
    mask = (torch.arange(longest) < lengths[:, None]).long()
    return (ids, mask.flip(1)) if side == "left" else (ids, mask)


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    weights = mask[..., None].to(torch.float32).to(hidden.device)
    return (hidden.float() * weights).sum(1) / weights.sum(1)


def time_interleaved(
    functions: dict[str, Callable[[], Any]], repeats: int, device: str = "cpu", warmup: int = 1
) -> dict[str, float]:
    """Median seconds of each function; one call of each in turn, so that a busy moment hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for round_ in range(repeats + warmup):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if device != "cpu":
                torch.cuda.synchronize()
            if round_ >= warmup:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def machine(device: str = "cpu") -> dict[str, Any]:
    capabilities = torch.cpu.get_capabilities()
    return {
        "device": torch.cuda.get_device_name()
        if device != "cpu"
        else capabilities.get("cpu_name", platform.processor()),
        "threads": torch.get_num_threads(),
        "features": sorted(key for key, value in capabilities.items() if value is True and key[:3] in ("avx", "amx")),
        "max_isa": os.environ.get("ONEDNN_MAX_CPU_ISA", "not limited"),
        "torch": torch.__version__,
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
    }


def report(results: dict[str, Any], output: Path | None) -> None:
    """Print a table of every nested dict of numbers and write the JSON."""
    for title, part in results.items():
        if isinstance(part, dict):
            print(f"\n{title}")
            for key, value in part.items():
                print(f"  {key:44} {value:.4g}" if isinstance(value, float) else f"  {key:44} {value}")
    print("\n" + json.dumps(results))
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = output.with_suffix(".tmp")
        temporary.write_text(json.dumps(results, indent=1) + "\n")
        temporary.replace(output)


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
