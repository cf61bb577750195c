"""Every GPU check in one call: parity with fp32, speed against stock, and a 7.1B model trained end to end.

With no GPU the same checks run on the CPU over a small configuration, so that the script itself is tested.

python benchmarks/gpu.py --output docs/benchmarks/CPU/gpu.json
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path

import bitsandbytes as bnb
import torch
from common import build, checkpoint, free, machine, mean_pool, report, sentences, time_interleaved
from peft import LoraConfig
from train import gradient, step, trainable
from transformers import BloomConfig, BloomModel

from lacos_st.bloom import LacosBloomModel, accelerate_
from lacos_st.embedding_table import LacosEmbedding8bit
from lacos_st.memory import predict, reset_peak, resident_bytes
from lacos_st.quantization import default_compute_dtype

LARGE = {"vocab_size": 250880, "hidden_size": 4096, "n_layer": 30, "n_head": 32}  # bloom-7b1
MEDIUM = {"layers": 24, "hidden": 1024, "heads": 16}
SMALL_LARGE = {"vocab_size": 2000, "hidden_size": 128, "n_layer": 3, "n_head": 4}
SMALL_MEDIUM = {"layers": 2, "hidden": 128, "heads": 4}


def random_int8(config: BloomConfig, device: str) -> LacosBloomModel:
    """A quantised model made layer by layer on the device: its 16-bit form never exists."""
    dtype = default_compute_dtype(device, "w8a16")
    with torch.device("meta"):
        model = BloomModel(config).to(dtype)
    for path, module in list(model.named_modules()):
        parent = model.get_submodule(path.rpartition(".")[0])
        child = path.rpartition(".")[2]
        if isinstance(module, torch.nn.Linear):
            layer = bnb.nn.Linear8bitLt(
                module.in_features, module.out_features, has_fp16_weights=False, threshold=6.0, device="meta"
            )
            rows = torch.randint(-127, 128, tuple(module.weight.shape), dtype=torch.int8, device=device)
            layer.weight = bnb.nn.Int8Params(rows, requires_grad=False, has_fp16_weights=False)
            layer.weight.SCB = torch.full((module.out_features,), 0.05, device=device)
            layer.bias = torch.nn.Parameter(torch.zeros(module.out_features, dtype=dtype, device=device), False)
            setattr(parent, child, layer)
        elif isinstance(module, torch.nn.Embedding):
            rows = torch.randint(-127, 128, tuple(module.weight.shape), dtype=torch.int8, device=device)
            absmax = torch.full((module.num_embeddings,), 0.0625, device=device)
            setattr(parent, child, LacosEmbedding8bit.from_quantized(rows, absmax, dtype))
        elif isinstance(module, torch.nn.LayerNorm):
            fresh = torch.nn.LayerNorm(module.normalized_shape, eps=module.eps, dtype=dtype, device=device)
            setattr(parent, child, fresh.requires_grad_(False))
    return accelerate_(model)


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


def train_large(settings: dict[str, int], pairs: int, device: str) -> dict[str, float]:
    """A few optimizer steps of LoRA over a random int8 model of bloom-7b1's size: peak memory and finite losses."""
    config = BloomConfig(**settings)
    cuda = device != "cpu"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    reset_peak()
    baseline = 0 if cuda else resident_bytes()
    model = random_int8(config, device)
    model.add_adapter(LoraConfig(r=16, target_modules=["query_key_value"]))
    model.train()
    optimizer = bnb.optim.AdamW8bit([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    ids = torch.randint(1, 1000, (2 * pairs, 64), device=device)
    mask = torch.ones_like(ids)
    start, finite = time.perf_counter(), 1.0
    for _ in range(4):
        step(model, ids, mask)
        finite *= float(all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None))
        optimizer.step()
    if cuda:
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / 4
    peak = torch.cuda.max_memory_allocated() if cuda else resident_bytes(peak=True) - baseline
    expected = predict(config, batch_size=pairs, length=64, dropout=0.0, device=device).total
    return {
        "gradients finite": finite,
        "seconds a step": seconds,
        "peak GB": peak / 1e9,
        "predicted peak GB": expected / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    large = arguments.device != "cpu"
    results: dict = {"machine": machine(arguments.device)}
    checks = {
        "parity": partial(parity, MEDIUM if large else SMALL_MEDIUM, arguments.device),
        "training at 7.1B": partial(train_large, LARGE if large else SMALL_LARGE, 64 if large else 8, arguments.device),
        "speed": partial(speed, MEDIUM if large else SMALL_MEDIUM, arguments.device),
    }
    for name, check in checks.items():
        results[name] = check()
        print(json.dumps({name: results[name]}), flush=True)  # what is measured stays if a later check fails
        free()
    results |= results.pop("speed")
    report(results, arguments.output)


if __name__ == "__main__":
    main()
