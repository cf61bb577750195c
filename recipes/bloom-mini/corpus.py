"""The training text as tokens, and how rare each token is in each language.

A sentence embedding is a mean over tokens, so each token needs a weight: "the" should count little, "guitar" much.
The weight is the inverse document frequency, in the language of the sentence: the fewer sentences have a token, the
more it counts. Frequencies of all languages together would mislead: "het" is rare in general, and a stop word in
Dutch.

`tokens.npz` holds all sentences of `texts.parquet` end to end: `ids` (uint16), `offsets` (rows + 1), each sentence
cut to 64 tokens with its </s>. `rarity.npz` holds `langs`, and `rarity`, (languages, vocabulary).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from collect import WORDS
from transformers import AutoTokenizer

from lacos_st.files import atomic

MAX_TOKENS = 64
ENOUGH = 1000  # sentences of a language from which its tokens are counted


def kept(path: Path, make: Callable[[], Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
    """Arrays from an .npz file, which `make` fills on the first call."""
    if not path.exists():
        with atomic(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **make())
    return np.load(path)


def tokenize(work_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return (ids, offsets), made on the first call."""

    def make() -> dict[str, np.ndarray]:
        tokenizer = AutoTokenizer.from_pretrained(work_dir / "tokenizer")
        texts = pq.read_table(work_dir / "texts.parquet", columns=["text"])["text"].to_pylist()
        pieces: list[np.ndarray] = []
        for start in range(0, len(texts), 10000):
            for ids in tokenizer(texts[start : start + 10000])["input_ids"]:
                cut = [*ids[: MAX_TOKENS - 1], tokenizer.eos_token_id] if len(ids) > MAX_TOKENS else ids
                pieces.append(np.array(cut, np.uint16))
        return {"ids": np.concatenate(pieces), "offsets": np.cumsum([0, *map(len, pieces)])}

    stored = kept(work_dir / "tokens.npz", make)
    return stored["ids"], stored["offsets"]


def rarities(work_dir: Path) -> tuple[list[str], np.ndarray]:
    """Return languages with `ENOUGH` sentences, and how rare each token is in each; made on the first call.

    (languages, vocabulary) fp16, in nats: minus the logarithm of the share of sentences that have the token, counted
    as if a sentence had each token once at most. Single words are not counted.
    """

    def make() -> dict[str, np.ndarray]:
        ids, offsets = tokenize(work_dir)
        vocabulary = len(AutoTokenizer.from_pretrained(work_dir / "tokenizer"))
        table = pq.read_table(work_dir / "texts.parquet", columns=["lang", "source"])
        langs, written = table["lang"].to_numpy(), table["source"].to_numpy() != WORDS
        names, code, sentences = np.unique(langs[written], return_inverse=True, return_counts=True)
        each = np.full(len(langs), -1)
        each[written] = code
        each = np.repeat(each, np.diff(offsets))
        found = each * vocabulary + ids
        counts = np.bincount(found[each >= 0], minlength=len(names) * vocabulary).reshape(len(names), vocabulary)
        enough = sentences >= ENOUGH
        share = np.minimum(counts[enough] / sentences[enough, None], 1)
        rarity = np.maximum(-np.log(share + 1 / 20_000), 0)
        return {"langs": names[enough].astype(str), "rarity": rarity.astype(np.float16)}

    stored = kept(work_dir / "rarity.npz", make)
    return stored["langs"].tolist(), stored["rarity"]
