"""One line for each family of decoders: how near ours is to what transformers and stock sentence-transformers compute.

    python benchmarks/every_family.py [--output families.json]

Small random models with what the families have between them (tests/families.py). Columns: the largest error of fp32
token states, packed, against transformers' own padded forward pass, relative to the largest state, causal and with both
sides; the least cosine of 8-bit embeddings to fp32 ones; of a saved model loaded by stock classes to ours, in their
form (LLM.int8) and put on the fast path; whether a run that was interrupted in its third of four steps ends with the
same adapter, bit for bit.
"""

import argparse
import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine, report
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import pairwise_cos_sim
from transformers import AutoModel, TrainerCallback

from lacos_st import LacosConfig, LacosSentenceTransformer, accelerate, train

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
import families
from tiny import CORPUS, randomise, write_tiny_bloom


class Stopped(BaseException):
    """As a kill: nothing is put in order."""


class Stop(TrainerCallback):
    """Stops a run in its third step."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: D102
        if state.global_step == 2:
            raise Stopped


def states_error(base: Path) -> float:
    """Largest error of token states, relative to the largest state."""
    ours = LacosSentenceTransformer(base, transformer_options={"quantization": "none"})
    stock = AutoModel.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()
    features = ours.preprocess(list(CORPUS))
    mask = features["attention_mask"].bool()
    with torch.no_grad():
        found = ours.transformer(dict(features))["token_embeddings"][mask]
        wanted = stock(features["input_ids"], attention_mask=features["attention_mask"]).last_hidden_state[mask]
    return float((found - wanted).abs().max() / wanted.abs().max())


def least_cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(pairwise_cos_sim(a, b).min())


def resumes(base: Path, directory: Path) -> bool:
    """Whether an interrupted run ends with the adapter of an undisturbed one."""
    data = directory / "data.jsonl"
    rows = [{"anchor": CORPUS[i % 11], "positive": CORPUS[(i * 3 + 1) % 11] + f" {i}"} for i in range(40)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = {
        "base": str(base), "train_data": [str(data)], "eval_data": [str(data)], "max_steps": 4, "batch_size": 8,
        "eval_steps": 1, "lora_rank": 2, "lora_dropout": 0.1, "learning_rate": 1e-2,
    }  # fmt: skip
    whole, halves = (LacosConfig(output=str(directory / name), **options) for name in ("whole", "halves"))
    train(whole)
    try:
        train(halves, callbacks=[Stop()])
    except Stopped:
        train(halves)
    one, two = (load_file(directory / name / "adapter/adapter_model.safetensors") for name in ("whole", "halves"))
    return all(torch.equal(one[key], two[key]) for key in one)


def measure(family: str, tokenizer: Path, directory: Path) -> dict[str, Any]:
    base = families.write(family, tokenizer, directory / family)
    found: dict[str, Any] = {"family": family, "fp32_causal": states_error(base)}
    config = base / "config.json"
    causal = config.read_text(encoding="utf-8")
    config.write_text(json.dumps({**json.loads(causal), "is_causal": False}), encoding="utf-8")
    found["fp32_both_sides"] = states_error(base)
    config.write_text(causal, encoding="utf-8")
    texts = list(CORPUS)
    model = LacosSentenceTransformer(base)
    full = LacosSentenceTransformer(base, transformer_options={"quantization": "none"})
    found["int8_to_fp32"] = least_cosine(model.encode(texts), full.encode(texts))
    randomise(model.add_lora(rank=2, targets=("all-linear",))).eval()
    model.save_pretrained(str(directory / "model"))
    stock = SentenceTransformer(str(directory / "model"))
    found["stock_to_ours"] = least_cosine(stock.encode(texts), model.encode(texts))
    found["stock_accelerated_to_ours"] = least_cosine(accelerate(stock).encode(texts), model.encode(texts))
    found["resumes_bit_for_bit"] = resumes(base, directory)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="write the results there as JSON")
    arguments = parser.parse_args()
    importlib.import_module("lacos_st.training.train").sts_sample = lambda model: {}  # scores are not asked for here
    results = []
    for family in sorted(families.CONFIGS.keys() - families.PADDED):
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            results.append(measure(family, write_tiny_bloom(directory / "bloom"), directory))
        errors = {key: f"{value:.2g}" for key, value in results[-1].items() if key.startswith("fp32_")}
        line = results[-1] | errors
        print(
            "  ".join(f"{value:.6f}" if isinstance(value, float) else str(value) for value in line.values()), flush=True
        )
    report({"machine": machine(), **{found.pop("family"): found for found in results}}, arguments.output)


if __name__ == "__main__":
    main()
