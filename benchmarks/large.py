"""bloom-7b1 on a GPU: trained end to end under a limit of memory, and a training step beside the stock stack's.

The weights are random, everything else is real: a local directory laid out as the Hub's (sharded safetensors,
tokenizer files), the recipe of `recipes/bloom-7b1.yaml`, `lacos_st.train`, and the saved model read by stock
sentence-transformers in a process that has never heard of this package. `gpu.py` calls it; on a
CPU a small configuration tests it.
"""

import argparse
import gzip
import json
import subprocess
import sys
import time
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import numpy as np
import torch
from common import free, sentences, time_interleaved
from train import step, trainable
from transformers import AutoTokenizer, BloomConfig, BloomModel

from lacos_st import LacosConfig, train
from lacos_st.decoder.allocator import reset_peak, resident_bytes
from lacos_st.decoder.memory import predict
from lacos_st.embedded.unpack import embedded_directory

ROOT = Path(__file__).parents[1]
GB = 1e9
LIMIT = 31 * GB  # a card of 32 GB less what CUDA itself takes
STOCK = """
import json, sys
import numpy as np
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device=sys.argv[2])
assert "lacos_st" not in sys.modules
np.save(sys.argv[4], model.encode(json.loads(sys.argv[3])))
"""


class Peak:
    """Peak memory from here on: allocated on the GPU, or this process's growth on a CPU."""

    def __init__(self, device: str) -> None:
        self.cuda = device != "cpu"
        self.before = 0 if self.cuda else resident_bytes()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        reset_peak()

    def gigabytes(self) -> float:
        """What it was."""
        found = torch.cuda.max_memory_allocated() if self.cuda else resident_bytes(peak=True) - self.before
        return found / GB


def write_checkpoint(folder: Path, sizes: dict[str, int], device: str) -> Path:
    """A random checkpoint with bloom-mini's tokenizer, whose entries the larger table has room for."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device != "cpu" else torch.float32
    with torch.device(device):
        model = BloomModel._from_config(BloomConfig(**sizes), dtype=dtype)
    model.save_pretrained(folder, max_shard_size="5GB" if device != "cpu" else "200KB")
    AutoTokenizer.from_pretrained(embedded_directory("bloom-mini")).save_pretrained(folder)
    return folder


def write_triplets(folder: Path, rows: int) -> tuple[str, str]:
    """The first triplets of the embedded samples: some to train on, some held out."""
    paths = []
    for name, count in (("nli-train", rows), ("nli-dev", 64)):
        with gzip.open(ROOT / f"lacos_st/embedded/assets/samples/{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            paths.append(folder / f"{name}.jsonl")
            paths[-1].write_text("".join(islice(lines, count)), encoding="utf-8")
    return str(paths[0]), str(paths[1])


def end_to_end(base: Path, folder: Path, device: str, steps: int = 6) -> dict[str, Any]:
    """`lacos-st train` by the recipe for bloom-7b1 under 32 GB, and what stock software reads of the result."""
    recipe = LacosConfig.from_yaml(ROOT / "recipes/bloom-7b1.yaml").to_dict()
    batch = recipe["batch_size"] if device != "cpu" else 16
    train_data, eval_data = write_triplets(folder, batch * steps)
    changes = {"base": str(base), "output": str(folder / "trained"), "batch_size": batch, "max_steps": steps}
    changes |= {"train_data": [train_data], "eval_data": [eval_data], "eval_steps": steps, "logging_steps": 1}
    if device != "cpu":
        torch.cuda.set_per_process_memory_fraction(LIMIT / torch.cuda.mem_get_info()[1])
    started, peak = time.perf_counter(), Peak(device)
    try:
        model = train(LacosConfig.from_dict(recipe | changes))
    finally:
        if device != "cpu":
            torch.cuda.set_per_process_memory_fraction(1.0)
    record, seconds, most = model.training_record, time.perf_counter() - started, peak.gigabytes()
    texts = ["A man plays the guitar.", "Someone makes music.", "The stock market fell sharply today."]
    ours = model.encode(texts, convert_to_tensor=True).float().cpu()
    found = folder / "stock.npy"
    del model
    free()
    subprocess.run(
        [sys.executable, "-c", STOCK, str(folder / "trained"), device, json.dumps(texts), str(found)],
        check=True,
        cwd=folder,
    )
    stock = torch.from_numpy(np.load(found)).float()
    return {
        "pairs in a batch": batch,
        "texts at a time": recipe["mini_batch_size"],
        "steps": record["steps"],
        "trainable parameters": record["trainable_parameters"],
        "seconds of training, with two evaluations": record["seconds"],
        "seconds in all, loading and saving too": seconds,
        "peak GB": most,
        "limit GB": LIMIT / GB,
        "losses": [entry["loss"] for entry in record["log"] if "loss" in entry],
        "stock sentence-transformers: lowest cosine to ours": torch.cosine_similarity(ours, stock).min().item(),
    }


def measure(name: str, base: Path, device: str, pairs: int, checkpointing: bool) -> dict[str, float]:
    """Seconds and peak memory of encoding, and of whole training steps, 8-bit Adam included, loading left out."""
    ids, mask = (tensor.to(device) for tensor in sentences(2 * pairs, 8, 64))
    model = trainable(name, str(base), device)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = bnb.optim.AdamW8bit(parameters, lr=1e-4)
    peak, times = Peak(device), []
    for _ in range(5):
        started = time.perf_counter()
        step(model, ids, mask)
        optimizer.step()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    found = {"seconds a step": min(times[1:]), "peak GB": peak.gigabytes()}
    found["gradients finite"] = float(all(bool(p.grad.isfinite().all()) for p in parameters))
    if name == "ours auto":
        expected = predict(
            model.config,
            batch_size=pairs,
            length=round(int(mask.sum()) / len(mask)),
            targets=["query_key_value"],
            dropout=0.0,
            device=device,
            gradient_checkpointing=checkpointing,
        )
        found["predicted peak GB"] = expected.total / GB
    model.eval()
    model.gradient_checkpointing_disable()
    model.zero_grad()
    with torch.inference_mode():
        runs = {"seconds to encode them": partial(model, ids, attention_mask=mask, use_cache=False)}
        return found | time_interleaved(runs, 3, device)


def compare(base: Path, device: str, pairs: int) -> dict[str, dict[str, float]]:
    """`measure` of ours and stock on the same batch, each in a process of its own."""
    results: dict[str, dict[str, float]] = {}
    for checkpointing in (False, True):
        for name in ("stock int8 bf16", "ours auto"):
            command = [
                sys.executable,
                __file__,
                name,
                str(base),
                device,
                str(pairs),
                *["--checkpointing"] * checkpointing,
            ]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            key = f"7.1B, {pairs} pairs, {name.removesuffix(' auto')}{', checkpointing' if checkpointing else ''}"
            results[key] = json.loads(done.stdout.splitlines()[-1])
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=measure.__doc__)
    parser.add_argument("name")
    parser.add_argument("base", type=Path)
    parser.add_argument("device")
    parser.add_argument("pairs", type=int)
    parser.add_argument("--checkpointing", action="store_true")
    print(json.dumps(measure(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
