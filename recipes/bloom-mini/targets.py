"""What a sentence is drawn to, (hidden,): what a teacher says of it, and how it is spelt.

The first teacher speaks of its English; where there is none the second speaks of the sentence itself (`space.py`). The
spelling are its own character n-grams; for layers, in languages with few sentences, what token vectors alone make of it
stands there (`own.py`).
What each share scores by itself on development sets is in `docs/ablations.md`: a tenth of spelling helps even where the
teachers are at their best, and more is a safety net where few translations are known.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from collect import READ
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.preprocessing import normalize
from space import Space, unit
from teach import done

LEXICAL: dict[str | None, float] = {
    **dict.fromkeys(READ, 0.45),
    **dict.fromkeys(("de", "nl", "pl", "ru", "tr"), 0.5),
    **dict.fromkeys(("en", "ja", "zh"), 0.15),
    **dict.fromkeys(("az", "bn", "fa", "hi", "kk", "ky", "mr", "sr", "ug", "uz"), 0.65),
    None: 0.5,
}
"""Share of the spelling in a target: less where a teacher speaks the language or characters are words, more where words
are long or translations few."""
OWN = {
    **dict.fromkeys(("az", "hi", "kk", "ky", "uz"), 0.75),
    **dict.fromkeys(("pl", "ru"), 0.65),
    **dict.fromkeys(("nl", "ro"), 0.6),
}
"""Share of what `own.py` says, in place of the spelling."""


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
        texts: All texts.
        langs: Their languages.
        written: Which of them to count in, at most 20,000 of each language.
        hidden: Size of the vectors; the last two dimensions stay 0.
        buckets: N-grams are hashed into so many.
    """

    def __init__(
        self, texts: pa.Array, langs: np.ndarray, written: np.ndarray, hidden: int, buckets: int = 2**17
    ) -> None:
        self.hashing = HashingVectorizer(
            analyzer="char_wb",
            ngram_range=(2, 4),
            n_features=buckets,
            alternate_sign=False,
            norm=None,
            dtype=np.float32,
        )
        self.place = {lang: i for i, lang in enumerate(np.unique(langs[written]))}
        self.idf = np.full((len(self.place) + 1, buckets), np.log(20_000), np.float32)
        for lang, i in self.place.items():
            rows = np.flatnonzero(written & (langs == lang))
            rows = rows[:: -(-len(rows) // 20_000)]
            seen = np.asarray((self.hashing.transform(texts.take(pa.array(rows)).to_pylist()) > 0).sum(0)).ravel()
            self.idf[i] = np.log((1 + len(rows)) / (1 + seen))
            used = seen >= 10  # in a small language what is missing is not rare
            self.idf[-1, used] = np.minimum(self.idf[-1], self.idf[i])[used]
        self.random = np.random.default_rng(0).standard_normal((buckets, hidden), np.float32)
        self.random[:, -2:] = 0

    def exact(self, texts: list[str], langs: np.ndarray | None = None) -> csr_matrix:
        """(texts, buckets), unit length; without a language an n-gram is as frequent as in that which uses it most."""
        counts = self.hashing.transform(texts)
        place = [self.place.get(lang, -1) for lang in (langs if langs is not None else [None] * len(texts))]
        counts.data = (1 + np.log(counts.data)) * self.idf[np.repeat(place, np.diff(counts.indptr)), counts.indices]
        return normalize(counts, copy=False)

    def __call__(self, texts: list[str], langs: np.ndarray | None = None) -> np.ndarray:
        """(texts, hidden), unit length: `exact`, projected."""
        return unit(self.exact(texts, langs) @ self.random)


def words_centred(said: np.ndarray, words: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Unit rows, fp32, less their mean: that of the words among them for words, the one given for sentences."""
    said = said.astype(np.float32)
    if words.any():
        mean = np.where(words[:, None], said[words].mean(0), mean)
    return unit(said - mean)


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
        written: Which of them show how often a language uses a word.
        lexical: Share of the spelling in the squared length of a target, by language; None: all others.
        own: Whether what `own.py` has written takes the spelling's place.

    Attributes:
        row: (texts,) row of each one's English in `teacher.npy`; above them, where there is no English but the
            second teacher has read the sentence itself; -1: no target.
    """

    def __init__(
        self,
        work_dir: Path,
        hidden: int,
        texts: pa.Array,
        langs: np.ndarray,
        english: np.ndarray,
        single: np.ndarray,
        written: np.ndarray,
        lexical: dict[str | None, float] | None = None,
        own: bool = False,
    ) -> None:
        rows = np.load(work_dir / "english.npy")[: done(work_dir / "teacher.json")]
        read = np.load(work_dir / "second-rows.npy")[: done(work_dir / "second.json")]
        alone = np.flatnonzero(english[read] < 0)  # rows of what the second teacher says, in the order of the texts
        alone = alone[np.argsort(read[alone])]
        place = np.full(len(texts), -1, np.int64)
        place[rows] = np.arange(len(rows))
        self.row = np.where(english >= 0, place[english], -1)
        self.row[read[alone]] = len(rows) + np.arange(len(alone))

        self.space = Space.load(work_dir, hidden)
        self.said = np.zeros((len(rows) + len(alone), hidden), np.float16)
        first = np.load(work_dir / "teacher.npy")[: len(rows)]
        self.said[: len(rows)] = self.space.target(words_centred(first, single[rows], np.zeros(first.shape[1])))
        second = np.load(work_dir / "second.npy", mmap_mode="r")[alone]
        second = words_centred(second, single[read[alone]], self.space.mean)
        self.said[len(rows) :] = unit(second @ self.space.second)
        self.texts, self.langs = texts, langs
        self.lexical = Lexical(texts, langs, written, hidden)
        share = lexical or LEXICAL
        self.share = np.array([share.get(lang, share[None]) for lang in langs], np.float32)
        self.spelling = self._spelling(work_dir / f"spelling-{hidden}.npy", texts, langs, hidden)
        self.own, self.place = np.zeros((0, hidden), np.float16), np.full(len(texts), -1)
        if own:
            rows = np.load(work_dir / "own-rows.npy")
            self.own, self.place[rows] = np.load(work_dir / "own.npy"), np.arange(len(rows))
            self.share[rows] = [OWN[lang] for lang in langs[rows]]

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
        spelt, place = self.spelling[rows].astype(np.float32), self.place[rows]
        spelt[place >= 0] = self.own[place[place >= 0]]
        return torch.from_numpy(mixed(said, spelt, self.share[rows, None]))

    def cosines(self, rows: np.ndarray, sizes: list[int]) -> torch.Tensor:
        """(rows, rows): as if what is said and how it is spelt had dimensions of their own.

        The cosines of the targets themselves are those and noise, 0.04 beside their deviation of 0.25: both share
        `hidden` dimensions, to which the spelling was projected at random.

        Args:
            rows: Language by language: the spelling of different languages is not compared.
            sizes: Rows of each language.
        """
        share = self.share[rows, None]
        said = self.said[self.row[rows]].astype(np.float32) * (1 - share) ** 0.5
        cosines = said @ said.T
        for start, part in zip(np.cumsum([0, *sizes]), np.split(rows, np.cumsum(sizes)[:-1]), strict=False):
            place, share = self.place[part], self.share[part, None] ** 0.5
            if (place >= 0).all():
                spelt = self.own[place].astype(np.float32) * share
                spelt = spelt @ spelt.T
            else:
                spelt = self.lexical.exact(self.texts.take(pa.array(part)).to_pylist(), self.langs[part])
                spelt = (spelt @ spelt.T).toarray() * (share * share.T)
            cosines[start : start + len(part), start : start + len(part)] += spelt
        return torch.from_numpy(cosines)
