"""Word targets: the teacher's state of each word, and which of the student's tokens make that word.

The two tokenizers cut a word differently, so both sides add up a word's tokens (see `teach.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from space import Space
from teach import CHUNK, MAX_TOKENS, done, words_of
from transformers import AutoTokenizer


def numbers_of(work_dir: Path, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The word of each of the student's tokens, (tokens,) int8, in rows of `texts.parquet`, and (rows + 1,) bounds."""
    table = pq.read_table(work_dir / "texts.parquet", columns=["text"])["text"].combine_chunks()
    tokenizer = AutoTokenizer.from_pretrained(work_dir / "tokenizer")
    numbers = []
    for first in range(0, len(rows), CHUNK):
        part = table.take(pa.array(rows[first : first + CHUNK])).to_pylist()
        found = tokenizer(part, return_offsets_mapping=True)["offset_mapping"]
        numbers += [
            words_of(text, offsets)[:MAX_TOKENS].astype(np.int8) for text, offsets in zip(part, found, strict=True)
        ]
    return np.concatenate(numbers), np.cumsum([0, *map(len, numbers)])


class Words(NamedTuple):
    """Word targets of English sentences, and which of the student's tokens make which word."""

    states: np.ndarray  # (words, 384) fp16
    starts: np.ndarray  # (sentences + 1,) of `states`
    numbers: np.ndarray  # (tokens,) int8, the word of each of the student's tokens
    bounds: np.ndarray  # (sentences + 1,) of `numbers`
    turn: np.ndarray  # (384, hidden) into the student's space

    @classmethod
    def load(cls, work_dir: Path, space: Space) -> Words:
        """What `teach.py` has written; the student's tokens are counted on the first call."""
        path = work_dir / "word-numbers.npz"
        if not path.exists():
            numbers, bounds = numbers_of(work_dir, np.load(work_dir / "english.npy")[: done(work_dir / "teacher.json")])
            temporary = path.with_suffix(".part.npz")
            np.savez(temporary, numbers=numbers, bounds=bounds)
            temporary.replace(path)
        stored = np.load(path)
        states = np.load(work_dir / "words.npy", mmap_mode="r")
        return cls(states, np.load(work_dir / "starts.npy"), stored["numbers"], stored["bounds"], space.first)

    def gather(self, sentences: np.ndarray, bounds: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Word targets of some sentences end to end, (words, hidden), and for each of their tokens its row, or -1.

        Args:
            sentences: (n,) rows of `english.npy`.
            bounds: (n + 1,) where each sentence's tokens lie in the batch.
        """
        states, places, total = [], np.full(bounds[-1], -1), 0
        for sentence, first, last in zip(sentences, bounds[:-1], bounds[1:], strict=True):
            states.append(self.states[self.starts[sentence] : self.starts[sentence + 1]])
            number = self.numbers[self.bounds[sentence] : self.bounds[sentence + 1]].astype(np.int64)[: last - first]
            places[first : first + len(number)] = np.where(number >= 0, number + total, -1)
            total += len(states[-1])
        targets = torch.from_numpy(np.concatenate(states).astype(np.float32) @ self.turn)
        return torch.nn.functional.normalize(targets, dim=-1), torch.from_numpy(places)
