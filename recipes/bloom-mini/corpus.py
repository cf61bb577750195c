"""Tokenised sentences with their targets, and batches of them; shared by the training stages.

`tokens.npz` holds all sentences of `texts.parquet` end to end: `ids` (uint16), `offsets` (rows + 1), each sentence cut
to 64 tokens with its </s>. A batch is flat, (tokens,) ids and (sentences + 1,) boundaries: no padding anywhere.

Batch k of a run depends on (seed, k) alone, so that a resumed run sees what an undisturbed one would have seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
from collect import FAVOUR, NOT_WRITTEN, SINGLE_WORDS, UNSPACED
from targets import Targets
from teach import MAX_TOKENS
from transformers import AutoTokenizer, PreTrainedTokenizerBase

SINGLES = "single words"  # in place of a language
TOGETHER = 3  # languages beside English in a batch
LOUDNESS = 1.25  # a token should speak as loudly as its rarity to this power


class Batch(NamedTuple):
    """Sentences end to end, language by language, the English ones first."""

    ids: torch.Tensor  # (tokens,) int64
    bounds: torch.Tensor  # (sentences + 1,) int64
    targets: torch.Tensor  # (sentences, hidden) unit length
    cosines: torch.Tensor  # (sentences, sentences) of the targets, less the noise of their projection
    loudness: torch.Tensor  # (tokens,) how much each counts in its language; 0 in English and single words
    english: np.ndarray  # (English sentences,) rows of `english.npy`
    sizes: list[int]  # sentences of each language


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


def spoken(tokenizer: PreTrainedTokenizerBase, lang: str) -> np.ndarray | None:
    """(vocabulary,) how many of each token to expect in a sentence of twelve words, as people use them (wordfreq).

    None where wordfreq does not know the language or words are written together.
    """
    from wordfreq import available_languages, get_frequency_dict

    if lang not in available_languages() or lang in UNSPACED:
        return None
    frequency = get_frequency_dict(lang)
    words = sorted(frequency, key=lambda word: (-frequency[word], word))[:50_000]
    found = tokenizer(words, add_special_tokens=False)["input_ids"]
    weight = np.repeat([frequency[word] for word in words], [len(ids) for ids in found])
    return 12 * np.bincount(np.concatenate(found), weight, len(tokenizer))


class Counts(NamedTuple):
    """How often each language uses each token: in its sentences (not in lists of words and glosses), and in general."""

    langs: list[str]
    sentences: np.ndarray  # (languages,)
    tokens: np.ndarray  # (languages, vocabulary) in them
    spoken: np.ndarray  # (languages, vocabulary) in a sentence, by wordfreq; by the sentences where that is silent

    @classmethod
    def load(cls, work_dir: Path) -> Counts:
        """Of every language with a thousand sentences."""
        ids, offsets = tokenize(work_dir)
        tokenizer = AutoTokenizer.from_pretrained(work_dir / "tokenizer")
        vocabulary = len(tokenizer)
        table = pq.read_table(work_dir / "texts.parquet", columns=["lang", "source"])
        langs, sources = table["lang"].to_numpy(), table["source"].to_numpy()
        written = ~np.isin(sources, NOT_WRITTEN)
        names, code, sentences = np.unique(langs[written], return_inverse=True, return_counts=True)
        each = np.full(len(langs), -1)
        each[written] = code
        each = np.repeat(each, np.diff(offsets))
        found = each * vocabulary + ids
        counts = np.bincount(found[each >= 0], minlength=len(names) * vocabulary).reshape(len(names), vocabulary)
        enough = sentences >= 1000
        names, sentences, counts = [str(name) for name in names[enough]], sentences[enough], counts[enough]
        known = [spoken(tokenizer, name) if FAVOUR.get(name, 0) >= 0.5 else None for name in names]
        here = zip(known, counts / sentences[:, None], strict=True)
        return cls(names, sentences, counts, np.stack([own if said is None else said for said, own in here]))

    def of(self, langs: Iterable[str]) -> Counts:
        """Those of some languages."""
        chosen = np.isin(self.langs, [*langs])
        names = [lang for lang, kept in zip(self.langs, chosen, strict=True) if kept]
        return Counts(names, self.sentences[chosen], self.tokens[chosen], self.spoken[chosen])

    def frequencies(self) -> np.ndarray:
        """(languages, vocabulary) share of a language's tokens."""
        return self.tokens / self.tokens.sum(1, keepdims=True)

    def rarity(self) -> np.ndarray:
        """(languages, vocabulary) inverse document frequency, as if a sentence had each token once at most.

        Half by the sentences, half by wordfreq: a language's two thousand translated news are no measure for "woman".
        """
        written = np.minimum(self.tokens / self.sentences[:, None], 1)
        share = (written + np.minimum(self.spoken, 1)) / 2
        return np.maximum(-np.log(share + 1 / 20_000), 0).astype(np.float32)


def clusters(vectors: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """(rows,) cluster of each unit vector, neighbours in space numbered near each other: one step of k-means, twice."""
    random = np.random.default_rng(seed)
    centres = torch.from_numpy(vectors[np.sort(random.choice(len(vectors), count, replace=False))].astype(np.float32))

    def nearest(rows: np.ndarray) -> torch.Tensor:
        parts = [
            torch.from_numpy(rows[i : i + 16384].astype(np.float32)) @ centres.T for i in range(0, len(rows), 16384)
        ]
        return torch.cat([part.argmax(1) for part in parts])

    sample = vectors[np.sort(random.choice(len(vectors), min(len(vectors), 16 * count), replace=False))]
    label = nearest(sample)
    centres = torch.nn.functional.normalize(
        centres.index_add(0, label, torch.from_numpy(sample.astype(np.float32))), dim=-1
    )
    order = torch.argsort(centres @ centres[0])
    rank = torch.empty_like(order)
    rank[order] = torch.arange(count)
    return rank[nearest(vectors)].numpy()


def chain(vectors: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """(rows,) place of each unit vector in an order in which the next is near: by cluster, there nearest by nearest.

    Batches are drawn in runs of this order, so that they hold the near pairs that STS asks about (cosine 0.5 from one
    to the next in English, 0.15 to 0.5 where sentences are few); among random sentences there are hardly any, within a
    cluster few (0.3).
    """
    order = np.argsort(cluster, kind="stable")
    path: list[np.ndarray] = []
    for members in np.split(order, np.flatnonzero(np.diff(cluster[order])) + 1):
        rows = vectors[members].astype(np.float32)
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


def along_chain(path: Path, targets: Targets, rows: np.ndarray) -> np.ndarray:
    """The place of each of a language's rows in the chain of its targets, which is made on the first call."""
    if not path.exists():
        vectors = np.concatenate([targets(part).numpy() for part in np.array_split(rows, 1 + len(rows) // 20000)])
        np.save(path, chain(vectors.astype(np.float16), clusters(vectors, max(1, len(rows) // 128))))
    return np.load(path)


def spread(rows: np.ndarray, along: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Rows in the order of the chain; of those with one target the first of each, then the second, and so on.

    Neighbours are to be near each other, not the same.
    """
    order = np.argsort(along, kind="stable")
    same = np.argsort(target[order], kind="stable")  # those of one target together, in the order of the chain
    found = target[order][same]
    turn = np.empty(len(rows), np.int64)
    turn[same] = np.arange(len(rows)) - np.searchsorted(found, found)
    return rows[order[np.argsort(turn, kind="stable")]]


class Corpus:
    """Draws batches: `english` of each from English, the rest from translations with a known target.

    Args:
        work_dir: The stages' folder.
        hidden: Size of the targets.
        longest: Sentences of more tokens than this are left out (they cost most and resemble STS least).
        english: Share of English sentences.
        power: A language is drawn in proportion to its sentences to this power,
        favour: times this factor (0.5 where none is given); by default `FAVOUR`.
        lexical: Share of the spelling in the squared length of a target, by language; None: all others.
        run: So many neighbours are drawn together.
        singles: Share of single words (wordfreq), of all languages alike.
        glosses: What a dictionary's words and glosses count for, beside sentences that somebody has written: layers
            that have met little else do not know what to make of a language's small words.
        own: Whether the targets of some languages follow `own.py`.

    Within a language a source is drawn in proportion to the root of its sentences: Tatoeba's hundred thousand short
    ones would drown all others.
    """

    def __init__(
        self,
        work_dir: Path,
        hidden: int,
        longest: int = 48,
        english: float = 0.5,
        power: float = 0.3,
        favour: dict[str, float] | None = None,
        lexical: dict[str | None, float] | None = None,
        run: int = 8,
        singles: float = 0.0,
        glosses: float = 1.0,
        own: bool = False,
    ) -> None:
        self.ids, self.offsets = tokenize(work_dir)
        self.run = run
        table = pq.read_table(work_dir / "texts.parquet", columns=["lang", "english", "text", "source"])
        langs, texts = table["lang"].to_numpy(), table["text"].combine_chunks()
        source = table["source"].combine_chunks().dictionary_encode()
        names = np.array(source.dictionary.to_pylist())[source.indices.to_numpy()]
        single, written = np.isin(names, SINGLE_WORDS), ~np.isin(names, NOT_WRITTEN)
        self.targets = Targets(
            work_dir, hidden, texts, langs, table["english"].to_numpy(), single, written, lexical, own
        )
        langs = np.where(names == "wordfreq", SINGLES, langs)
        row = self.targets.row
        usable = np.flatnonzero((row >= 0) & (np.diff(self.offsets) <= longest))
        pools = {str(lang): usable[langs[usable] == lang] for lang in np.unique(langs)}
        self.pools = {}
        for lang, pool in pools.items():
            if len(pool) >= 500:
                along = along_chain(work_dir / f"chain-{lang}-{len(pool)}-{int(own)}.npy", self.targets, pool)
                self.pools[lang] = spread(pool, along, row[pool])
        size = {
            lang: len(pool) ** power * (favour or FAVOUR).get(lang, 0.5)
            for lang, pool in self.pools.items()
            if lang not in ("en", SINGLES)
        }
        rest = (1 - singles) * (1 - english) / sum(size.values())
        self.share = {"en": (1 - singles) * english, **{lang: rest * n for lang, n in size.items()}}
        self.singles = singles
        self.counts = Counts.load(work_dir)
        known = dict(zip(self.counts.langs, self.counts.rarity() ** LOUDNESS, strict=True))
        unknown = np.zeros(self.counts.tokens.shape[1], np.float32)
        self.loudness = {lang: unknown if lang == "en" else known.get(lang, unknown) for lang in self.pools}
        self.reach = {}
        for lang, pool in self.pools.items():
            starts = pool[: len(pool) - run + 1]
            kind = source.indices.to_numpy()[starts]
            self.reach[lang] = np.cumsum(np.bincount(kind)[kind] ** -0.5 * np.where(written[starts], 1, glosses))

    def gather(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids end to end, and boundaries, of rows of `texts.parquet`."""
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        ids = np.concatenate([self.ids[self.offsets[r] : self.offsets[r + 1]] for r in rows]).astype(np.int64)
        return torch.from_numpy(ids), torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]))

    def batch(self, size: int, seed: int, step: int) -> Batch:
        """Batch number `step`: runs of similar sentences of one language, of English and a few others.

        Of few, so that a batch holds many pairs within a language; pairs are what STS compares.
        """
        random = np.random.default_rng([seed, step])
        others = [lang for lang in self.share if lang != "en"]
        chance = np.array([self.share[lang] for lang in others])
        drawn = {"en": self.share["en"]}
        if self.singles:
            drawn[SINGLES] = self.singles
        each = (1 - sum(drawn.values())) / TOGETHER
        drawn |= dict.fromkeys(random.choice(others, TOGETHER, replace=False, p=chance / chance.sum()), each)
        rows, sizes = [], []
        for lang, share in drawn.items():
            n = round(size * share / self.run)
            reach = self.reach[lang]
            first = np.searchsorted(reach, random.random(n) * reach[-1], side="right")
            rows.append(self.pools[lang][first[:, None] + np.arange(self.run)].ravel())
            sizes.append(n * self.run)
        rows = np.concatenate(rows)
        english = self.targets.row[rows[: sizes[0]]]
        ids, bounds = self.gather(rows)
        lengths = bounds[np.cumsum(sizes)].diff(prepend=bounds[:1]).tolist()
        parts = zip(drawn, ids.split(lengths), strict=True)
        loudness = torch.from_numpy(np.concatenate([self.loudness[lang][part] for lang, part in parts]))
        return Batch(ids, bounds, self.targets(rows), self.targets.cosines(rows, sizes), loudness, english, sizes)
