"""The student's space: the first teacher's, turned onto its leading directions.

The first teacher (384 dimensions) reads English. What the second says (512, fifteen languages; less its mean, which all
sentences share) is translated into the first one's terms by least squares over English sentences that both have read.
It speaks only where there is no English to read: of frequent words, and of sentences without a translation.

    target = first @ space.first, or else unit(second - space.mean) @ space.second

The last two dimensions are 0: the student puts there what a token should not say (see `student.py`).

Which way the space is turned is free. `space.py --towards MODEL` turns it to where an earlier student's embeddings are
nearest to the targets (orthogonal Procrustes), so that its training can go on with them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from dev import encode
from teach import done
from transformers import AutoTokenizer

from lacos_st.bloom import LacosBloomModel

SAMPLE = 32768  # sentences, at most, in random order: the first ones of both tables


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def sample(work_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """What both teachers say of the same English sentences: they have read them in the same order."""
    count = min(SAMPLE, done(work_dir / "teacher.json"), done(work_dir / "second.json"))
    first, second = (np.load(work_dir / name, mmap_mode="r")[:count] for name in ("teacher.npy", "second.npy"))
    read, english = (np.load(work_dir / name)[: len(second)] for name in ("second-rows.npy", "english.npy"))
    count = min(len(first), int(np.argmin(np.append(read == english[: len(read)], False))))
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
        turn = vectors[:, ::-1][:, : hidden - 2]
        if (path := work_dir / "turn.npy").exists():
            turn = turn @ np.load(path)
        turn = np.pad(turn, ((0, 0), (0, hidden - turn.shape[1]))).astype(np.float32)
        return cls(mean, turn, regression(unit(second - mean), first) @ turn)

    def target(self, first: np.ndarray) -> np.ndarray:
        """(rows, hidden), unit length, of what the first teacher says."""
        return unit(first.astype(np.float32) @ self.first)


def regression(known: np.ndarray, wanted: np.ndarray, ridge: float = 1.0) -> np.ndarray:
    """The matrix that makes `wanted` of `known`, by ridge regression."""
    return np.linalg.solve(known.T @ known + ridge * np.eye(known.shape[1], dtype=np.float32), known.T @ wanted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", type=Path, default=Path("work/bloom-mini"))
    parser.add_argument("--towards", type=Path, required=True, help="an earlier output of distil.py")
    args = parser.parse_args()
    (args.work_dir / "turn.npy").unlink(missing_ok=True)
    model = LacosBloomModel.from_pretrained(args.towards).eval()
    space = Space.load(args.work_dir, model.config.hidden_size)
    first, _ = sample(args.work_dir)
    rows = np.load(args.work_dir / "english.npy")[: len(first)]
    texts = pq.read_table(args.work_dir / "texts.parquet", columns=["text"])["text"].combine_chunks()
    said = encode(model, AutoTokenizer.from_pretrained(args.towards), texts.take(pa.array(rows)).to_pylist(), "mean")
    target = space.target(first)
    left, _, right = np.linalg.svd(target[:, :-2].T @ said[:, :-2])
    turn = left @ right
    before, after = ((unit(t) * said[:, :-2]).sum(1).mean() for t in (target[:, :-2], target[:, :-2] @ turn))
    print(f"cosine of {args.towards} to the targets: {before:.3f} before, {after:.3f} after")
    np.save(args.work_dir / "turn.npy", turn.astype(np.float32))


if __name__ == "__main__":
    main()
