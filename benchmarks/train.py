"""One training step (LoRA r=16 on query_key_value, in-batch negatives): speed and the gradients' accuracy.

The reference for gradients is fp32 compute over the same int8 weights, so that only the form of compute differs.

python benchmarks/train.py --output docs/benchmarks/CPU/train.json
"""

import argparse
from collections.abc import Callable

import torch
from common import (
    add_arguments,
    build,
    checkpoint,
    free,
    machine,
    mean_pool,
    report,
    sentences,
    time_interleaved,
)
from peft import LoraConfig
from torch.nn import functional
from transformers import BloomModel

NAMES = ["stock int8 fp32", "stock int8 bf16", "ours auto", "ours w8a8 bf16", "ours w8a16"]


def trainable(name: str, path: str, device: str) -> BloomModel:
    """The model with one and the same random adapter."""
    model = build(name, path, device)
    model.requires_grad_(False)
    torch.manual_seed(1)
    model.add_adapter(LoraConfig(r=16, lora_alpha=32, target_modules=["query_key_value"]))
    generator = torch.Generator().manual_seed(2)
    for key, parameter in model.named_parameters():
        if "lora_B" in key:  # zeros otherwise, and A would have no gradient
            parameter.data = (torch.randn(parameter.shape, generator=generator) * 0.02).to(device, parameter.dtype)
    return model.train()


def step(model: BloomModel, ids: torch.Tensor, mask: torch.Tensor) -> None:
    """Forward and backward for the first half of the batch paired with the second."""
    model.zero_grad()
    embeddings = mean_pool(model(ids, attention_mask=mask).last_hidden_state, mask)
    anchors, positives = functional.normalize(embeddings, dim=-1).chunk(2)
    labels = torch.arange(len(anchors), device=ids.device)
    functional.cross_entropy(anchors @ positives.T * 20, labels).backward()


def gradient(model: BloomModel) -> torch.Tensor:
    found = sorted((n, p.grad) for n, p in model.named_parameters() if p.grad is not None)
    return torch.cat([grad.flatten().double().cpu() for _, grad in found])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    path = checkpoint(arguments.layers, arguments.hidden, arguments.heads)
    ids, mask = (tensor.to(arguments.device) for tensor in sentences(2 * arguments.pairs, 8, 32))
    reference = trainable("ours w8a16 fp32", path, arguments.device)
    step(reference, ids, mask)
    expected = gradient(reference)
    del reference
    free()
    models = {name: trainable(name, path, arguments.device) for name in NAMES}
    runs: dict[str, Callable[[], None]] = {n: lambda m=m: step(m, ids, mask) for n, m in models.items()}
    times = time_interleaved(runs, arguments.repeats, arguments.device, warmup=0)
    results: dict = {"machine": machine(arguments.device), "configuration": vars(arguments) | {"output": None}}
    results["gradient cosine to fp32 compute"] = {}
    results["gradient relative error"] = {}
    for name, model in models.items():
        found = gradient(model)
        error = ((found - expected).norm() / expected.norm()).item()
        results["gradient cosine to fp32 compute"][name] = torch.cosine_similarity(found, expected, dim=0).item()
        results["gradient relative error"][name] = error
    results[f"seconds for {int(mask.sum())} tokens"] = times
    results["ours auto is faster by"] = {
        "stock int8, default": times["stock int8 fp32"] / times["ours auto"],
        "stock int8, best": min(times["stock int8 fp32"], times["stock int8 bf16"]) / times["ours auto"],
    }
    report(results, arguments.output)


if __name__ == "__main__":
    main()
