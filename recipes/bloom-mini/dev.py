"""Spearman on development splits only: what every choice of the recipe is made on.

Of a stage's checkpoint, in full precision, or of a saved model with its adapter: `dev.py DIRECTORY`.

Monolingual: STS-B dev in its languages and SICK trial. Cross-lingual: STS-B dev is row-aligned, so en-xx pairs the
English first sentence with the other language's second.

STS-B holds three genres, in other shares in its test split. A model can gain a point on the whole by judging captions
against news more as people do, and order neither better: `within`, the mean of the genres, is to choose models by.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from collect import jsonl
from scipy.stats import spearmanr
from student import pool, states
from transformers import PreTrainedTokenizerBase

from lacos_st import LacosSentenceTransformer
from lacos_st.bloom import LacosBloomModel

Pairs = tuple[list[str], list[str], list[float]]  # left, right, gold scores
Encoder = Callable[[list[str]], np.ndarray]  # of unit vectors
GENRES = {"captions": (0, 625), "forums": (625, 1000), "news": (1000, 1500)}  # rows of STS-B's development split


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


def rows_of(pairs: Pairs, first: int, last: int) -> Pairs:
    """Rows `first` to `last` of 1,500, or the like of a set with every nth row."""
    left, right, gold = pairs
    rows = slice(first * len(gold) // 1500, last * len(gold) // 1500)
    return left[rows], right[rows], gold[rows]


def by_genre(sets: dict[str, Pairs]) -> dict[str, Pairs]:
    """Each monolingual STS-B set in three, named `es/news`."""
    return {
        f"{name}/{genre}": rows_of(pairs, *rows)
        for name, pairs in sets.items()
        if name != "sick" and not name.startswith("en-")
        for genre, rows in GENRES.items()
    }


@torch.inference_mode()
def encode(model: LacosBloomModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> np.ndarray:
    ids = tokenizer(texts, truncation=True, max_length=128)["input_ids"]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    out = np.zeros((len(ids), model.config.hidden_size), np.float32)
    for start in range(0, len(order), 256):
        rows = order[start : start + 256]
        flat = torch.tensor([t for i in rows for t in ids[i]])
        bounds = torch.tensor(np.cumsum([0, *(len(ids[i]) for i in rows)]))
        out[rows] = torch.nn.functional.normalize(pool(states(model, flat, bounds), bounds), dim=-1).numpy()
    return out


def cosines(encoder: Encoder, sets: dict[str, Pairs]) -> dict[str, np.ndarray]:
    """(pairs,) by set."""
    texts = sorted({t for left, right, _ in sets.values() for t in left + right})
    table = encoder(texts)
    row = {text: i for i, text in enumerate(texts)}
    return {
        name: (table[[row[t] for t in left]] * table[[row[t] for t in right]]).sum(1)
        for name, (left, right, _) in sets.items()
    }


def evaluate(encoder: Encoder, sets: dict[str, Pairs]) -> dict[str, float]:
    """Spearman x 100 by set."""
    found = cosines(encoder, sets)
    return {name: round(float(spearmanr(found[name], sets[name][2]).statistic) * 100, 2) for name in sets}


def means(scores: dict[str, float]) -> dict[str, float]:
    """Mean of single languages other than English, of those across languages, of genres, and of all whole sets."""
    within = [score for name, score in scores.items() if "/" in name]
    scores = {name: score for name, score in scores.items() if "/" not in name}
    cross = [score for name, score in scores.items() if name.startswith("en-")]
    mono = [score for name, score in scores.items() if not name.startswith("en-") and name not in ("en", "sick")]
    found = {"within": within, "mono": mono, "cross": cross, "all": list(scores.values())}
    return {name: round(float(np.mean(values)), 2) for name, values in found.items() if values}


def load(name: str) -> Encoder:
    """A stage's checkpoint in full precision, or a saved or embedded model as it is."""
    options = {}
    if Path(name, "config.json").is_file() and not Path(name, "lacos.json").is_file():
        options = {"pooling": "mean", "transformer_options": {"quantization": "none"}}  # a stage's checkpoint
    model = LacosSentenceTransformer(name, **options)
    return partial(model.encode, batch_size=256, normalize_embeddings=True, show_progress_bar=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="directory, or an embedded name")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with sts/")
    parser.add_argument("--limit", type=int, help="rows per set other than English")
    args = parser.parse_args()
    sets = tasks(args.data_dir / "sts", args.limit)
    scores = evaluate(load(args.model), {**sets, **by_genre(sets)})
    print(json.dumps({**means(scores), **scores}))


if __name__ == "__main__":
    main()
