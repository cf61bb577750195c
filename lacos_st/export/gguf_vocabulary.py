"""A tokenizer as GGUF has it, for llama.cpp's own code to cut texts with.

There are two kinds. `gpt2` is byte-level BPE: tokens, merges, and the name of the rule by which texts are split first.
llama.cpp knows these rules by name alone, so a tokenizer whose rule has no name here is refused. `llama` is
SentencePiece's BPE: tokens with scores and no merges. There the neighbours whose joint token scores highest are joined
first, so a token's score is the rank of its first merge, turned round.

The template is reduced to two flags: whether the start token comes before a text and the end token after it.
"""

from __future__ import annotations

import json
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from lacos_st.errors import LacosError
from lacos_st.export.vocabulary import BYTE, is_byte_level, merges_of

_BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# what texts are split by before bytes are joined, and whether GPT-2's own rule follows -> llama.cpp's name of it
_RULES = {
    ((), True): "gpt-2",
    (("digits",), True): "smollm",
    ((_BLOOM,), False): "bloom",
    ((_LLAMA3,), False): "llama-bpe",
    ((_LLAMA3.replace("{1,3}", ""),), False): "qwen2",
}
_SPACES = [
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    {"type": "Prepend", "prepend": "▁"},
]
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = range(1, 7)  # kinds of tokens, as llama.cpp numbers them


def write_vocabulary(writer: Any, tokenizer: Any, template: str, rows: int) -> str:
    """Write a tokenizer's tokens, what joins them, and the tokens that have a role.

    Args:
        writer: The `gguf` package's.
        tokenizer: A fast tokenizer of transformers.
        template: What stands around a text.
        rows: Of the embedding table, which may have more than there are tokens.

    Returns:
        What llama.cpp leaves to the caller, in words; empty where it is nothing.

    Raises:
        LacosError: A tokenizer or a template that llama.cpp has no name for.
    """
    told = json.loads(tokenizer.backend_tokenizer.to_str())
    model = told["model"]
    if model["type"] != "BPE":
        raise LacosError(f"GGUF files are written with BPE tokenizers, and this one is {model['type']}.")
    names = {number: token for token, number in model["vocab"].items()}
    added = {token["id"]: token for token in told["added_tokens"]}
    names |= {number: token["content"] for number, token in added.items()}
    kinds = [_kind(number, names, added, model) for number in range(rows)]
    tokens = [names.get(number, f"[PAD{number}]") for number in range(rows)]
    if is_byte_level(told):
        composes = bool(_check_normalizer(told, ["NFC"]))
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_rule(told["pre_tokenizer"]))
        writer.add_token_merges([" ".join(pair) for pair in merges_of(told)])
        letters = set(bytes_to_unicode().values())
        kinds = [_NORMAL if kind == _BYTE else kind for kind in kinds]
        if any(kind == _NORMAL and not set(token) <= letters for kind, token in zip(kinds, tokens, strict=True)):
            raise LacosError("The vocabulary is byte-level and has tokens that are no bytes: llama.cpp reads no such.")
    else:
        composes = False
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(_scores(tokens, told))
        writer.add_add_space_prefix(_prefix_space(told))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    for role in ("bos", "eos", "unk", "pad"):
        number = getattr(tokenizer, f"{role}_token_id")
        if number is not None:
            getattr(writer, f"add_{role}_token_id")(number)
    before, after = _around(tokenizer, template)
    writer.add_add_bos_token(before)
    writer.add_add_eos_token(after)
    return "llama.cpp does not compose letters and accents: give it texts in Unicode's form NFC." if composes else ""


def _kind(number: int, names: dict[int, str], added: dict[int, Any], model: dict[str, Any]) -> int:
    name = names.get(number)
    if name is None:
        return _UNUSED
    if name == model.get("unk_token"):
        return _UNKNOWN
    if number in added:
        return _CONTROL if added[number]["special"] else _USER
    return _BYTE if BYTE.fullmatch(name) and model.get("byte_fallback") else _NORMAL


def _rule(steps: dict[str, Any]) -> str:
    """llama.cpp's name of what a pre-tokenizer does."""
    parts: list[str] = []
    own = None
    for step in steps.get("pretokenizers", [steps]):
        if step["type"] == "ByteLevel" and not step["add_prefix_space"]:
            own = step["use_regex"]
        elif step["type"] == "Digits" and step["individual_digits"]:
            parts.append("digits")
        elif step["type"] == "Split" and step["behavior"].lower() == "isolated" and not step["invert"]:
            parts.append(step["pattern"].get("Regex", ""))
        else:
            parts.append(step["type"])
    name = _RULES.get((tuple(parts), bool(own))) if own is not None else None
    if name is None:
        raise LacosError(
            f"llama.cpp knows the rules that split texts by name, and there is none here for this tokenizer's "
            f"({' '.join(parts)}): known are {', '.join(_RULES.values())}."
        )
    return name


def _check_normalizer(told: dict[str, Any], harmless: list[Any]) -> list[Any]:
    normalizer = told.get("normalizer") or {"type": "Sequence", "normalizers": []}
    steps = normalizer.get("normalizers", [normalizer])
    if more := [step["type"] for step in steps if step not in harmless and step["type"] not in harmless]:
        raise LacosError(
            f"The tokenizer changes texts before it cuts them ({', '.join(more)}), and llama.cpp does not: the same "
            "text would be other tokens. --format hf holds it."
        )
    return steps


def _prefix_space(told: dict[str, Any]) -> bool:
    """Whether a space is put before a text."""
    steps = _check_normalizer(told, _SPACES)
    marks = [step for step in [told.get("pre_tokenizer") or {}] if step.get("type") == "Metaspace"]
    return _SPACES[1] in steps or any(mark["prepend_scheme"] != "never" for mark in marks)


def _scores(tokens: list[str], told: dict[str, Any]) -> list[float]:
    first: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges_of(told)):
        first.setdefault(left + right, rank)
    return [-float(first.get(token, len(first))) for token in tokens]


def _around(tokenizer: Any, template: str) -> tuple[bool, bool]:
    """Whether the template is the start token before a text, and the end token after it; nothing else can be said."""
    before, _, after = template.partition("{text}")
    if before not in ("", tokenizer.bos_token) or after not in ("", tokenizer.eos_token):
        raise LacosError(
            f"A GGUF file says whether the start token comes before a text and the end token after it, and the "
            f"template {template!r} has more. --format hf holds it."
        )
    return before != "", after != ""
