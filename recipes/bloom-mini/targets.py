"""What a sentence is drawn to, (hidden,): what a teacher says of it, and how it is spelt.

The first teacher speaks of its English; where there is none the second speaks of the sentence itself (`space.py`). The
spelling are its own character n-grams.
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
from teach import done

LEXICAL: dict[str | None, float] = {**dict.fromkeys(READ, 0.35), "en": 0.15, "zh": 0.15, "ja": 0.15, None: 0.5}
"""Share of the spelling in a target: less where a teacher speaks the language or characters are words."""


def mixed(said: np.ndarray, spelt: np.ndarray, share: np.ndarray | float) -> np.ndarray:
    """A target of two unit vectors; `share` of its squared length is the spelling's."""
    return unit((1 - share) ** 0.5 * said + share**0.5 * spelt)


class Lexical:
    """Another teacher: which characters a sentence is made of.

    The TF-IDF vector of its character 2- to 4-grams (within words), projected at random to `hidden` dimensions: cosines
    survive up to 1 / sqrt(hidden). A model distilled from English alone is worse than this plain baseline in languages
    it has seen little of; mixed into the target it is learnt by the token vectors almost for free.

    How rare an n-gram is depends on the language: "het" is rare among all sentences, and yet says little.

    Args:
        texts: Sentences to count in, at most 20,000 of each language.
        langs: Their languages.
        hidden: Size of the vectors; the last two dimensions stay 0.
        buckets: N-grams are hashed into so many.
    """

    def __init__(self, texts: pa.Array, langs: np.ndarray, hidden: int, buckets: int = 2**17) -> None:
        self.hashing = HashingVectorizer(
            analyzer="char_wb",
            ngram_range=(2, 4),
            n_features=buckets,
            alternate_sign=False,
            norm=None,
            dtype=np.float32,
        )
        self.langs = np.unique(langs)
        self.idf = np.zeros((len(self.langs), buckets), np.float32)
        for i, lang in enumerate(self.langs):
            rows = np.flatnonzero(langs == lang)
            rows = rows[:: -(-len(rows) // 20_000)]
            seen = (self.hashing.transform(texts.take(pa.array(rows)).to_pylist()) > 0).sum(0)
            self.idf[i] = np.log((1 + len(rows)) / (1 + np.asarray(seen).ravel()))
        self.random = np.random.default_rng(0).standard_normal((buckets, hidden), np.float32)
        self.random[:, -2:] = 0

    def __call__(self, texts: list[str], langs: np.ndarray | None = None) -> np.ndarray:
        """(texts, hidden), unit length; without languages an n-gram is as frequent as in that which uses it most."""
        counts = self.hashing.transform(texts)
        if langs is None:
            idf = self.idf.min(0)[counts.indices]
        else:
            lang = np.repeat(np.searchsorted(self.langs, langs), np.diff(counts.indptr))
            idf = self.idf[lang, counts.indices]
        counts.data = (1 + np.log(counts.data)) * idf
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
        row: (texts,) row of each one's English in `teacher.npy`; above them, where there is no English but the
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
        alone = np.flatnonzero(english[read] < 0)  # rows of what the second teacher says, in the order of the texts
        alone = alone[np.argsort(read[alone])]
        place = np.full(len(texts), -1, np.int64)
        place[rows] = np.arange(len(rows))
        self.row = np.where(english >= 0, place[english], -1)
        self.row[read[alone]] = len(rows) + np.arange(len(alone))
        self.alone = len(alone)

        self.space = Space.load(work_dir, hidden)
        self.said = np.zeros((len(rows) + len(alone), hidden), np.float16)
        first = np.load(work_dir / "teacher.npy")[: len(rows)].astype(np.float32)
        first[single[rows]] = unit(first[single[rows]] - first[single[rows]].mean(0))
        self.said[: len(rows)] = unit(first @ self.space.first)
        second = np.load(work_dir / "second.npy", mmap_mode="r")[alone].astype(np.float32)
        words = single[read[alone]]
        mean = second[words].mean(0) if words.any() else self.space.mean
        second = unit(second - np.where(words[:, None], mean, self.space.mean))
        self.said[len(rows) :] = unit(second @ self.space.second)
        written = np.flatnonzero(~single)
        self.lexical = Lexical(texts.take(pa.array(written)), langs[written], hidden)
        share = lexical or LEXICAL
        self.share = np.array([share.get(lang, share[None]) for lang in langs], np.float32)
        self.spelling = self._spelling(work_dir / f"spelling-{hidden}.npy", texts, langs, hidden)

    def _spelling(self, path: Path, texts: pa.Array, langs: np.ndarray, hidden: int) -> np.ndarray:
        if not path.exists():
            out = np.zeros((len(texts), hidden), np.float16)
            for start in range(0, len(texts), 20000):
                part = slice(start, start + 20000)
                out[part] = self.lexical(texts[part].to_pylist(), langs[part])
            temporary = path.with_suffix(".part.npy")
            np.save(temporary, out)
            temporary.replace(path)
        return np.load(path, mmap_mode="r")

    def __call__(self, rows: np.ndarray) -> torch.Tensor:
        """(rows, hidden), unit length."""
        said = self.said[self.row[rows]].astype(np.float32)
        return torch.from_numpy(mixed(said, self.spelling[rows].astype(np.float32), self.share[rows, None]))
