"""Encode: ours against every stock configuration, from sentence pairs' lengths to 2,048 tokens, and its accuracy.

python benchmarks/encode.py --output docs/benchmarks/CPU/encode.json
"""

import argparse
from functools import partial

import torch
from common import add_arguments, build, checkpoint, free, machine, mean_pool, report, sentences, time_interleaved

# name: sentences, shortest, longest
CASES = {"sts": (32, 8, 32), "128": (8, 64, 128), "512": (2, 512, 512), "2048": (1, 2048, 2048)}
LONG_LAYERS = 4
STOCK = ["stock fp32", "stock bf16", "stock int8 fp32", "stock int8 bf16"]
OURS = ["ours auto", "ours w8a8 bf16", "ours w8a16"]


def accuracy(path: str, forms: list[str], device: str) -> dict[str, float]:
    """Lowest cosine of a sentence embedding to stock fp32 over the same (unquantised) weights."""
    ids, mask = (tensor.to(device) for tensor in sentences(32, 8, 32))

    def embed(name: str) -> torch.Tensor:
        model = build(name, path, device)
        return mean_pool(model(ids, attention_mask=mask).last_hidden_state, mask)

    with torch.inference_mode():
        reference = embed("stock fp32")
        result = {}
        for name in forms:
            result[name] = torch.cosine_similarity(embed(name), reference).min().item()
            free()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--no-accuracy", action="store_true")
    arguments = parser.parse_args()
    path = checkpoint(arguments.layers, arguments.hidden, arguments.heads)
    results: dict = {"machine": machine(arguments.device), "configuration": vars(arguments) | {"output": None}}
    if not arguments.no_accuracy:
        results["lowest cosine to fp32"] = accuracy(path, [*STOCK[1:], *OURS, "ours w8a8"], arguments.device)
        planted = checkpoint(arguments.layers, arguments.hidden, arguments.heads, outliers=True)
        results["the same with planted outlier channels"] = accuracy(
            planted, ["stock int8 fp32", "stock int8 bf16", "ours auto", "ours w8a8"], arguments.device
        )
    for case in arguments.cases:
        # cost is linear in layers: a few suffice where a stock batch takes half a minute
        layers = arguments.layers if case == "sts" else min(arguments.layers, LONG_LAYERS)
        path = checkpoint(layers, arguments.hidden, arguments.heads)
        models = {name: build(name, path, arguments.device) for name in [*STOCK, *OURS]}
        ids, mask = (tensor.to(arguments.device) for tensor in sentences(*CASES[case]))
        runs = {n: partial(m, ids, attention_mask=mask, use_cache=False) for n, m in models.items()}
        repeats = arguments.repeats if case == "sts" else max(1, arguments.repeats - 1)
        with torch.inference_mode():
            times = time_interleaved(runs, repeats, arguments.device)
        ours = times["ours auto"]
        results[f"{case}: seconds for {int(mask.sum())} tokens, {layers} layers"] = times
        results[f"{case}: ours auto is faster by"] = {
            "stock fp32": times["stock fp32"] / ours,
            "stock bf16": times["stock bf16"] / ours,
            "stock int8, default": times["stock int8 fp32"] / ours,
            "stock int8, best": min(times["stock int8 fp32"], times["stock int8 bf16"]) / ours,
        }
        del models, runs
        free()
    report(results, arguments.output)


if __name__ == "__main__":
    main()
