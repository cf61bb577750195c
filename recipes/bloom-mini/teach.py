"""Stage 3: two teachers embed all sentences once, and the embeddings are stored.

A teacher is a sentence-embedding model that is larger than ours and already good. Ours is trained to reproduce its
embeddings (knowledge distillation; Reimers and Gurevych, 2020, across languages).

The first, all-MiniLM-L6-v2 (Apache-2.0), reads English. The student learns from it the meaning of English sentences,
and that a translation means the same as its English. An embedding is the mean of the teacher's token states. The
states are stored too, word by word: ten targets a sentence in place of one, from which layers learn what a word means
in its context. A word is what stands between blanks.

The second, multilingual-e5-small (Wang et al., 2024; MIT), reads a hundred languages. It embeds sentences as they
are, frequent words by themselves, and the string of each of the student's tokens, with which the student's training
begins.

Output, in --work-dir, of the first: `english.npy`, (sentences,) int32, rows of `texts.parquet`, the most useful
first; `teacher.npy`, (sentences, width) fp16, length 1; `words.npy`, (words, width) fp16, length 1, or 0 where the
teacher's tokens end before; `starts.npy`: sentence i has the words starts[i] to starts[i + 1]. Of the second:
`second-rows.npy` and `second.npy`, alike, and `token-said.npy`, (vocabulary, width). A run goes on where it was
stopped: finished chunks of 8,192 sentences are counted in `teacher.json` and `second.json`, and later stages use
those alone.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from collect import FAVOUR
from corpus import MAX_TOKENS
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

CHUNK = 8192
WORD = re.compile(r"\S+")
TEACHERS = {"first": "sentence-transformers/all-MiniLM-L6-v2", "second": "intfloat/multilingual-e5-small"}
PREFIX = {"first": "", "second": "query: "}


def strings_of(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The string of each of a tokenizer's entries."""
    return [tokenizer.decode([i]).strip() for i in range(len(tokenizer))]


class Encoded(NamedTuple):
    """Texts for a model."""

    ids: list[np.ndarray]  # of each text
    words: list[np.ndarray]  # the number of the word in which each token ends; -1 for tokens without characters
    counts: np.ndarray  # (texts,) their words


def words_of(text: str, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """(tokens,) the number of the word in which each token ends; -1 for tokens without characters."""
    starts = [match.start() for match in WORD.finditer(text)]
    begin, end = np.array(offsets, np.int64).reshape(-1, 2).T
    return np.where(end > begin, np.searchsorted(starts, end - 1, side="right") - 1, -1).astype(np.int16)


def encode(tokenizer: PreTrainedTokenizerBase, prefix: str, texts: list[str]) -> Encoded:
    """Token ids, and which token is of which word where there is no prefix."""
    found = tokenizer([prefix + text for text in texts], truncation=True, max_length=MAX_TOKENS, padding=False,
                      return_offsets_mapping=not prefix, return_attention_mask=False)  # fmt: skip
    ids = [np.array(row, np.int32) for row in found["input_ids"]]
    if prefix:
        return Encoded(ids, [], np.zeros(len(ids), np.int64))
    words = [words_of(text, offsets) for text, offsets in zip(texts, found["offset_mapping"], strict=True)]
    return Encoded(ids, words, np.array([len(text.split()) for text in texts]))


def encoded(tokenizer: PreTrainedTokenizerBase, prefix: str, texts: list[str]) -> Iterator[Encoded]:
    """Texts in chunks of `CHUNK`."""
    return (encode(tokenizer, prefix, texts[start : start + CHUNK]) for start in range(0, len(texts), CHUNK))


@torch.inference_mode()
def read(model: torch.nn.Module, chunk: Encoded) -> tuple[np.ndarray, np.ndarray]:
    """(texts, width) embeddings, mean-pooled, and (words, width) the states of their words; fp16, unit length.

    Batches are of similar length, so little is padding.
    """
    device, width = model.device, model.config.hidden_size
    size = 64 if device.type == "cpu" else 1024
    lengths = np.array([*map(len, chunk.ids)])
    by_length = np.argsort(lengths, kind="stable")
    embeddings = torch.zeros(len(lengths), width, dtype=torch.half, device=device)
    words = torch.zeros(int(chunk.counts.sum()), width, device=device)
    first = np.cumsum(chunk.counts) - chunk.counts
    for start in range(0, len(by_length), size):
        rows = by_length[start : start + size]
        mask = np.arange(lengths[rows[-1]]) < lengths[rows, None]
        ids = np.full(mask.shape, model.config.pad_token_id or 0, np.int64)
        ids[mask] = np.concatenate([chunk.ids[row] for row in rows])
        there = torch.from_numpy(mask).to(device)
        states = model(
            input_ids=torch.from_numpy(ids).to(device), attention_mask=there.long()
        ).last_hidden_state.float()
        total = (states * there[..., None]).sum(1)
        embeddings[torch.from_numpy(rows).to(device)] = normalize(total, dim=-1).half()
        if chunk.words:
            number = np.concatenate([chunk.words[row] for row in rows])
            place = np.repeat(first[rows], lengths[rows]) + number
            said = torch.from_numpy(number >= 0).to(device)
            words.index_add_(0, torch.from_numpy(place).to(device)[said], states[there][said])
    return embeddings.cpu().numpy(), normalize(words, dim=-1).half().cpu().numpy()


def order(texts: list[str], langs: list[str], english: np.ndarray, sources: list[str]) -> np.ndarray:
    """The English rows (int32), most useful first, so that training can start on the first chunks.

    First what has a translation and is short, then NLI and captions, then the rest; in random order within each.
    """
    translated = np.zeros(len(texts), bool)
    foreign = np.array([lang != "en" for lang in langs])
    translated[english[foreign & (english >= 0)]] = True
    nli = np.array([s in {"snli", "cad-nli", "mnli", "breaking-nli", "audiocaps"} for s in sources])
    size = np.array([len(text) for text in texts])
    rank = np.where(translated & (size < 200) | nli & (size < 100), 0, np.where(nli | translated | (size < 100), 1, 2))
    rows = np.flatnonzero(~foreign)
    shuffle = np.random.default_rng(0).permutation(len(rows))
    return rows[shuffle][np.argsort(rank[rows[shuffle]], kind="stable")].astype(np.int32)


def shared_out(langs: np.ndarray, english: np.ndarray) -> np.ndarray:
    """All rows (int32), so that any first part has as much of a language as `FAVOUR` says.

    English comes in the order in which the first teacher reads it, other languages at random. Those that are used up
    leave their part to the rest.

    Args:
        langs: (texts,) their languages.
        english: The English rows in that order.
    """
    random = np.random.default_rng(0)
    rank = np.empty(len(langs))
    for lang in np.unique(langs):
        own = english if lang == "en" else random.permutation(np.flatnonzero(langs == lang))
        rank[own] = (np.arange(len(own)) + random.random(len(own))) / FAVOUR.get(str(lang), 0.5)
    return np.argsort(rank).astype(np.int32)


def fill(
    state: Path,
    tables: dict[Path, tuple[np.ndarray, int]],
    compute: Callable[[int, int], Iterator[tuple[np.ndarray, ...]]],
    chunks: int | None = None,
) -> None:
    """Fill tables of fp16 chunk by chunk; how many chunks are done is kept in a JSON file.

    Args:
        state: The JSON file.
        tables: Path -> (starts, columns); text i has rows starts[i] to starts[i + 1].
        compute: (first chunk, one behind the last) -> of each chunk, its rows in each table.
        chunks: Stop after so many; a later call goes on.
    """
    ready = json.loads(state.read_text())["chunks"] if state.exists() else 0
    memory = [
        np.lib.format.open_memmap(
            path, mode="r+" if ready else "w+", dtype=np.float16, shape=None if ready else (int(starts[-1]), columns)
        )
        for path, (starts, columns) in tables.items()
    ]
    texts = len(next(iter(tables.values()))[0]) - 1
    total = -(-texts // CHUNK)
    began = time.monotonic()
    last = min(total, chunks or total)
    for chunk, found in zip(range(ready, last), compute(ready, last), strict=True):
        begin, end = chunk * CHUNK, min((chunk + 1) * CHUNK, texts)
        for table, (starts, _), rows in zip(memory, tables.values(), found, strict=True):
            table[starts[begin] : starts[end]] = rows
            table.flush()
        state.write_text(json.dumps({"chunks": chunk + 1}))
        speed = (chunk + 1 - ready) * CHUNK / (time.monotonic() - began)
        print(f"chunk {chunk + 1}/{total}: {speed:.0f} sentences/s", flush=True)


def done(state: Path) -> int:
    """Rows that a teacher has read so far."""
    return json.loads(state.read_text())["chunks"] * CHUNK


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", choices=["first", "second"])
    parser.add_argument("--model", help="Hub name or directory; default: the one that the head of this file names")
    parser.add_argument("--work-dir", type=Path, default=Path("work/bloom-mini"))
    parser.add_argument("--chunks", type=int, help=f"stop after so many chunks of {CHUNK} sentences")
    args = parser.parse_args()
    path, prefix, first = args.model or TEACHERS[args.teacher], PREFIX[args.teacher], args.teacher == "first"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModel.from_pretrained(path, dtype=torch.half if device == "cuda" else torch.float).eval().to(device)
    tokenizer, width = AutoTokenizer.from_pretrained(path), model.config.hidden_size
    table = pq.read_table(args.work_dir / "texts.parquet")
    columns = [table[name].to_pylist() for name in ("text", "lang")]
    rows = order(*columns, table["english"].to_numpy(), table["source"].to_pylist())
    if not first:
        rows = shared_out(table["lang"].to_numpy(), rows)
        strings = strings_of(AutoTokenizer.from_pretrained(args.work_dir / "tokenizer"))
        said = [read(model, chunk)[0] for chunk in encoded(tokenizer, prefix, strings)]
        np.save(args.work_dir / "token-said.npy", np.concatenate(said))
    np.save(args.work_dir / ("english.npy" if first else "second-rows.npy"), rows)
    texts = table["text"].combine_chunks().take(pa.array(rows)).to_pylist()
    tables = {args.work_dir / ("teacher.npy" if first else "second.npy"): (np.arange(len(texts) + 1), width)}
    if first:
        starts = np.cumsum([0, *(len(text.split()) for text in texts)])
        np.save(args.work_dir / "starts.npy", starts)
        tables[args.work_dir / "words.npy"] = starts, width

    def compute(begin: int, end: int) -> Iterator[tuple[np.ndarray, ...]]:
        for chunk in encoded(tokenizer, prefix, texts[begin * CHUNK : end * CHUNK]):
            yield read(model, chunk)[: len(tables)]

    fill(args.work_dir / ("teacher.json" if first else "second.json"), tables, compute, args.chunks)


if __name__ == "__main__":
    main()
