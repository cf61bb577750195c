"""The training text in memory, and batches of it.

Which of two similar sentences is nearer is learnt only from batches with similar sentences, and a random batch has
hardly any. So a batch is drawn in runs: a sentence and some of its nearest neighbours by their targets. It holds
English, single words, and four other languages, so that there are many pairs within each.

Batch number k depends on the seed and on k alone: a run that was stopped sees the same batches as one that was not.
Rows are drawn on the CPU and gathered on the device that trains, without padding.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
from collect import FAVOUR, WORDS
from corpus import kept, rarities, tokenize
from letters import SERBIAN_LATIN
from spelling import CODES, Characters, projection, signs
from targets import LEXICAL, TOKENS, Second, said_of, words_of_english
from torch import Tensor
from torch.nn.functional import normalize

SINGLES = "single words"  # in place of a language
TOGETHER = 4  # languages beside English in a batch: few, so that it holds many pairs within a language
POWER = 0.3  # a language is drawn in proportion to its sentences to this power, times `DRAWN`
DRAWN = FAVOUR | {
    **dict.fromkeys(("es", "fr", "pt"), 6.0),
    "pl": 3.5,
    **dict.fromkeys(("cs", "ja", "ko"), 1.5),
    **dict.fromkeys(("bn", "ro"), 2.0),
    **dict.fromkeys(("fa", "id", "mr", "sv", "tr", SERBIAN_LATIN), 2.5),
}
"""`FAVOUR`, but that languages which the second teacher knows and that have few translations are drawn more often, and
those most often that have the most text beside English."""
LOUDNESS = 1.25  # a token should speak as loudly as its rarity to this power
LONGEST = 48  # sentences of more tokens are left out: they cost most and resemble STS least
RUN = 4  # so many are drawn together: one, and some of its neighbours
NEIGHBOURS = 12
PART = 2**17  # rows among which neighbours are looked for: a GPU takes seconds, a CPU half an hour, once
PART_OF_WORDS = 2**14  # of single words, which have near ones among fewer
EOS = 2  # stands in every sentence: it spells nothing


class Batch(NamedTuple):
    """Sentences end to end, group by group: English, single words of all languages, then a few other languages."""

    ids: Tensor  # (tokens,) int64
    bounds: Tensor  # (sentences + 1,) int64
    sentence: Tensor  # (tokens,) int64, the sentence of each token
    targets: Tensor  # (sentences, hidden) unit length
    cosines: Tensor  # (sentences, sentences), as if what is said and how it is spelt had dimensions of their own
    loudness: Tensor  # (tokens,) how much each counts in its language; 0 in English and single words
    sizes: list[int]  # sentences of each group
    words: Tensor  # (words, hidden) what the teacher says of each English word, unit length or 0
    places: Tensor  # (English tokens,) the row of `words` of each, or -1


def reach_of(source: np.ndarray) -> np.ndarray:
    """(sentences,) ascending: a source is drawn in proportion to the root of its sentences, each of these alike."""
    _, code, counts = np.unique(source, return_inverse=True, return_counts=True)
    return np.cumsum(counts[code] ** -0.5)


def draw(reach: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """(count,) places in `reach`."""
    return np.searchsorted(reach, random.random(count) * reach[-1], side="right")


def runs_of(first: np.ndarray, near: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """(sentences * RUN,) each of `first` and some of its own row of `near`."""
    columns = np.argsort(random.random(near.shape), 1)[:, : RUN - 1]
    return np.concatenate([first[:, None], np.take_along_axis(near, columns, 1)], 1).ravel()


class Batches:
    """Draws batches: `english` of each from English, the rest from other languages.

    Args:
        work_dir: The stages' folder.
        hidden: Size of the targets.
        device: Where batches are to lie.
        english: Share of English sentences.
        singles: Share of single words, of all languages alike.

    Within a language a source is drawn in proportion to the root of its sentences: Tatoeba's hundred thousand short
    ones would drown all others.
    """

    def __init__(
        self,
        work_dir: Path,
        hidden: int,
        device: str = "cpu",
        english: float = 0.42,
        singles: float = 0.0,
    ) -> None:
        self.device, self.singles = torch.device(device), singles
        ids, self.offsets = tokenize(work_dir)
        table = pq.read_table(work_dir / "texts.parquet", columns=["lang", "text", "source"])
        langs, texts = table["lang"].to_numpy(), table["text"].combine_chunks()
        names, kind = np.unique(table["source"].to_numpy(), return_inverse=True)
        single = (names == WORDS)[kind]
        said, self.row = said_of(work_dir, hidden)
        self.characters = Characters(work_dir / "idf.npz", texts, langs, ~single)
        codes = self.characters.of_all(work_dir / f"characters-{CODES}.npy", texts, langs)
        self.known, self.rarity = rarities(work_dir)
        self.lang = np.full(len(langs), len(self.known))  # number of each text's language; the last is any other
        for number, lang in enumerate(self.known):
            self.lang[langs == lang] = number
        words, self.word_bounds, numbers, self.number_bounds = words_of_english(work_dir, hidden)
        self.second = Second(work_dir, langs, single, self.row, said, self.device)

        self.ids, self.said, self.numbers = (self._there(array) for array in (ids.astype(np.int32), said, numbers))
        self.codes, self.words = self._there(codes), self._there(words)
        self.share = self._there(np.array([LEXICAL.get(lang, LEXICAL[None]) for lang in langs], np.float32))
        rarity = np.concatenate([self.rarity, np.ones_like(self.rarity[:1])]).astype(np.float32)
        speaks = np.array([*(lang != "en" for lang in self.known), False])
        self.rare = self._there(rarity)
        self.loud = self._there(np.where(speaks[:, None], rarity**LOUDNESS, 0))
        self.signs = self._there(signs(rarity.shape[1]))
        self.projection = projection(hidden).to(self.device)

        has_target = (self.second.row >= 0) & ((self.row >= 0) | (langs != "en"))
        usable = np.flatnonzero(has_target & (np.diff(self.offsets) <= LONGEST))
        groups = np.where(single, SINGLES, langs)[usable]
        pools = {str(lang): usable[groups == lang] for lang in np.unique(groups)}
        self.pools = {lang: pool for lang, pool in pools.items() if len(pool) >= 500}
        self.reach = {lang: reach_of(kind[pool]) for lang, pool in self.pools.items()}
        self.near = kept(work_dir / f"neighbours-{len(usable)}.npz", self._neighbours)["rows"]
        size = {
            lang: len(pool) ** POWER * DRAWN.get(lang, 0.5)
            for lang, pool in self.pools.items()
            if lang not in ("en", SINGLES)
        }
        self.english, self.others = (1 - singles) * english, [*size]
        self.chance = np.array([*size.values()]) / sum(size.values())

    def _there(self, array: np.ndarray) -> Tensor:
        """On the device; on a CPU a table that lies in a file stays there."""
        return torch.from_numpy(array).to(self.device)

    def _neighbours(self) -> dict[str, np.ndarray]:
        """`rows`, (texts, NEIGHBOURS) int32, of the same group with the most similar targets, but not the same.

        Batches are drawn in runs of these, so that they hold the near pairs that STS asks about: among random
        sentences there are hardly any.
        """
        near = np.zeros((len(self.row), NEIGHBOURS), np.int32)
        same = np.where(self.row >= 0, self.row, -1 - np.arange(len(self.row)))  # sentences with one English side
        random = np.random.default_rng(0)
        dtype = torch.bfloat16 if self.device.type == "cpu" else torch.float16
        for group, pool in self.pools.items():
            size = PART_OF_WORDS if group == SINGLES else PART
            for part in np.array_split(random.permutation(pool), -(-len(pool) // size)):
                pieces = np.array_split(part, -(-len(part) // 4096))
                targets = torch.cat([self.targets(piece).to(dtype) for piece in pieces])
                row = torch.from_numpy(same[part]).to(self.device)
                lengths = [*map(len, pieces)]
                for piece, own, mine in zip(pieces, targets.split(lengths), row.split(lengths), strict=True):
                    cosines = (own @ targets.T).masked_fill_(mine[:, None] == row, -2)
                    near[piece] = part[cosines.topk(NEIGHBOURS).indices.cpu().numpy()]
        return {"rows": near}

    def _send(self, *arrays: np.ndarray) -> list[Tensor]:
        """Integers of one length, in one transfer."""
        return [*torch.from_numpy(np.stack(arrays).astype(np.int64)).to(self.device, non_blocking=True)]

    def flatten(self, rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Ids end to end, boundaries, and the sentence of each token, of rows of `texts.parquet`."""
        first, lengths = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        ends = np.cumsum(lengths)
        total = int(ends[-1])
        shift, sizes = self._send(first - ends + lengths, lengths)
        sentence = torch.repeat_interleave(sizes, output_size=total)
        ids = self.ids[torch.arange(total, device=self.device) + shift[sentence]].long()
        return ids, torch.nn.functional.pad(sizes.cumsum(0), (1, 0)), sentence

    def spelt(self, codes: Tensor, lang: Tensor, ids: Tensor, sentence: Tensor) -> Tensor:
        """(sentences, 2 * CODES), unit length: characters, then tokens.

        Args:
            codes: (sentences, CODES) of their characters.
            lang: (sentences,) numbers of their languages.
            ids: (tokens,) all their tokens.
            sentence: (tokens,) the sentence of each.
        """
        weight = self.rare[lang[sentence], ids] * (ids != EOS)
        tokens = torch.zeros(codes.shape, device=self.device)
        tokens.index_add_(0, sentence, self.signs[ids].float() * weight[:, None])
        return torch.cat([(1 - TOKENS) ** 0.5 * normalize(codes.float()), TOKENS**0.5 * normalize(tokens)], 1)

    def mixed(self, said: Tensor, spelt: Tensor, share: Tensor | float) -> Tensor:
        """(sentences, hidden), unit length: of what is said and, `share` of the squared length, how it is spelt."""
        return normalize((1 - share) ** 0.5 * said + share**0.5 * normalize(spelt @ self.projection))

    def _parts(self, rows: np.ndarray, ids: Tensor, sentence: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What is said (rows, hidden), how it is spelt (rows, 2 * CODES), the latter's share (rows, 1), languages."""
        at, place, lang = self._send(rows, self.row[rows], self.lang[rows])
        spelt = self.spelt(self.codes[at], lang, ids, sentence)
        return self.said[place].float() * (place >= 0)[:, None], spelt, self.share[at, None], lang

    def targets(self, rows: np.ndarray) -> Tensor:
        """(rows, hidden), unit length."""
        ids, _, sentence = self.flatten(rows)
        said, spelt, share, _ = self._parts(rows, ids, sentence)
        return self.mixed(self.second.beside(rows, said), spelt, share)

    def draw(self, size: int, seed: int, step: int) -> tuple[np.ndarray, list[int]]:
        """Rows of batch number `step`, and how many are of each group: English, single words, then others."""
        random = np.random.default_rng([seed, step])
        drawn = {"en": self.english, SINGLES: self.singles}
        chosen = random.choice(self.others, min(TOGETHER, len(self.others)), replace=False, p=self.chance)
        drawn |= {str(lang): (1 - self.english - self.singles) / len(chosen) for lang in chosen}
        rows, sizes = [], []
        for lang, share in drawn.items():
            n = round(size * share / RUN)
            if n:
                first = self.pools[lang][draw(self.reach[lang], n, random)]
                rows.append(runs_of(first, self.near[first], random))
            sizes.append(n * RUN)
        return np.concatenate(rows).astype(np.int64), sizes

    def batch(self, size: int, seed: int, step: int) -> Batch:
        """Batch number `step`: runs of similar sentences of one group."""
        rows, sizes = self.draw(size, seed, step)
        ids, bounds, sentence = self.flatten(rows)
        said, spelt, share, lang = self._parts(rows, ids, sentence)
        targets = self.mixed(self.second.beside(rows, said), spelt, share)
        cosines = self.second.cosines(rows, said) * ((1 - share) * (1 - share.T)).sqrt()
        spelt = spelt * share.sqrt()
        for last, n in zip(np.cumsum(sizes), sizes, strict=True):  # spellings of two groups are not compared
            part = slice(last - n, last)
            cosines[part, part] += spelt[part] @ spelt[part].T
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        english, single = lengths[: sizes[0]].sum(), lengths[sizes[0] : sizes[0] + sizes[1]].sum()
        loudness = self.loud[lang[sentence], ids]
        loudness[english : english + single] = 0
        words, places = self._word_targets(self.row[rows[: sizes[0]]])
        return Batch(ids, bounds, sentence, targets, cosines, loudness, sizes, words, places)

    def _word_targets(self, sentences: np.ndarray) -> tuple[Tensor, Tensor]:
        """`Batch.words` and `Batch.places` of rows of `english.npy`."""
        words = self.word_bounds[sentences + 1] - self.word_bounds[sentences]
        tokens = self.number_bounds[sentences + 1] - self.number_bounds[sentences]
        first = np.cumsum(words) - words  # of each sentence, in this batch
        (at,) = self._send(np.repeat(self.word_bounds[sentences] - first, words) + np.arange(words.sum()))
        start = np.repeat(self.number_bounds[sentences] - np.cumsum(tokens) + tokens, tokens)
        where, base = self._send(start + np.arange(tokens.sum()), np.repeat(first, tokens))
        number = self.numbers[where].long()
        return self.words[at].float(), torch.where(number >= 0, number + base, -1)
