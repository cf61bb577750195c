"""Stage 2b: what the teacher says of each word of its English sentences.

A sentence's embedding is the mean of the teacher's states. Its states word by word are ten targets where the mean is
one, and say which word means what beside which: layers learn from them what the mean alone teaches too slowly.

A word is what stands between blanks; the two tokenizers cut it differently, so both sides add up a word's tokens.
Output, in --work-dir, for the N sentences that have an embedding: `words-N.npy`, (words, hidden) fp16, unit length, in
the student's space; 0 where the teacher's 64 tokens end before. Sentence i of `english.npy` has rows starts[i] to
starts[i + 1]. Resumable by chunks, as `teach.py`; after another tokenizer, remove `words-N.npz`.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from corpus import MAX_TOKENS, projection
from teach import CHUNK, fill, load_teacher
from transformers import AutoTokenizer, PreTrainedTokenizerBase

WORD = re.compile(r"\S+")


def words_of(text: str, offsets: list[tuple[int, int]]) -> np.ndarray:
    """(tokens,) the number of the word in which each token ends; -1 for tokens without characters."""
    starts = [match.start() for match in WORD.finditer(text)]
    begin, end = np.array(offsets, np.int64).reshape(-1, 2).T
    return np.where(end > begin, np.searchsorted(starts, end - 1, side="right") - 1, -1)


class Words(NamedTuple):
    """Word targets of English sentences, and which of the student's tokens make which word."""

    states: np.ndarray  # (words, hidden) fp16
    starts: np.ndarray  # (sentences + 1,) of `states`
    numbers: np.ndarray  # (tokens,) int8, the word of each of the student's tokens
    bounds: np.ndarray  # (sentences + 1,) of `numbers`

    @classmethod
    def load(cls, work_dir: Path, count: int) -> Words:
        """What `main` has written for the first `count` sentences.

        Raises:
            SystemExit: It has not, or not to the end.
        """
        state = work_dir / f"words-{count}.json"
        if not state.exists() or json.loads(state.read_text())["chunks"] * CHUNK < count:
            raise SystemExit(f"{state} does not say that all {count:,} sentences are done: run words.py.")
        stored = np.load(work_dir / f"words-{count}.npz")
        states = np.load(work_dir / f"words-{count}.npy", mmap_mode="r")
        return cls(states, stored["starts"], stored["numbers"], stored["bounds"])

    def gather(self, sentences: np.ndarray, bounds: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Word targets of some sentences end to end, and for each of their tokens its row in them, or -1.

        Args:
            sentences: (n,) rows of `english.npy`.
            bounds: (n + 1,) where each sentence's tokens lie in the batch.
        """
        targets, places, total = [], np.full(bounds[-1], -1), 0
        for sentence, first, last in zip(sentences, bounds[:-1], bounds[1:], strict=True):
            targets.append(self.states[self.starts[sentence] : self.starts[sentence + 1]])
            number = self.numbers[self.bounds[sentence] : self.bounds[sentence + 1]].astype(np.int64)[: last - first]
            places[first : first + len(number)] = np.where(number >= 0, number + total, -1)
            total += len(targets[-1])
        return torch.from_numpy(np.concatenate(targets).astype(np.float32)), torch.from_numpy(places)


@torch.inference_mode()
def states_of(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, texts: list[str], space: torch.Tensor, size: int = 64
) -> list[np.ndarray]:
    """Of each text its words' states, (words, hidden) fp16, unit length, in the student's `space`, (384, hidden)."""
    encoded = tokenizer(texts, truncation=True, max_length=MAX_TOKENS, return_offsets_mapping=True)
    by_length = sorted(range(len(texts)), key=lambda i: len(encoded["input_ids"][i]))
    out: list[np.ndarray] = [np.empty(0)] * len(texts)
    for start in range(0, len(by_length), size):
        rows = by_length[start : start + size]
        batch = tokenizer.pad({"input_ids": [encoded["input_ids"][i] for i in rows]}, return_tensors="pt")
        states = model(**batch.to(model.device)).last_hidden_state.cpu() @ space
        for row, tokens in zip(rows, states, strict=True):
            number = torch.from_numpy(words_of(texts[row], encoded["offset_mapping"][row]))
            said = number >= 0
            total = tokens.new_zeros(len(texts[row].split()), tokens.shape[1])
            total.index_add_(0, number[said], tokens[: len(number)][said])
            out[row] = torch.nn.functional.normalize(total, dim=-1).half().numpy()
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", type=Path, default=Path("work/bloom-mini"))
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--int8", action="store_true", help="8-bit products in the teacher: faster without AMX or GPU")
    args = parser.parse_args()
    done = json.loads((args.work_dir / "teacher.json").read_text())["chunks"]  # sentences with an embedding
    rows = np.load(args.work_dir / "english.npy")[: done * CHUNK]
    table = pq.read_table(args.work_dir / "texts.parquet", columns=["text"])["text"].combine_chunks()
    texts = table.take(pa.array(rows)).to_pylist()
    starts = np.cumsum([0, *(len(text.split()) for text in texts)])
    path = args.work_dir / f"words-{len(texts)}.npy"
    if not path.with_suffix(".npz").exists():
        student = AutoTokenizer.from_pretrained(args.work_dir / "tokenizer")
        numbers = []
        for first in range(0, len(texts), CHUNK):
            part = texts[first : first + CHUNK]
            found = student(part, return_offsets_mapping=True)["offset_mapping"]
            numbers += [
                words_of(text, offsets)[:MAX_TOKENS].astype(np.int8) for text, offsets in zip(part, found, strict=True)
            ]
        bounds = np.cumsum([0, *map(len, numbers)])
        temporary = path.with_suffix(".part.npz")
        np.savez(temporary, starts=starts, numbers=np.concatenate(numbers), bounds=bounds)
        temporary.replace(path.with_suffix(".npz"))

    model, tokenizer = load_teacher(args.int8)
    space = torch.from_numpy(projection(args.work_dir, args.hidden))
    fill(path, texts, starts, args.hidden, lambda part: np.concatenate(states_of(model, tokenizer, part, space)))


if __name__ == "__main__":
    main()
