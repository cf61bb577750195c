"""Tokenised sentences with their targets, and batches of them; shared by the training stages.

`tokens.npz` holds all sentences of `texts.parquet` end to end: `ids` (uint16), `offsets` (rows + 1), each sentence cut
to 64 tokens with its </s>. A batch is flat, (tokens,) ids and (sentences + 1,) boundaries: no padding anywhere.

A sentence's target is made of what the teachers say (`space.py`: the first of its English, the second of the sentence
itself, or of its English if it does not know the language), and its own character n-grams (how it is spelt). What each
share scores by itself on development sets is in `docs/ablations.md`: a tenth of spelling helps even where the teacher
is at its best, and more is a safety net where few translations are known.

Batch k of a run depends on (seed, k) alone, so that a resumed run sees what an undisturbed one would have seen.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from collect import FAVOUR
from second_teacher import LANGUAGES
from sklearn.feature_extraction.text import HashingVectorizer
from space import Space, unit
from teach import CHUNK, MAX_TOKENS
from transformers import AutoTokenizer

LEXICAL: dict[str | None, float] = {**dict.fromkeys(LANGUAGES, 0.25), "en": 0.15, "zh": 0.15, "ja": 0.15, None: 0.35}
"""Share of the spelling in a target: less where a teacher speaks the language or characters are words."""
DRAWN = {**FAVOUR, "zh": 2.5, "ar": 2.5, "hi": 2.0, "de": 3.0, "it": 2.5, "nl": 2.5, "pl": 2.5, "ru": 2.5, "tr": 1.5}
"""How often a language is drawn, beside its size: as the tokenizer was made, but more where words fall to pieces."""


class Batch(NamedTuple):
    """Sentences end to end, the English ones first."""

    ids: torch.Tensor  # (tokens,) int64
    bounds: torch.Tensor  # (sentences + 1,) int64
    targets: torch.Tensor  # (sentences, hidden) unit length
    english: np.ndarray  # (English sentences,) rows of `english.npy`


def tokenize(work_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return (ids, offsets), made on the first call."""
    path = work_dir / "tokens.npz"
    if not path.exists():
        tokenizer = AutoTokenizer.from_pretrained(work_dir / "tokenizer")
        texts = pq.read_table(work_dir / "texts.parquet", columns=["text"])["text"].to_pylist()
        pieces: list[np.ndarray] = []
        lengths: list[int] = []
        for start in range(0, len(texts), 10000):
            for ids in tokenizer(texts[start : start + 10000])["input_ids"]:
                cut = [*ids[: MAX_TOKENS - 1], tokenizer.eos_token_id] if len(ids) > MAX_TOKENS else ids
                pieces.append(np.array(cut, np.uint16))
                lengths.append(len(cut))
        temporary = path.with_suffix(".part.npz")
        np.savez(temporary, ids=np.concatenate(pieces), offsets=np.concatenate([[0], np.cumsum(lengths)]))
        temporary.replace(path)
    stored = np.load(path)
    return stored["ids"], stored["offsets"]


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


def clusters(teacher: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """(rows,) cluster of each unit vector, neighbours in space numbered near each other: one step of k-means, twice."""
    random = np.random.default_rng(seed)
    centres = torch.from_numpy(teacher[np.sort(random.choice(len(teacher), count, replace=False))].astype(np.float32))

    def nearest(rows: np.ndarray) -> torch.Tensor:
        parts = [
            torch.from_numpy(rows[i : i + 16384].astype(np.float32)) @ centres.T for i in range(0, len(rows), 16384)
        ]
        return torch.cat([part.argmax(1) for part in parts])

    sample = teacher[: 16 * count]
    label = nearest(sample)
    centres = torch.nn.functional.normalize(
        centres.index_add(0, label, torch.from_numpy(sample.astype(np.float32))), dim=-1
    )
    order = torch.argsort(centres @ centres[0])
    rank = torch.empty_like(order)
    rank[order] = torch.arange(count)
    return rank[nearest(teacher)].numpy()


def chain(teacher: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """(rows,) place of each unit vector in an order in which the next is near: by cluster, there nearest by nearest.

    Batches are drawn in runs of this order, so that they hold the near pairs that STS asks about (cosine 0.5 from one
    to the next); among random sentences there are hardly any, within a cluster few (0.3).
    """
    order = np.argsort(cluster, kind="stable")
    path: list[np.ndarray] = []
    for members in np.split(order, np.flatnonzero(np.diff(cluster[order])) + 1):
        rows = teacher[members].astype(np.float32)
        cosine = rows @ rows.T
        np.fill_diagonal(cosine, -2)
        cosine[:, 0] = -2
        visited = [0]
        for _ in range(len(members) - 1):
            visited.append(int(cosine[visited[-1]].argmax()))
            cosine[:, visited[-1]] = -2
        path.append(members[visited])
    place = np.empty(len(cluster), np.int64)
    place[np.concatenate(path)] = np.arange(len(cluster))
    return place


def spread(rows: np.ndarray, along: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Rows in the order of the chain; of those with one target the first of each, then the second, and so on.

    Neighbours are to be near each other, not the same.
    """
    rows = rows[np.argsort(along[target[rows]], kind="stable")]
    place = along[target[rows]]
    first = np.searchsorted(place, place)
    return rows[np.argsort(np.arange(len(rows)) - first, kind="stable")]


class Corpus:
    """Draws batches: `english` of each from English, the rest from translations with a known target.

    Args:
        work_dir: The stages' folder.
        hidden: Size of the targets.
        longest: Sentences of more tokens than this are left out (they cost most and resemble STS least).
        english: Share of English sentences.
        power: A language is drawn in proportion to its sentences to this power,
        favour: times this factor (0.5 where none is given); by default `DRAWN`.
        lexical: Share of the spelling in the squared length of a target, by language; None: all others.
        run: So many neighbours are drawn together.

    Within a language a source, too, is drawn in proportion to its sentences to `power`: Tatoeba's hundred thousand
    short sentences would drown all others.
    """

    def __init__(
        self,
        work_dir: Path,
        hidden: int,
        longest: int = 48,
        english: float = 0.5,
        power: float = 0.5,
        favour: dict[str, float] | None = None,
        lexical: dict[str | None, float] | None = None,
        run: int = 8,
    ) -> None:
        self.ids, self.offsets = tokenize(work_dir)
        self.table, self.run = work_dir / "texts.parquet", run
        table = pq.read_table(self.table, columns=["lang", "english", "text", "source"])
        langs, translation = table["lang"].to_numpy(), table["english"].to_numpy()
        rows = np.load(work_dir / "english.npy")
        ready = min(json.loads((work_dir / "teacher.json").read_text())["chunks"] * CHUNK, len(rows))
        teacher = np.load(work_dir / "teacher.npy", mmap_mode="r")[:ready]
        place = np.full(len(langs), -1, np.int64)  # row of texts -> row of the teacher's table
        place[rows[:ready]] = np.arange(ready)
        self.target = np.where(translation >= 0, place[translation], -1)
        read = np.load(work_dir / "second-rows.npy")
        read = read[: json.loads((work_dir / "second.json").read_text())["chunks"] * CHUNK]
        alone = read[translation[read] < 0]
        self.target[alone] = ready + np.arange(len(alone))  # what the first teacher has not read: 0 in its table
        usable = np.flatnonzero((self.target >= 0) & (np.diff(self.offsets) <= longest))
        path = work_dir / f"chain-{ready}.npy"
        if not path.exists():
            np.save(path, chain(teacher, clusters(teacher, 4096)))
        along = np.concatenate([np.load(path), ready + np.argsort(np.argsort(alone))])
        self.pools = {str(lang): spread(usable[langs[usable] == lang], along, self.target) for lang in np.unique(langs)}
        self.pools = {lang: pool for lang, pool in self.pools.items() if len(pool) >= 500}
        size = {
            lang: len(pool) ** power * (favour or DRAWN).get(lang, 0.5)
            for lang, pool in self.pools.items()
            if lang != "en"
        }
        total = sum(size.values())
        self.share = {"en": english, **{lang: (1 - english) * n / total for lang, n in size.items()}}
        source = table["source"].combine_chunks().dictionary_encode().indices.to_numpy()
        self.reach = {}
        for lang, pool in self.pools.items():
            kind = source[pool[: len(pool) - run + 1]]
            self.reach[lang] = np.cumsum(np.bincount(kind).clip(1)[kind] ** (power - 1))
        self.space = Space.load(work_dir, hidden)
        first = (teacher.astype(np.float32) @ self.space.first).astype(np.float16)
        self.first = np.concatenate([first, np.zeros((len(alone), hidden), np.float16)])
        second = np.load(work_dir / "second.npy", mmap_mode="r")
        self.second = np.zeros((len(read), hidden), np.float16)
        for i in range(0, len(read), CHUNK):
            said = self.space.centred(second[i : i + CHUNK])
            guessed = translation[read[i : i + CHUNK], None] < 0
            self.second[i : i + CHUNK] = np.where(guessed, said @ self.space.from_second, said @ self.space.second)
        self.own = self.target.copy()  # row of `second`: of the sentence itself, else of its English
        self.own[read] = np.arange(len(read))
        texts = table["text"].combine_chunks()
        self.lexical = Lexical(texts.take(pa.array(np.arange(0, len(texts), 20))).to_pylist(), hidden)
        share = lexical or LEXICAL
        self.share_lexical = np.array([share.get(lang, share[None]) for lang in langs], np.float32)
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

    def counts(self, vocabulary: int) -> np.ndarray:
        """(languages, vocabulary) how often each language uses each token, in sentences that people wrote.

        Of languages that count (FAVOUR) and have enough text: in a rarer one a piece of a word may be frequent by
        accident.
        """
        table = pq.read_table(self.table, columns=["lang", "source"])
        langs = table["lang"].combine_chunks().dictionary_encode()
        favoured = pa.array([lang for lang, factor in FAVOUR.items() if factor >= 0.5])
        written = pc.invert(pc.starts_with(pc.cast(table["source"], pa.string()), "freedict"))
        rows = np.flatnonzero(pc.and_(written, pc.is_in(pc.cast(table["lang"], pa.string()), favoured)).to_numpy())
        codes, lengths = langs.indices.to_numpy()[rows], np.diff(self.offsets)[rows]
        pieces = np.concatenate([self.ids[self.offsets[r] : self.offsets[r + 1]] for r in rows]).astype(np.int64)
        sizes = np.bincount(codes)
        counts = np.bincount(np.repeat(codes, lengths) * vocabulary + pieces, minlength=len(sizes) * vocabulary)
        return counts.reshape(len(sizes), vocabulary)[sizes >= 1500]

    def gather(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids end to end, and boundaries, of rows of `texts.parquet`."""
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        ids = np.concatenate([self.ids[self.offsets[r] : self.offsets[r + 1]] for r in rows]).astype(np.int64)
        return torch.from_numpy(ids), torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]))

    def targets(self, rows: np.ndarray) -> torch.Tensor:
        """(rows, hidden), unit length: what the teachers say of each row, and how it is spelt."""
        share, spelt = self.share_lexical[rows, None], self.spelling[rows].astype(np.float32)
        said = self.first[self.target[rows]].astype(np.float32) + self.second[self.own[rows]].astype(np.float32)
        return torch.from_numpy(mixed(unit(said), spelt, share))

    def batch(self, size: int, seed: int, step: int) -> Batch:
        """Batch number `step`: runs of similar sentences of one language."""
        random = np.random.default_rng([seed, step])
        counts = random.multinomial(size // self.run, list(self.share.values()))
        rows = []
        for lang, n in zip(self.share, counts, strict=True):
            reach = self.reach[lang]
            first = np.searchsorted(reach, random.random(n) * reach[-1], side="right")
            rows.append(self.pools[lang][first[:, None] + np.arange(self.run)].ravel())
        rows = np.concatenate(rows)
        english = self.target[rows[: counts[0] * self.run]]
        return Batch(*self.gather(rows), self.targets(rows), english)
