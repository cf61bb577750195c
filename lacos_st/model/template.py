"""The template: what stands around every text, written into the tokenizer.

Prefix and suffix become two special pieces of several ids in the tokenizer's post-processor. Truncation then leaves
room for them, and stock ST applies them too. Each text of a pair gets them. The default adds the end token: a causal
model reads a sentence off its last position, and no text is ever empty.
"""

from typing import Any

from tokenizers.processors import TemplateProcessing

from lacos_st.errors import LacosError


def own_template(tokenizer: Any) -> str:
    """Read off a tokenizer what it puts around every text.

    Args:
        tokenizer: A fast tokenizer of transformers.

    Returns:
        The template; "{text}" if it adds nothing.
    """
    ids, text = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    start = next(i for i in range(len(ids)) if ids[i : i + len(text)] == text)
    return "{text}".join(tokenizer.decode(part) for part in (ids[:start], ids[start + len(text) :]))


def default_template(tokenizer: Any) -> str:
    """What a tokenizer puts around every text, and the end token where it puts nothing behind it.

    Args:
        tokenizer: A fast tokenizer of transformers.
    """
    before, _, after = own_template(tokenizer).partition("{text}")
    return f"{before}{{text}}{after or tokenizer.eos_token or ''}"


def apply_template(tokenizer: Any, template: str) -> None:
    """Let a tokenizer put a template around every text.

    Args:
        tokenizer: A fast tokenizer of transformers; saved with the template, it loads with it.
        template: Text with `{text}` once.

    Raises:
        LacosError: `{text}` is not there exactly once.
    """
    if template.count("{text}") != 1:
        raise LacosError(f"The template {template!r} must contain {{text}} exactly once.")
    prefix, _, suffix = template.partition("{text}")
    backend = tokenizer.backend_tokenizer
    single, specials = [], []
    for name, text in (("<lacos-prefix>", prefix), ("$A", ""), ("<lacos-suffix>", suffix)):
        if text:
            ids = backend.encode(text, add_special_tokens=False).ids
            specials.append({"id": name, "ids": ids, "tokens": [backend.id_to_token(i) for i in ids]})
        if text or name == "$A":
            single.append(name)
    second = [f"{'$B' if piece == '$A' else piece}:1" for piece in single]
    backend.post_processor = TemplateProcessing(single=single, pair=[*single, *second], special_tokens=specials)
    tokenizer.init_kwargs["lacos_template"] = template


def check_room(tokenizer: Any, template: str, length: int) -> None:
    """Refuse a length that the template fills by itself: all texts would have one embedding.

    Args:
        tokenizer: With the template applied.
        template: The template.
        length: Tokens kept of a text, template included.

    Raises:
        LacosError: The length is such.
    """
    added = tokenizer.num_special_tokens_to_add()
    if length <= added:
        raise LacosError(
            f"max_seq_length={length} leaves no room for text: the template {template!r} alone takes {added} tokens."
        )
