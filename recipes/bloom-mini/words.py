"""Word targets: the teacher's state of each word, and which of the student's tokens make that word.

The two tokenizers cut a word differently, so both sides add up a word's tokens (see `teach.py`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from kept import kept
from space import turn, unit
from teach import done, encoded

from lacos_st.files import atomic


def numbers_of(work_dir: Path, rows: np.ndarray) -> dict[str, np.ndarray]:
    """`numbers`, (tokens,) int8, the word of each of the student's tokens in rows of `texts.parquet`, and `bounds`."""
    table = pq.read_table(work_dir / "texts.parquet", columns=["text"])["text"].combine_chunks()
    found = encoded(str(work_dir / "tokenizer"), "", table.take(pa.array(rows)).to_pylist())
    numbers = [number.astype(np.int8) for chunk in found for number in chunk.words]
    return {"numbers": np.concatenate(numbers), "bounds": np.cumsum([0, *map(len, numbers)])}


def words_of_english(work_dir: Path, hidden: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Word targets of the sentences of `english.npy`, and which of the student's tokens make which word.

    Returns:
        (words, hidden) fp16, unit length, or 0 where the teacher did not see the word; (sentences + 1,) bounds there;
        (tokens,) int8, the word of each token, or -1; (sentences + 1,) bounds there. Kept in files.
    """
    read = done(work_dir / "teacher.json")
    vectors = work_dir / f"words-{hidden}-{read}.npy"
    if not vectors.exists():
        into, states = turn(work_dir, hidden), np.load(work_dir / "words.npy", mmap_mode="r")
        with atomic(vectors) as temporary:
            table = np.lib.format.open_memmap(temporary, "w+", np.float16, (len(states), hidden))
            for start in range(0, len(states), 2**17):
                part = slice(start, start + 2**17)
                table[part] = unit(states[part].astype(np.float32) @ into)
            table.flush()
    english = np.load(work_dir / "english.npy")[:read]
    stored = kept(work_dir / f"word-numbers-{read}.npz", lambda: numbers_of(work_dir, english))
    return np.load(vectors, mmap_mode="c"), np.load(work_dir / "starts.npy"), stored["numbers"], stored["bounds"]
