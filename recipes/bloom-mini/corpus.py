"""Tokenised sentences with their targets, and batches of them; shared by the training stages.

`tokens.npz` holds all sentences of `texts.parquet` end to end: `ids` (uint16), `offsets` (rows + 1), each sentence cut
to 64 tokens with its </s>. A batch is flat, (tokens,) ids and (sentences + 1,) boundaries: no padding anywhere.

Batch k of a run depends on (seed, k) alone, so that a resumed run sees what an undisturbed one would have seen.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sklearn.feature_extraction.text import HashingVectorizer
from transformers import AutoTokenizer

MAX_TOKENS = 64


class Batch(NamedTuple):
    """Sentences end to end."""

    ids: torch.Tensor  # (tokens,) int64
    bounds: torch.Tensor  # (sentences + 1,) int64
    targets: torch.Tensor | None  # (sentences, hidden) unit length


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


def projection(work_dir: Path, hidden: int) -> np.ndarray:
    """(384, hidden): the teacher's leading right singular vectors; cosines survive the smaller space."""
    path = work_dir / f"projection-{hidden}.npy"
    if not path.exists():
        teacher = np.load(work_dir / "teacher.npy", mmap_mode="r")
        sample = teacher[:8192].astype(np.float32)  # the first chunk, which is in random order
        values, vectors = np.linalg.eigh(sample.T @ sample)
        print(f"{hidden} of {len(values)} dimensions keep {values[-hidden:].sum() / values.sum():.4f} of the energy")
        np.save(path, vectors[:, ::-1][:, :hidden].copy())
    return np.load(path)


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

    def __call__(self, texts: list[str]) -> torch.Tensor:
        """(texts, hidden), unit length."""
        counts = self.hashing.transform(texts)
        counts.data = (1 + np.log(counts.data)) * self.idf[counts.indices]
        return torch.nn.functional.normalize(torch.from_numpy(counts @ self.random), dim=-1)


class Corpus:
    """Draws batches: `english` of each from English, the rest from translations with a known target.

    Args:
        work_dir: The stages' folder.
        hidden: Size of the targets.
        longest: Sentences of more tokens than this are left out (they cost most and resemble STS least).
        english: Share of English sentences.
        power: A language is drawn in proportion to its sentences to this power,
        favour: times this factor, where one is given.
        lexical: Share of the lexical teacher in the squared length of a target; 0 leaves it out.
    """

    def __init__(
        self,
        work_dir: Path,
        hidden: int,
        longest: int = 48,
        english: float = 0.5,
        power: float = 0.5,
        favour: dict[str, float] | None = None,
        lexical: float = 0.0,
    ) -> None:
        self.ids, self.offsets = tokenize(work_dir)
        table = pq.read_table(work_dir / "texts.parquet", columns=["lang", "english"])
        langs, translation = table["lang"].to_numpy(), table["english"].to_numpy()
        rows = np.load(work_dir / "english.npy")
        ready = min(json.loads((work_dir / "teacher.json").read_text())["chunks"] * 8192, len(rows))
        place = np.full(len(langs), -1, np.int64)  # row of texts -> row of the teacher's table
        place[rows[:ready]] = np.arange(ready)
        self.target = np.where(translation >= 0, place[translation], -1)
        self.teacher = np.load(work_dir / "teacher.npy", mmap_mode="r")[:ready]
        self.share_lexical = lexical
        if lexical:
            self.texts = pq.read_table(work_dir / "texts.parquet", columns=["text"])["text"].combine_chunks()
            self.lexical = Lexical(self.texts.take(pa.array(np.arange(0, len(self.texts), 20))).to_pylist(), hidden)
        self.projection = torch.from_numpy(projection(work_dir, hidden))
        usable = (self.target >= 0) & (np.diff(self.offsets) <= longest)
        self.pools = {str(lang): np.flatnonzero(usable & (langs == lang)) for lang in np.unique(langs)}
        self.pools = {lang: pool for lang, pool in self.pools.items() if len(pool) >= 100}
        size = {
            lang: len(pool) ** power * (favour or {}).get(lang, 1.0)
            for lang, pool in self.pools.items()
            if lang != "en"
        }
        total = sum(size.values())
        self.share = {"en": english, **{lang: (1 - english) * n / total for lang, n in size.items()}}

    def gather(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids end to end, and boundaries, of rows of `texts.parquet`."""
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        ids = np.concatenate([self.ids[self.offsets[r] : self.offsets[r + 1]] for r in rows]).astype(np.int64)
        return torch.from_numpy(ids), torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]))

    def targets(self, rows: np.ndarray) -> torch.Tensor:
        """(rows, hidden): the projected teacher of each row's English."""
        teacher = torch.from_numpy(self.teacher[self.target[rows]].astype(np.float32))
        target = torch.nn.functional.normalize(teacher @ self.projection, dim=-1)
        if self.share_lexical:
            own = self.lexical(self.texts.take(pa.array(rows)).to_pylist())
            target = (1 - self.share_lexical) ** 0.5 * target + self.share_lexical**0.5 * own
        return torch.nn.functional.normalize(target, dim=-1)

    def batch(self, size: int, seed: int, step: int) -> Batch:
        """Batch number `step`."""
        random = np.random.default_rng([seed, step])
        counts = random.multinomial(size, list(self.share.values()))
        rows = np.concatenate(
            [random.choice(self.pools[lang], n) for lang, n in zip(self.share, counts, strict=True) if n]
        )
        return Batch(*self.gather(rows), self.targets(rows))
