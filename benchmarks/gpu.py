"""Every GPU check in one call: parity with fp32, speed against stock, and a 7.1B model trained end to end.

With no GPU the same checks run on the CPU over a small configuration, so that the script itself is tested.

python benchmarks/gpu.py --output docs/benchmarks/GPU/gpu.json
"""

import argparse
import json
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import large
import torch
from common import build, checkpoint, free, machine, mean_pool, report, sentences, time_interleaved
from train import gradient, step, trainable

from lacos_st import LacosSentenceTransformer
from lacos_st.decoder.fast_path import accelerate_

LARGE = {"vocab_size": 250880, "hidden_size": 4096, "n_layer": 30, "n_head": 32}  # bloom-7b1
MEDIUM = {"layers": 24, "hidden": 1024, "heads": 16}
SMALL_LARGE = {"vocab_size": 60000, "hidden_size": 128, "n_layer": 3, "n_head": 4}
SMALL_MEDIUM = {"layers": 2, "hidden": 128, "heads": 4}


def parity(sizes: dict[str, int], device: str) -> dict[str, float]:
    """Lowest cosine to fp32, invariance to batch mates, attention at 2,048 tokens, and gradients."""
    path = checkpoint(**sizes)
    ids, mask = (tensor.to(device) for tensor in sentences(16, 4, 60))
    result = {}
    with torch.inference_mode():
        reference = mean_pool(build("stock fp32", path, device)(ids, attention_mask=mask).last_hidden_state, mask)
        for name in ("ours w8a8", "ours w8a16", "ours unquantised", "stock int8 bf16", "stock bf16"):
            model = build(name, path, device)
            together = mean_pool(model(ids, attention_mask=mask).last_hidden_state, mask)
            alone = mean_pool(model(ids[:1], attention_mask=mask[:1]).last_hidden_state, mask[:1])
            result[f"{name}: cosine to fp32"] = torch.cosine_similarity(together, reference).min().item()
            result[f"{name}: alone and in a batch"] = torch.cosine_similarity(alone, together[:1]).item()
            free()
        long = torch.randint(1, 2000, (1, 2048), device=device)
        fp32 = build("stock fp32", path, device)(long).last_hidden_state
        for name in ("ours unquantised", "stock bf16"):
            found = build(name, path, device)(long).last_hidden_state
            result[f"{name}: relative error at 2,048 tokens"] = ((found - fp32).norm() / fp32.norm()).item()
        both = {name: build(name, path, device) for name in ("stock fp32", "ours unquantised")}
        for model in both.values():
            model.config.is_causal = False
        accelerate_(both["ours unquantised"])
        for tokens, real in ((ids, mask.bool()), (long, torch.ones_like(long).bool())):
            states = (model(tokens, attention_mask=real.long()).last_hidden_state[real] for model in both.values())
            expected, found = states
            error = ((found - expected).norm() / expected.norm()).item()
            result[f"ours unquantised, both sides: relative error at {tokens.shape[1]:,} tokens"] = error
    models = {name: trainable(name, path, device) for name in ("ours w8a16 fp32", "ours auto", "stock int8 bf16")}
    for model in models.values():
        step(model, ids, mask)
    expected = gradient(models["ours w8a16 fp32"])
    for name in ("ours auto", "stock int8 bf16"):
        cosine = torch.cosine_similarity(gradient(models[name]), expected, dim=0).item()
        result[f"{name}: gradient cosine to fp32"] = cosine
    return result


def speed(sizes: dict[str, int], device: str) -> dict[str, dict[str, float]]:
    """Encoding and a training step, ours and stock, interleaved."""
    path = checkpoint(**sizes)
    results = {}
    names = ["stock bf16", "stock int8 bf16", "ours unquantised", "ours w8a8", "ours w8a16"]
    for case, shape in {"64 sentences of STS length": (64, 8, 32), "8 x 512 tokens": (8, 512, 512)}.items():
        ids, mask = (tensor.to(device) for tensor in sentences(*shape))
        models = {name: build(name, path, device) for name in names}
        with torch.inference_mode():
            runs = {n: partial(m, ids, attention_mask=mask, use_cache=False) for n, m in models.items()}
            results[f"encode {case}, seconds"] = time_interleaved(runs, 5, device)
        free()
    ids, mask = (tensor.to(device) for tensor in sentences(128, 64, 64))
    models = {name: trainable(name, path, device) for name in ("stock int8 bf16", "ours unquantised", "ours w8a16")}
    steps = {name: partial(step, model, ids, mask) for name, model in models.items()}
    results["training step of 64 pairs x 64 tokens, seconds"] = time_interleaved(steps, 3, device)
    return results


def embedded(device: str) -> dict[str, float]:
    """`lacos-bloom` with its layers around the pooling: lowest cosine to what the CPU says, and to its own alone."""
    texts = ["A man is playing a guitar.", "Un homme joue de la guitare.", "Kedi uyuyor.", "Prices fell sharply."]
    texts = [f"{text} {number}" for number in range(16) for text in texts]

    def encode(model: LacosSentenceTransformer, rows: list[str]) -> torch.Tensor:
        return model.encode(rows, normalize_embeddings=True, convert_to_tensor=True).float().cpu()

    expected = encode(LacosSentenceTransformer("lacos-bloom", device="cpu"), texts)
    result = {}
    for form in ("auto", "w8a8", "w8a16"):
        options = {"compute_form": form}
        model = LacosSentenceTransformer("lacos-bloom", device=device, transformer_options=options)
        together = encode(model, texts)
        alone = torch.cat([encode(model, [text]) for text in texts[:8]])
        result[f"{form}: cosine to the CPU's"] = (together * expected).sum(1).min().item()
        result[f"{form}: alone and in a batch"] = (alone * together[:8]).sum(1).min().item()
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        result["w8a16 under autocast: cosine to the CPU's"] = (encode(model, texts) * expected).sum(1).min().item()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="+", help="names of checks, or the first words of them")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    device = arguments.device
    gpu = device != "cpu"
    with tempfile.TemporaryDirectory(prefix="lacos-7b1-") as folder:
        base = Path(folder, "base")

        def at_7b1(check: Callable[[], dict[str, Any]]) -> dict[str, Any]:
            if not base.exists():
                large.write_checkpoint(base, LARGE if gpu else SMALL_LARGE, device)
                free()
            return check()

        checks = {
            "parity": partial(parity, MEDIUM if gpu else SMALL_MEDIUM, device),
            "7.1B, lacos-st train by its recipe": partial(
                at_7b1, partial(large.end_to_end, base, Path(folder), device)
            ),
            "embedded": partial(embedded, device),
            "speed": partial(speed, MEDIUM if gpu else SMALL_MEDIUM, device),
            "7.1B, a training step": partial(at_7b1, partial(large.compare, base, device, 64 if gpu else 8)),
        }
        results: dict[str, Any] = {"machine": machine(device)}
        for name, check in checks.items():
            if arguments.only and not name.startswith(tuple(arguments.only)):
                continue
            started = time.perf_counter()
            try:
                results[name] = check()
            except Exception as error:  # what the other checks find is worth having
                traceback.print_exc()
                results[name] = {"failed": f"{type(error).__name__}: {error}"}
            print(json.dumps({name: results[name], "took": time.perf_counter() - started}), flush=True)
            free()
            if arguments.output:
                arguments.output.parent.mkdir(parents=True, exist_ok=True)
                arguments.output.write_text(json.dumps(results, indent=1) + "\n")
    failed = [name for name, found in results.items() if "failed" in found]
    for name in list(results):
        if all(isinstance(part, dict) for part in results[name].values()):
            results |= results.pop(name)
    report(results, None)
    if failed:
        raise SystemExit(f"Failed: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
