"""The training text as tokens, and how rare each token is in each language.

`tokens.npz` holds all sentences of `texts.parquet` end to end: `ids` (uint16), `offsets` (rows + 1), each sentence cut
to 64 tokens with its </s>. Both files here are made on the first call.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
from collect import FAVOUR, NOT_WRITTEN, UNSPACED
from teach import MAX_TOKENS
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lacos_st.files import atomic


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

    def rarity(self) -> np.ndarray:
        """(languages, vocabulary) inverse document frequency, as if a sentence had each token once at most.

        Half by the sentences, half by wordfreq: a language's two thousand translated news are no measure for "woman".
        """
        written = np.minimum(self.tokens / self.sentences[:, None], 1)
        share = (written + np.minimum(self.spoken, 1)) / 2
        return np.maximum(-np.log(share + 1 / 20_000), 0).astype(np.float32)


def rarities(work_dir: Path) -> tuple[list[str], np.ndarray]:
    """Return languages, and (languages, vocabulary) fp16: how rare each token is in each."""
    path = work_dir / "rarity.npz"
    if not path.exists():
        counts = Counts.load(work_dir)
        with atomic(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, langs=np.array(counts.langs), rarity=counts.rarity().astype(np.float16))
    stored = np.load(path)
    return stored["langs"].tolist(), stored["rarity"]
