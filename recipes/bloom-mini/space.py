"""The student's space: the first teacher's, turned.

    target = first @ turn

Onto its leading directions for a new student. One that has been trained over another work directory has directions of
its own, which differ with the sentences read there; to go on from it, its work directory is given them first
(orthogonal Procrustes), or training would turn the student instead:

    python unpack.py work/bloom-mini/shipped && python space.py work/bloom-mini/shipped     # after teach.py first

The last two dimensions are 0: the student puts there what a token should not say (see `student.py`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from dev import encode
from teach import done
from transformers import AutoTokenizer

from lacos_st.bloom import LacosBloomModel
from lacos_st.files import atomic

SAMPLE = 32768  # sentences, at most, in random order: the first ones of the table


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def sample(work_dir: Path) -> np.ndarray:
    """(sentences, 384) fp32, what the first teacher says of the first ones."""
    read = min(SAMPLE, done(work_dir / "teacher.json"))
    return np.load(work_dir / "teacher.npy", mmap_mode="r")[:read].astype(np.float32)


def turn(work_dir: Path, hidden: int) -> np.ndarray:
    """(384, hidden) from the first teacher's space to the student's."""
    own = work_dir / f"turn-{hidden}.npy"
    if own.exists():
        return np.load(own)
    first = sample(work_dir)
    values, vectors = np.linalg.eigh(first.T @ first)
    kept = values[2 - hidden :].sum() / values.sum()
    print(f"{hidden - 2} of {len(values)} dimensions keep {kept:.4f} of the energy")
    return np.pad(vectors[:, ::-1][:, : hidden - 2], ((0, 0), (0, 2))).astype(np.float32)


def onto(teacher: np.ndarray, student: np.ndarray) -> np.ndarray:
    """(width, hidden) columns at right angles, of unit length but for the silent two, that bring one to the other.

    Args:
        teacher: (sentences, width) unit length, what a teacher says.
        student: (sentences, hidden) unit length, what the student says, or should say, of the same.
    """
    left, _, right = np.linalg.svd(teacher.T @ student[:, :-2], full_matrices=False)
    return np.pad(left @ right, ((0, 0), (0, 2))).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="output of distil.py or unpack.py, to go on from")
    parser.add_argument("--work-dir", type=Path, default=Path("work/bloom-mini"))
    args = parser.parse_args()
    first = sample(args.work_dir)
    rows = np.load(args.work_dir / "english.npy")[: len(first)]
    texts = pq.read_table(args.work_dir / "texts.parquet", columns=["text"])["text"].take(pa.array(rows)).to_pylist()
    model = LacosBloomModel.from_pretrained(args.model).eval()
    student = encode(model, AutoTokenizer.from_pretrained(args.model), texts)
    found = onto(first, student)
    output = args.work_dir / f"turn-{student.shape[1]}.npy"
    with atomic(output) as temporary, temporary.open("wb") as file:
        np.save(file, found)
    cosine = (unit(first @ found) * student).sum(1).mean()
    print(f"{output}: teacher and student have a mean cosine of {cosine:.3f}")


if __name__ == "__main__":
    main()
