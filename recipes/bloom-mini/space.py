"""The student's space: the first teacher's, turned onto its leading directions.

    target = first @ turn

The last two dimensions are 0: the student puts there what a token should not say (see `student.py`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from teach import done

SAMPLE = 32768  # sentences, at most, in random order: the first ones of the table


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def turn(work_dir: Path, hidden: int) -> np.ndarray:
    """(384, hidden) from the first teacher's space to the student's."""
    first = np.load(work_dir / "teacher.npy", mmap_mode="r")[: min(SAMPLE, done(work_dir / "teacher.json"))]
    first = first.astype(np.float32)
    values, vectors = np.linalg.eigh(first.T @ first)
    kept = values[2 - hidden :].sum() / values.sum()
    print(f"{hidden - 2} of {len(values)} dimensions keep {kept:.4f} of the energy")
    return np.pad(vectors[:, ::-1][:, : hidden - 2], ((0, 0), (0, 2))).astype(np.float32)
