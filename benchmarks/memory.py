"""Memory: resident weights and loading, ours against stock; predicted against measured peaks.

Each measurement runs in a process of its own, as resident memory never shrinks reliably within one.

python benchmarks/memory.py --output docs/benchmarks/CPU/memory.json
python benchmarks/memory.py --base DECODER     a directory as transformers saves one: predicted against measured alone
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from common import BUILDERS, build, checkpoint, machine, mean_pool, report, weight_bytes
from peft import LoraConfig
from transformers import AutoModel, AutoTokenizer

from lacos_st.decoder.allocator import give_memory_back, reset_peak, resident_bytes, settle_heap
from lacos_st.decoder.memory import predict
from lacos_st.embedded.unpack import embedded_directory

FULL_VOCAB = 250880
LOADED = ["stock fp32", "stock bf16", "stock int8 bf16", "ours auto"]
# name: batch, tokens a text, training, checkpointing
RUNS = {
    "encode 32 x 20": (32, 20, False, False),
    "encode 64 x 128": (64, 128, False, False),
    "train 32 pairs x 20": (32, 20, True, False),
    "train 24 pairs x 48": (24, 48, True, False),
    "train 64 pairs x 32": (64, 32, True, False),
    "train 64 pairs x 32, checkpointing": (64, 32, True, True),
    "train 24 pairs x 32": (24, 32, True, False),
    "train 48 pairs x 40": (48, 40, True, False),
    # The prediction was made without a look at these.
    "encode 8 x 400": (8, 400, False, False),
    "train 48 pairs x 20, checkpointing": (48, 20, True, True),
    "train 40 pairs x 16": (40, 16, True, False),
}


def private_bytes() -> int:
    """Resident memory without what is shared: a checkpoint's mapped pages are the system's, which takes them back."""
    _, resident, shared = map(int, Path("/proc/self/statm").read_text().split()[:3])
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def loading(path: str) -> dict[str, float]:
    """Private memory while `LacosSentenceTransformer` quantises the fp16 shards of a directory like the Hub's."""
    from lacos_st import LacosSentenceTransformer

    seen, done = [private_bytes()], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            seen.append(private_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    model = LacosSentenceTransformer(path)
    done.set()
    watcher.join()
    held = private_bytes()
    count = sum(parameter.numel() for parameter in model.parameters())
    return {
        "million parameters": count / 1e6,
        "peak GB": (max(seen) - seen[0]) / 1e9,
        "afterwards GB": (held - seen[0]) / 1e9,
    }


def shards(path: str, directory: str) -> None:
    """Write the checkpoint again as the Hub's are: fp16, in shards, with a tokenizer."""
    AutoModel.from_pretrained(path, dtype=torch.float16).save_pretrained(directory, max_shard_size="300MB")
    AutoTokenizer.from_pretrained(embedded_directory("bloom-mini")).save_pretrained(directory)


def peak_of(model: torch.nn.Module, ids: torch.Tensor, training: bool) -> int:
    """Resident memory at the worst moment of two steps, or of encoding twice."""
    mask = torch.ones_like(ids)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained) if training else None
    reset_peak()
    for _ in range(2):
        if optimizer is not None:
            optimizer.zero_grad()
            mean_pool(model(ids, attention_mask=mask).last_hidden_state, mask).square().sum().backward()
            optimizer.step()
        else:
            with torch.inference_mode():
                model(ids, attention_mask=mask)
    return resident_bytes(peak=True)


def child(arguments: argparse.Namespace) -> None:
    """Load one model, run one case, print bytes."""
    if arguments.child == "loading":
        print(json.dumps(loading(arguments.path)))
        return
    if arguments.child == "real":
        print(json.dumps(real(arguments.path, arguments.case)))
        return
    warm = torch.randn(64, 64) @ torch.randn(64, 64)  # thread pools start before the baseline
    baseline = resident_bytes() + 0 * int(warm.numel())
    batch, length, training, checkpointing = RUNS.get(arguments.case, (0, 0, False, False))
    if checkpointing:
        give_memory_back()
    start = time.perf_counter()
    model = build(arguments.child, arguments.path)
    if arguments.child.startswith("ours"):
        settle_heap()  # as the package does after loading
    result: dict[str, float] = {"seconds": time.perf_counter() - start}
    result["parameter bytes"] = weight_bytes(model)
    if arguments.case:
        count = batch * 2 if training else batch
        ids = torch.randint(1, 8000, (count, length))
        if training:
            model.requires_grad_(False)
            model.add_adapter(LoraConfig(r=16, lora_dropout=0.05, target_modules=["query_key_value"]))
            model.train()
            if checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": False})
        result["peak"] = peak_of(model, ids, training) - baseline
    result["resident"] = resident_bytes() - baseline
    print(json.dumps(result))


# texts, tokens a text, training
REAL_RUNS = {
    "encode 32 x 20": (32, 20, False),
    "encode 64 x 100": (64, 100, False),
    "train 64 x 20": (64, 20, True),
    "train 48 x 48": (48, 48, True),
}


def real(path: str, case: str) -> dict[str, float]:
    """Peak of a whole model, its tokenizer too, above the process before it was loaded."""
    from lacos_st import LacosSentenceTransformer

    baseline = resident_bytes()
    texts, length, training = REAL_RUNS[case]
    model = LacosSentenceTransformer(path)
    inner = model.transformer.model
    ids = torch.randint(5, 8000, (texts, length))
    if training:
        model.add_lora(rank=16, dropout=0.05).train()
    return {"peak": peak_of(inner, ids, training) - baseline}


def compare_real(path: str) -> dict[str, dict[str, float]]:
    """Predicted against measured peaks of a real model; a line for each as it ends."""
    from transformers import AutoConfig

    results = {}
    for case, (texts, length, training) in REAL_RUNS.items():
        found = measure("real", path, case)["peak"]
        options = {"batch_size": texts, "length": length, "texts": 1, "training": training, "optimizer": "adamw_torch"}
        expected = predict(AutoConfig.from_pretrained(path), **options).total
        results[case] = {"measured GB": found / 1e9, "predicted GB": expected / 1e9, "ratio": expected / found}
        print(f"{case:16} measured {found / 1e9:.2f} GB  predicted {expected / 1e9:.2f} GB", flush=True)
    return results


def measure(name: str, path: str, case: str = "") -> dict[str, float]:
    command = [sys.executable, str(Path(__file__)), "--child", name, "--path", path, "--case", case]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--vocab", type=int, default=FULL_VOCAB)
    parser.add_argument("--base", help="a real decoder's directory")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", choices=[*BUILDERS, "loading", "real"], help=argparse.SUPPRESS)
    parser.add_argument("--path", help=argparse.SUPPRESS)
    parser.add_argument("--case", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    if arguments.base:
        report(
            {"machine": machine(), "base": Path(arguments.base).name, **compare_real(arguments.base)}, arguments.output
        )
        return
    path = checkpoint(arguments.layers, arguments.hidden, arguments.heads, vocab=arguments.vocab)
    loaded = {name: measure(name, path) for name in LOADED}
    half = loaded["stock bf16"]["parameter bytes"]
    with tempfile.TemporaryDirectory(prefix="lacos-benchmark-") as directory:
        shards(path, directory)
        quantised = measure("loading", directory)
    results: dict = {
        "machine": machine(),
        "configuration": {k: v for k, v in vars(arguments).items() if k in ("layers", "hidden", "heads", "vocab")},
        "weights in GB": {name: value["parameter bytes"] / 1e9 for name, value in loaded.items()},
        "weights as a fraction of 16 bits": {n: v["parameter bytes"] / half for n, v in loaded.items()},
        "resident after loading, GB": {name: value["resident"] / 1e9 for name, value in loaded.items()},
        "private memory while fp16 shards are quantised": quantised,
        "seconds to load": {name: value["seconds"] for name, value in loaded.items()},
    }
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path)
    for case, (batch, length, training, checkpointing) in RUNS.items():
        found = measure("ours auto", path, case)["peak"]
        estimate = predict(
            config,
            batch_size=batch,
            length=length,
            training=training,
            targets=["query_key_value"],
            gradient_checkpointing=checkpointing,
            optimizer="adamw",
        )
        expected = estimate.total - estimate.tokenizer  # which is not loaded here
        results[case] = {"measured GB": found / 1e9, "predicted GB": expected / 1e9, "ratio": expected / found}
    report(results, arguments.output)


if __name__ == "__main__":
    main()
