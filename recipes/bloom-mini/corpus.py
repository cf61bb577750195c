"""The training text as tokens, and how rare each token is in each language.

`tokens.npz` holds all sentences of `texts.parquet` end to end: `ids` (uint16), `offsets` (rows + 1), each sentence cut
to 64 tokens with its </s>. `rarity.npz` holds `langs`, and `rarity`, (languages, vocabulary).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from collect import FAVOUR, NOT_WRITTEN, UNSPACED, WORDED
from kept import kept
from teach import MAX_TOKENS
from transformers import AutoTokenizer, PreTrainedTokenizerBase


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


def spoken(tokenizer: PreTrainedTokenizerBase, lang: str) -> np.ndarray | None:
    """(vocabulary,) how many of each token to expect in a sentence of twelve words, as people use them (wordfreq).

    None where wordfreq does not know the language or words are written together.
    """
    from wordfreq import get_frequency_dict

    if lang not in WORDED or lang in UNSPACED:
        return None
    frequency = get_frequency_dict(WORDED[lang])
    words = sorted(frequency, key=lambda word: (-frequency[word], word))[:50_000]
    found = tokenizer(words, add_special_tokens=False)["input_ids"]
    weight = np.repeat([frequency[word] for word in words], [len(ids) for ids in found])
    return 12 * np.bincount(np.concatenate(found), weight, len(tokenizer))


def rarities(work_dir: Path) -> tuple[list[str], np.ndarray]:
    """Return languages with a thousand sentences, and how rare each token is in each; made on the first call.

    (languages, vocabulary) fp16, inverse document frequency, as if a sentence had each token once at most. Half by the
    sentences that somebody has written, half by wordfreq where it knows the language and that counts: two thousand
    translated news are no measure for "woman".
    """

    def make() -> dict[str, np.ndarray]:
        ids, offsets = tokenize(work_dir)
        tokenizer = AutoTokenizer.from_pretrained(work_dir / "tokenizer")
        vocabulary = len(tokenizer)
        table = pq.read_table(work_dir / "texts.parquet", columns=["lang", "source"])
        langs, written = table["lang"].to_numpy(), ~np.isin(table["source"].to_numpy(), NOT_WRITTEN)
        names, code, sentences = np.unique(langs[written], return_inverse=True, return_counts=True)
        each = np.full(len(langs), -1)
        each[written] = code
        each = np.repeat(each, np.diff(offsets))
        found = each * vocabulary + ids
        counts = np.bincount(found[each >= 0], minlength=len(names) * vocabulary).reshape(len(names), vocabulary)
        enough = sentences >= 1000
        names, share = names[enough].astype(str), counts[enough] / sentences[enough, None]
        known = [spoken(tokenizer, str(name)) if FAVOUR.get(str(name), 0) >= 0.5 else None for name in names]
        general = np.stack([own if said is None else said for said, own in zip(known, share, strict=True)])
        share = (np.minimum(share, 1) + np.minimum(general, 1)) / 2
        rarity = np.maximum(-np.log(share + 1 / 20_000), 0)
        return {"langs": names, "rarity": rarity.astype(np.float32).astype(np.float16)}

    stored = kept(work_dir / "rarity.npz", make)
    return stored["langs"].tolist(), stored["rarity"]
