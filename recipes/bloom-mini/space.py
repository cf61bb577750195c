"""Two teachers in one space, the student's.

The first teacher (384 dimensions, English) and the second (512, fifteen languages; less its mean, which all sentences
share) are put side by side, `share` of the squared length for the second, and turned onto their leading directions: a
target's cosine is the weighted mean of both teachers' cosines, but for what falls off the end. That is linear, so
each teacher has a matrix of its own, and a target is the sum of what both say:

    target = first @ space.first + centred(second) @ space.second

Where one is silent (a word's state, a language that it does not know) what it would say is guessed from the other by
least squares over English sentences: `from_first`, `from_second`.

The last two dimensions are 0: the student puts there what a token should not say (see `student.py`).

Which way the space is turned is free. `space.py --towards MODEL` turns it to where an earlier student's embeddings are
nearest to the targets (orthogonal Procrustes), so that its training can go on under other teachers.
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
    count = min(len(first), len(second))
    return first[:count].astype(np.float32), second[:count].astype(np.float32)


class Space(NamedTuple):
    """The matrices that turn what a teacher says into the student's space."""

    mean: np.ndarray  # (512,) of the second teacher
    first: np.ndarray  # (384, hidden)
    second: np.ndarray  # (512, hidden)
    from_first: np.ndarray  # (384, hidden)
    from_second: np.ndarray  # (512, hidden)

    @classmethod
    def load(cls, work_dir: Path, hidden: int, share: float = 0.35) -> Space:
        """From what both teachers say of the same English sentences."""
        first, second = sample(work_dir)
        mean = second.mean(0)
        second = unit(second - mean)
        both = np.concatenate([(1 - share) ** 0.5 * first, share**0.5 * second], 1)
        values, vectors = np.linalg.eigh(both.T @ both)
        kept = values[2 - hidden :].sum() / values.sum()
        print(f"{hidden - 2} of {len(values)} dimensions keep {kept:.4f} of the energy")
        turn = vectors[:, ::-1][:, : hidden - 2]
        if (path := work_dir / "turn.npy").exists():
            turn = turn @ np.load(path)
        turn = np.pad(turn, ((0, 0), (0, 2))).astype(np.float32)
        one, two = (1 - share) ** 0.5 * turn[: first.shape[1]], share**0.5 * turn[first.shape[1] :]
        return cls(mean, one, two, one + guess(first, second) @ two, two + guess(second, first) @ one)

    def centred(self, second: np.ndarray) -> np.ndarray:
        """What the second teacher says, less its mean; unit length."""
        return unit(second.astype(np.float32) - self.mean)

    def target(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """(rows, hidden), unit length, of sentences that both teachers have read."""
        return unit(first.astype(np.float32) @ self.first + self.centred(second) @ self.second)


def guess(known: np.ndarray, wanted: np.ndarray, ridge: float = 1.0) -> np.ndarray:
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
    first, second = sample(args.work_dir)
    rows = np.load(args.work_dir / "english.npy")[: len(first)]
    texts = pq.read_table(args.work_dir / "texts.parquet", columns=["text"])["text"].combine_chunks()
    said = encode(model, AutoTokenizer.from_pretrained(args.towards), texts.take(pa.array(rows)).to_pylist(), "mean")
    target = space.target(first, second)
    left, _, right = np.linalg.svd(target[:, :-2].T @ said[:, :-2])
    turn = left @ right
    before, after = ((unit(t) * said[:, :-2]).sum(1).mean() for t in (target[:, :-2], target[:, :-2] @ turn))
    print(f"cosine of {args.towards} to the targets: {before:.3f} before, {after:.3f} after")
    np.save(args.work_dir / "turn.npy", turn.astype(np.float32))


if __name__ == "__main__":
    main()
