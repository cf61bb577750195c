"""Stage 5: what a third teacher, multilingual-e5-small, says of sentences in their own words.

The first teacher reads English alone, and what a translation means is not all that it says; the second knows fifteen
languages. The third (Wang et al., 2024; MIT) reads a hundred, and orders pairs of every language here better than the
other two do what they can read (`docs/log.md`). So after the layers have been trained on all sentences they are trained
on those that this one has read as well.

Reading is the dear part (400 sentences a second on two cores), so sentences are chosen: `THOUSANDS` of each language,
written by somebody, a source in proportion to the root of its sentences, each with some of its neighbours, or the
batches that are made of them would hold no near pairs.

Before them it reads frequent words. What it says of words, averaged, orders pairs as well as a trained student does in
languages with little text (`docs/log.md`): words are what a small student lacks.

Output, in --work-dir: `third.npy`, (texts, 384) fp16, unit length, for the rows of `texts.parquet` that
`third-rows.npy` lists: words, then sentences, languages interleaved, so that training can start on the first of them.
Resumable, as `teach.py`.
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import e5
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from collect import NOT_WRITTEN, READ
from corpus import tokenize
from teach import CHUNK, done, fill, to_int8_
from transformers import BertModel, PreTrainedTokenizerBase

WIDTH = 384
THOUSANDS: dict[str | None, float] = {
    "en": 110,
    **dict.fromkeys(("es", "fr", "pt"), 40),
    **dict.fromkeys(("de", "it", "nl", "pl", "ru", "zh"), 30),
    **dict.fromkeys(("ar", "hi", "tr"), 22),
    **dict.fromkeys(("az", "bn", "cs", "fa", "id", "ja", "kk", "ko", "ky", "mr", "ro", "sr", "sv", "ug", "uz"), 13),
    "el": 8,
    "vi": 6,
    None: 1.5,
}
WORDS, WORDS_ALONE = 7000, 12000  # most frequent words of a language; where the second teacher does not know it
SHORTEST, LONGEST = 4, 40  # tokens of the student
BESIDE = 5  # of a sentence's neighbours, which are read with it
BATCH = 64
MAX_TOKENS = 96


@cache
def third_teacher() -> tuple[BertModel, PreTrainedTokenizerBase]:
    """The teacher, on a GPU if there is one, else with 8-bit products."""
    model, tokenizer = e5.load()
    if torch.cuda.is_available():
        return model.cuda(), tokenizer
    torch.set_num_threads(1)  # one process a core
    to_int8_(model)
    return model, tokenizer


@torch.inference_mode()
def embed(texts: list[str]) -> np.ndarray:
    """(len(texts), 384) fp16, unit length."""
    model, tokenizer = third_teacher()
    ids = tokenizer([f"query: {text}" for text in texts], truncation=True, max_length=MAX_TOKENS)["input_ids"]
    by_length = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    said = np.zeros((len(texts), WIDTH), np.float16)
    for start in range(0, len(texts), BATCH):
        rows = by_length[start : start + BATCH]
        batch = tokenizer.pad({"input_ids": [ids[i] for i in rows]}, return_tensors="pt").to(model.device)
        states = model(**batch).last_hidden_state
        total = (states * batch["attention_mask"].unsqueeze(-1)).sum(1)
        said[rows] = torch.nn.functional.normalize(total, dim=-1).half().cpu().numpy()
    return said


def chosen(langs: np.ndarray, kind: np.ndarray, usable: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Rows to read, int32, languages interleaved.

    Args:
        langs: (texts,) their languages.
        kind: (texts,) numbers of their sources.
        usable: (texts,) whether a text may be read.
        near: (texts, neighbours) rows of each text's neighbours, the nearest first or not.
    """
    random = np.random.default_rng(0)
    rows, places = [], []
    for lang in np.unique(langs[usable]):
        wanted = int(1000 * THOUSANDS.get(str(lang), THOUSANDS[None]))
        pool = np.flatnonzero(usable & (langs == lang))
        chance = np.bincount(kind[pool])[kind[pool]] ** -0.5
        taken = np.zeros(len(langs), bool)
        own: list[int] = []
        count = wanted if len(pool) > 10 * wanted else len(pool)
        for first in random.choice(pool, count, replace=False, p=chance / chance.sum()):
            if len(own) >= wanted:
                break
            for row in (first, *random.permutation(near[first])[:BESIDE]):
                if usable[row] and langs[row] == lang and not taken[row]:
                    taken[row] = True
                    own.append(int(row))
        rows.append(np.array(own, np.int32))
        places.append((np.arange(len(own)) + random.random(len(own))) / len(own))
    return np.concatenate(rows)[np.argsort(np.concatenate(places), kind="stable")]


def words(langs: np.ndarray, single: np.ndarray) -> np.ndarray:
    """Rows of single words to read, int32: the first of each language, which are the most frequent."""
    rows = []
    for lang in np.unique(langs[single]):
        rows.append(np.flatnonzero(single & (langs == lang))[: WORDS if lang in READ else WORDS_ALONE])
    return np.concatenate(rows or [np.empty(0)]).astype(np.int32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", type=Path, default=Path("work/bloom-mini"))
    parser.add_argument("--chunks", type=int, help=f"stop after so many chunks of {CHUNK} sentences")
    args = parser.parse_args()
    path, found = args.work_dir / "third-rows.npy", sorted(args.work_dir.glob("neighbours-*.npz"))
    if not found:
        parser.error(f"{args.work_dir} holds no neighbours: run `distil.py deep` first.")
    table = pq.read_table(args.work_dir / "texts.parquet", columns=["text", "lang", "source"])
    if not path.exists():
        names, kind = np.unique(table["source"].to_numpy(), return_inverse=True)
        lengths = np.diff(tokenize(args.work_dir)[1])
        langs = table["lang"].to_numpy()
        usable = ~np.isin(names, NOT_WRITTEN)[kind] & (lengths >= SHORTEST) & (lengths <= LONGEST)
        english = np.zeros(len(langs), bool)
        english[np.load(args.work_dir / "english.npy")[: done(args.work_dir / "teacher.json")]] = True
        sentences = chosen(langs, kind, usable & (english | (langs != "en")), np.load(found[-1])["rows"])
        np.save(path, np.concatenate([words(langs, (names == "wordfreq")[kind]), sentences]))
    rows = np.load(path)
    texts = table["text"].combine_chunks().take(pa.array(rows)).to_pylist()
    workers = 1 if torch.cuda.is_available() else os.cpu_count()
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:

        def compute(first: int, last: int) -> list[np.ndarray]:
            parts = np.array_split(np.arange(first, last), workers)
            return [np.concatenate([*pool.map(embed, ([texts[i] for i in part] for part in parts))])]

        tables = {args.work_dir / "third.npy": (np.arange(len(texts) + 1), WIDTH)}
        fill(args.work_dir / "third.json", tables, compute, args.chunks)


if __name__ == "__main__":
    main()
