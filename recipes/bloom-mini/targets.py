"""What a sentence is drawn to, (hidden,): what two teachers say of it, and how it is spelt.

The first teacher speaks of its English, the second of the sentence itself, or of its English if it does not know the
language (`space.py`); where there is no English the second speaks alone. The spelling are its own character n-grams.
What each share scores by itself on development sets is in `docs/ablations.md`: a tenth of spelling helps even where the
teachers are at their best, and more is a safety net where few translations are known.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from collect import READ
from sklearn.feature_extraction.text import HashingVectorizer
from space import Space, unit
from teach import CHUNK, done

LEXICAL: dict[str | None, float] = {**dict.fromkeys(READ, 0.35), "en": 0.15, "zh": 0.15, "ja": 0.15, None: 0.5}
"""Share of the spelling in a target: less where a teacher speaks the language or characters are words."""


def mixed(said: np.ndarray, spelt: np.ndarray, share: np.ndarray | float) -> np.ndarray:
    """A target of two unit vectors; `share` of its squared length is the spelling's."""
    return unit((1 - share) ** 0.5 * said + share**0.5 * spelt)


class Lexical:
    """A second teacher: which characters a sentence is made of.

    The TF-IDF vector of its character 2- to 4-grams (within words), projected at random to `hidden` dimensions: cosines
    survive up to 1 / sqrt(hidden). A model distilled from English alone is worse than this plain baseline in languages
    it has seen little of; mixed into the target it is learnt by the token vectors almost for free.
    """

    def __init__(self, texts: list[str], hidden: int, buckets: int = 2**17) -> None:
        self.hashing = HashingVectorizer(
            analyzer="char_wb",
            ngram_range=(2, 4),
            n_features=buckets,
            alternate_sign=False,
            norm=None,
            dtype=np.float32,
        )
        seen = (self.hashing.transform(texts) > 0).sum(0)
        self.idf = np.log((1 + len(texts)) / (1 + np.asarray(seen).ravel())).astype(np.float32) + 1
        self.random = np.random.default_rng(0).standard_normal((buckets, hidden), np.float32)
        self.random[:, -2:] = 0

    def __call__(self, texts: list[str]) -> np.ndarray:
        """(texts, hidden), unit length."""
        counts = self.hashing.transform(texts)
        counts.data = (1 + np.log(counts.data)) * self.idf[counts.indices]
        return unit(counts @ self.random)


class Targets:
    """Targets of rows of `texts.parquet`.

    Args:
        work_dir: The stages' folder.
        hidden: Size of the targets.
        texts: All texts.
        langs: Their languages.
        english: Row of each one's English translation, or -1.
        single: Which of them are single words. They lie to one side of what a teacher says of sentences, and would
            draw all their tokens there: their own mean is taken off.
        lexical: Share of the spelling in the squared length of a target, by language; None: all others.

    Attributes:
        first_row: (texts,) row of each one's English in `teacher.npy`; above them, where there is no English but the
            second teacher has read the sentence itself; -1: no target.
        alone: Number of those above.
    """

    def __init__(
        self,
        work_dir: Path,
        hidden: int,
        texts: pa.Array,
        langs: np.ndarray,
        english: np.ndarray,
        single: np.ndarray,
        lexical: dict[str | None, float] | None = None,
    ) -> None:
        rows = np.load(work_dir / "english.npy")[: done(work_dir / "teacher.json")]
        read = np.load(work_dir / "second-rows.npy")[: done(work_dir / "second.json")]
        alone = np.sort(read[english[read] < 0])
        place = np.full(len(texts), -1, np.int64)
        place[rows] = np.arange(len(rows))
        self.first_row = np.where(english >= 0, place[english], -1)
        self.first_row[alone] = len(rows) + np.arange(len(alone))
        self.alone = len(alone)
        self.second_row = self.first_row.copy()  # both teachers have read the English in the same order
        self.second_row[read] = np.arange(len(read))

        self.space = Space.load(work_dir, hidden)
        self.first = np.zeros((len(rows) + len(alone), hidden), np.float16)
        teacher = np.load(work_dir / "teacher.npy")[: len(rows)].astype(np.float32)
        teacher[single[rows]] = unit(teacher[single[rows]] - teacher[single[rows]].mean(0))
        self.first[: len(rows)] = teacher @ self.space.first
        second = np.load(work_dir / "second.npy", mmap_mode="r")
        words = second[np.flatnonzero(single[read])].astype(np.float32).mean(0)
        self.second = np.zeros((len(read), hidden), np.float16)
        for i in range(0, len(read), CHUNK):
            said = unit(second[i : i + CHUNK] - np.where(single[read[i : i + CHUNK], None], words, self.space.mean))
            by_itself = english[read[i : i + CHUNK], None] < 0
            self.second[i : i + CHUNK] = np.where(by_itself, said @ self.space.from_second, said @ self.space.second)
        self.lexical = Lexical(texts.take(pa.array(np.arange(0, len(texts), 20))).to_pylist(), hidden)
        share = lexical or LEXICAL
        self.share = np.array([share.get(lang, share[None]) for lang in langs], np.float32)
        self.spelling = self._spelling(work_dir / f"spelling-{hidden}.npy", texts, hidden)

    def _spelling(self, path: Path, texts: pa.Array, hidden: int) -> np.ndarray:
        if not path.exists():
            out = np.zeros((len(texts), hidden), np.float16)
            for start in range(0, len(texts), 20000):
                out[start : start + 20000] = self.lexical(texts[start : start + 20000].to_pylist())
            temporary = path.with_suffix(".part.npy")
            np.save(temporary, out)
            temporary.replace(path)
        return np.load(path, mmap_mode="r")

    def __call__(self, rows: np.ndarray) -> torch.Tensor:
        """(rows, hidden), unit length."""
        said = self.first[self.first_row[rows]].astype(np.float32) + self.second[self.second_row[rows]]
        return torch.from_numpy(mixed(unit(said), self.spelling[rows].astype(np.float32), self.share[rows, None]))
