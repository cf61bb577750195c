"""The student's space: the first teacher's, turned onto its leading directions.

The first teacher (384 dimensions) reads English. What the second says (512, fifteen languages; less its mean, which all
sentences share) is translated into the first one's terms by least squares over English sentences that both have read.
It speaks only where there is no English to read: of frequent words, and of sentences without a translation.

    target = first @ space.first, or else unit(second - space.mean) @ space.second

The last two dimensions are 0: the student puts there what a token should not say (see `student.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from teach import done

SAMPLE = 32768  # sentences, at most, in random order: the first ones of both tables


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def sample(work_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """What both teachers say of the same English sentences: they have read them in the same order."""
    count = min(SAMPLE, done(work_dir / "teacher.json"), done(work_dir / "second.json"))
    first, second = (np.load(work_dir / name, mmap_mode="r")[:count] for name in ("teacher.npy", "second.npy"))
    shared = min(len(first), len(second))
    read, english = (np.load(work_dir / name)[:shared] for name in ("second-rows.npy", "english.npy"))
    count = int(np.argmin(np.append(read == english, False)))
    return first[:count].astype(np.float32), second[:count].astype(np.float32)


class Space(NamedTuple):
    """The matrices that turn what a teacher says into the student's space."""

    mean: np.ndarray  # (512,) of the second teacher
    first: np.ndarray  # (384, hidden)
    second: np.ndarray  # (512, hidden)

    @classmethod
    def load(cls, work_dir: Path, hidden: int) -> Space:
        """From what both teachers say of the same English sentences."""
        first, second = sample(work_dir)
        mean = second.mean(0)
        values, vectors = np.linalg.eigh(first.T @ first)
        kept = values[2 - hidden :].sum() / values.sum()
        print(f"{hidden - 2} of {len(values)} dimensions keep {kept:.4f} of the energy")
        turn = np.pad(vectors[:, ::-1][:, : hidden - 2], ((0, 0), (0, 2))).astype(np.float32)
        return cls(mean, turn, regression(unit(second - mean), first) @ turn)

    def target(self, first: np.ndarray) -> np.ndarray:
        """(rows, hidden), unit length, of what the first teacher says."""
        return unit(first.astype(np.float32) @ self.first)


def regression(known: np.ndarray, wanted: np.ndarray, ridge: float = 1.0) -> np.ndarray:
    """The matrix that makes `wanted` of `known`, by ridge regression."""
    return np.linalg.solve(known.T @ known + ridge * np.eye(known.shape[1], dtype=np.float32), known.T @ wanted)
