"""Spearman on development splits only: what every choice of the recipe is made on.

Monolingual: STS-B dev in its languages and SICK trial. Cross-lingual: STS-B dev is row-aligned, so en-xx pairs the
English first sentence with the other language's second.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from collect import jsonl
from scipy.stats import spearmanr
from student import embed
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lacos_st.bloom import LacosBloomModel

Pairs = tuple[list[str], list[str], list[float]]  # left, right, gold scores


def read(path: Path, limit: int | None = None) -> Pairs:
    """All rows, or `limit` of them spread evenly: the sets are sorted by origin, captions first."""
    rows = list(jsonl(path))
    rows = rows[:: max(1, len(rows) // limit)] if limit else rows
    return [r["sentence1"] for r in rows], [r["sentence2"] for r in rows], [float(r["score"]) for r in rows]


def tasks(sts: Path, limit: int | None = None, langs: str = "*") -> dict[str, Pairs]:
    """Development sets by name; `langs` is a glob over the languages of STS-B."""
    found = {p.name.split(".")[1]: read(p, limit) for p in sorted(sts.glob(f"stsb.{langs}.dev.jsonl.gz"))}
    path = sts / "stsb.en.dev.jsonl.gz"
    english = read(path, limit)
    cross = {f"en-{lang}": (english[0], t[1], t[2]) for lang, t in found.items() if lang != "en"}
    return {**found, "en": read(path), "sick": read(sts / "sick.en.trial.jsonl.gz"), **cross}


@torch.inference_mode()
def encode(model: LacosBloomModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], pooling: str) -> np.ndarray:
    ids = tokenizer(texts, truncation=True, max_length=128)["input_ids"]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    out = np.zeros((len(ids), model.config.hidden_size), np.float32)
    for start in range(0, len(order), 256):
        rows = order[start : start + 256]
        flat = torch.tensor([t for i in rows for t in ids[i]])
        bounds = torch.tensor(np.cumsum([0, *(len(ids[i]) for i in rows)]))
        out[rows] = torch.nn.functional.normalize(embed(model, flat, bounds, pooling), dim=-1).numpy()
    return out


def evaluate(
    model: LacosBloomModel,
    tokenizer: PreTrainedTokenizerBase,
    sets: dict[str, Pairs],
    pooling: str = "mean",
) -> dict[str, float]:
    texts = sorted({t for left, right, _ in sets.values() for t in left + right})
    table = encode(model, tokenizer, texts, pooling)
    row = {text: i for i, text in enumerate(texts)}
    scores = {}
    for name, (left, right, gold) in sets.items():
        cosine = (table[[row[t] for t in left]] * table[[row[t] for t in right]]).sum(1)
        scores[name] = round(float(spearmanr(cosine, gold).statistic) * 100, 2)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with sts/")
    parser.add_argument("--pooling", choices=["mean", "weightedmean"], default="mean")
    parser.add_argument("--limit", type=int, help="rows per set other than English")
    args = parser.parse_args()
    model = LacosBloomModel.from_pretrained(args.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer or args.model)
    print(json.dumps(evaluate(model, tokenizer, tasks(args.data_dir / "sts", args.limit), args.pooling)))


if __name__ == "__main__":
    main()
