"""How a sentence is spelt, as a vector: its characters and its tokens, each weighed by its rarity in the language.

Two sentences that share rare words are probably about the same thing. That holds for words whose meaning a student
has not learnt, so targets contain some of it.

    characters: TF-IDF of character 2- to 4-grams within words, (CODES,) int8, stored for all rows
    tokens:     which of the student's tokens a sentence has, (CODES,), computed in `batches.py`

Both are hashed with random signs into `CODES` columns (count sketches; Charikar et al., 2002). Cosines are preserved
up to 1 / sqrt(CODES).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from corpus import kept
from joblib import Parallel, delayed
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.preprocessing import normalize

from lacos_st.files import atomic

CODES = 1024
BUCKETS = 2**17  # n-grams are hashed into so many
SAMPLE = 20_000  # sentences of a language, at most, in which n-grams are counted
CHUNK = 20_000


def n_grams(texts: list[str]) -> csr_matrix:
    """(texts, BUCKETS) counts of character n-grams."""
    hashing = HashingVectorizer(
        analyzer="char_wb", ngram_range=(2, 4), n_features=BUCKETS, alternate_sign=False, norm=None, dtype=np.float32
    )
    return hashing.transform(texts)


class Characters:
    """TF-IDF of character n-grams.

    How rare an n-gram is depends on the language: "het" is rare among all sentences, and yet says little.

    Args:
        path: Where the rarities are kept.
        texts: All texts.
        langs: Their languages.
        written: Which of them to count in.
    """

    def __init__(self, path: Path, texts: pa.Array, langs: np.ndarray, written: np.ndarray) -> None:
        stored = kept(path, lambda: rarity(texts, langs, written))
        self.place = {lang: i for i, lang in enumerate(stored["langs"].tolist())}
        self.idf = stored["idf"]
        random = np.random.default_rng(0)
        sign, column = random.choice([-1.0, 1.0], BUCKETS), random.integers(0, CODES, BUCKETS)
        self.fold = csr_matrix((sign.astype(np.float32), (np.arange(BUCKETS), column)), shape=(BUCKETS, CODES))

    def __call__(self, texts: list[str], langs: np.ndarray | None = None) -> np.ndarray:
        """(texts, CODES) int8, not of unit length; without a language an n-gram is as frequent as where it is most."""
        counts = n_grams(texts)
        place = [self.place.get(lang, -1) for lang in (langs if langs is not None else [None] * len(texts))]
        counts.data = (1 + np.log(counts.data)) * self.idf[np.repeat(place, np.diff(counts.indptr)), counts.indices]
        codes = (normalize(counts, copy=False) @ self.fold).toarray()
        return np.round(codes * (127 / np.abs(codes).max(1, keepdims=True).clip(1e-9))).astype(np.int8)

    def of_all(self, path: Path, texts: pa.Array, langs: np.ndarray) -> np.ndarray:
        """(texts, CODES) int8 of all texts, in a file that is made on the first call."""
        if not path.exists():
            starts = range(0, len(texts), CHUNK)
            parts = (texts[start : start + CHUNK].to_pylist() for start in starts)
            with atomic(path) as temporary:
                table = np.lib.format.open_memmap(temporary, "w+", np.int8, (len(texts), CODES))
                jobs = (delayed(self)(part, langs[at : at + CHUNK]) for at, part in zip(starts, parts, strict=True))
                found = Parallel(n_jobs=min(len(starts), os.cpu_count() or 1), return_as="generator")(jobs)
                for start, codes in zip(starts, found, strict=True):
                    table[start : start + CHUNK] = codes
                table.flush()
        return np.load(path, mmap_mode="c")


def rarity(texts: pa.Array, langs: np.ndarray, written: np.ndarray) -> dict[str, np.ndarray]:
    """`langs`, and `idf`, (languages + 1, BUCKETS): of each language, and where the language is not known."""
    names = np.unique(langs[written])
    rows = [np.flatnonzero(written & (langs == lang)) for lang in names]
    samples = [texts.take(pa.array(found[:: -(-len(found) // SAMPLE)])).to_pylist() for found in rows]
    idf = np.full((len(names) + 1, BUCKETS), np.log(SAMPLE), np.float32)
    for own, sample in zip(idf, samples, strict=False):
        seen = np.bincount(n_grams(sample).indices, minlength=BUCKETS)
        own[:] = np.log((1 + len(sample)) / (1 + seen))
        used = seen >= 10  # in a small language what is missing is not rare
        idf[-1, used] = np.minimum(idf[-1], own)[used]
    return {"langs": names.astype(str), "idf": idf}


def signs(rows: int) -> np.ndarray:
    """(rows, CODES) int8 of +1 and -1: tokens as vectors."""
    bits = np.random.default_rng(1).integers(0, 256, (rows, CODES // 8), np.uint8)
    return np.unpackbits(bits, axis=1).view(np.int8) * 2 - 1


def projection(hidden: int) -> torch.Tensor:
    """(2 * CODES, hidden), from characters and tokens to the student's space; its last two dimensions stay 0."""
    random = np.random.default_rng(2).standard_normal((2 * CODES, hidden), np.float32) / hidden**0.5
    random[:, -2:] = 0
    return torch.from_numpy(random)
