"""A smaller tokenizer that cuts its texts as the larger one did.

BPE starts from single symbols and joins, again and again, the neighbours whose merge ranks first. What it ends with are
the tokens of a text; what it passes through lies inside those tokens, for no merge is undone. So a vocabulary that
keeps

- the tokens that texts end with, and the pieces that each of them is joined from,
- every merge whose two parts and result are kept, in the old order,

takes the same steps over these texts: the first merge of the old list that applies is always among the kept ones. Any
other text still becomes tokens, smaller ones: the symbols for single bytes stay, of a vocabulary without bytes every
single character, and ASCII in any case.

Ids change: kept tokens are numbered anew in their old order. A tokenizer is handled as the JSON of the tokenizers
library, `tokenizer.json`, which every loader reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from lacos_st.errors import LacosError

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""A token for a byte, in vocabularies with a fallback to bytes."""
_Json = dict[str, Any]


def check_trimmable(tokenizer: _Json) -> None:
    """Refuse a tokenizer that is not of the kind whose steps are known.

    Args:
        tokenizer: Of `tokenizer.json`.

    Raises:
        LacosError: It is no BPE, or one that marks the middle or the end of words.
    """
    model = tokenizer["model"]
    marks = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    if model["type"] != "BPE" or marks or model.get("dropout"):
        kind = f"BPE with {marks!r} or dropout" if model["type"] == "BPE" else model["type"]
        raise LacosError(
            f"Trimming knows plain BPE vocabularies, as those of BLOOM, Llama, Qwen, Gemma and GPT-2 are, and this "
            f"tokenizer is {kind}: use the model untrimmed."
        )


def always_kept(tokenizer: _Json) -> set[int]:
    """Ids without which some text would have no tokens, and those that the tokenizer puts around texts.

    Args:
        tokenizer: Of `tokenizer.json`.
    """
    vocabulary = tokenizer["model"]["vocab"]
    single = {token for token in vocabulary if len(token) == 1}
    if is_byte_level(tokenizer):
        symbols = single & set(bytes_to_unicode().values())
    elif tokenizer["model"].get("byte_fallback"):
        symbols = {token for token in vocabulary if BYTE.fullmatch(token)} | {t for t in single if t.isascii()}
    else:
        symbols = single
    symbols |= {tokenizer["model"].get("unk_token")} & vocabulary.keys()
    around = {value for parent, key in _id_places(tokenizer) for value in _as_list(parent[key])}
    return {vocabulary[token] for token in symbols} | around


def with_pieces(tokenizer: _Json, ids: Iterable[int]) -> set[int]:
    """Tokens, and the pieces that BPE joins them from.

    Args:
        tokenizer: Of `tokenizer.json`.
        ids: Of the tokens.
    """
    vocabulary = tokenizer["model"]["vocab"]
    names = {number: token for token, number in vocabulary.items()}
    ranks = {pair: rank for rank, pair in enumerate(merges_of(tokenizer))}
    kept = set(ids)
    for number in list(kept):
        kept |= {vocabulary[piece] for piece in _pieces(names.get(number, ""), ranks) if piece in vocabulary}
    return kept


def _pieces(token: str, ranks: dict[tuple[str, str], int]) -> Iterator[str]:
    """What a token is joined from, its characters first."""
    parts = list(token)
    yield from parts
    while True:
        found = [(ranks[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in ranks]
        if not found:
            return
        _, at = min(found)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        yield parts[at]


def trimmed(tokenizer: _Json, kept: Sequence[int]) -> _Json:
    """The tokenizer with some of its tokens, numbered anew.

    Args:
        tokenizer: Of `tokenizer.json`; it is changed.
        kept: Old ids, in the order of the new ones.

    Returns:
        The same, smaller.
    """
    new = {old: position for position, old in enumerate(kept)}
    model = tokenizer["model"]
    vocabulary = {token: new[old] for token, old in model["vocab"].items() if old in new}
    merges = [(left, right) for left, right in merges_of(tokenizer) if {left, right, left + right} <= vocabulary.keys()]
    model |= {"vocab": vocabulary, "merges": [list(pair) for pair in merges]}
    added = [token for token in tokenizer["added_tokens"] if token["id"] in new]
    tokenizer["added_tokens"] = [{**token, "id": new[token["id"]]} for token in added]
    for parent, key in _id_places(tokenizer):
        value = parent[key]
        parent[key] = [new[old] for old in value] if isinstance(value, list) else new[value]
    return tokenizer


def merges_of(tokenizer: _Json) -> list[tuple[str, str]]:
    """Merges as pairs; older files have "left right"."""
    return [tuple(m.split(" ") if isinstance(m, str) else m) for m in tokenizer["model"]["merges"]]


def _id_places(tokenizer: _Json) -> list[tuple[Any, Any]]:
    """Where ids stand outside the vocabulary: (holder, key) of what padding and post-processors put beside a text."""
    found: list[tuple[Any, Any]] = []
    if tokenizer.get("padding"):
        found.append((tokenizer["padding"], "pad_id"))
    processors = [tokenizer.get("post_processor") or {}]
    while processors:
        processor = processors.pop()
        processors += processor.get("processors", [])
        if processor.get("type") == "TemplateProcessing":
            found += [(piece, "ids") for piece in processor["special_tokens"].values()]
        elif processor.get("type") in ("BertProcessing", "RobertaProcessing"):  # [token, id]
            found += [(processor[end], 1) for end in ("sep", "cls")]
    return found


def _as_list(value: Any) -> list[int]:
    return value if isinstance(value, list) else [value]


def is_byte_level(tokenizer: _Json) -> bool:
    """Whether texts are cut into bytes before all else, which stand in the vocabulary as letters."""
    steps = [tokenizer.get("pre_tokenizer") or {}, tokenizer.get("normalizer") or {}]
    while steps:
        step = steps.pop()
        if step.get("type") == "ByteLevel":
            return True
        steps += step.get("pretokenizers", []) + step.get("normalizers", [])
    return False


def token_bytes(tokenizer: _Json) -> Callable[[str], bytes]:
    """How a token of the vocabulary is read as bytes of UTF-8, of which it may hold a part of a character.

    Args:
        tokenizer: Of `tokenizer.json`.
    """
    if not is_byte_level(tokenizer):
        return lambda token: token.encode("utf-8", "surrogatepass")
    bytes_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
    return lambda token: (
        bytes(bytes_of[letter] for letter in token) if set(token) <= bytes_of.keys() else token.encode()
    )
