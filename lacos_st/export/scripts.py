"""Which tokens texts of some languages can have, by the scripts they are written in.

A text's tokens are made of its characters. So a vocabulary that keeps every token of Latin and Arabic letters cuts any
text in English, French and Arabic as before, unseen ones too. No text is needed for that, and much stays: all languages
of a script. Digits, punctuation, signs and emoji belong to no script and stay always.

In a byte-level vocabulary a token may begin or end inside a character. It stays if some character of the scripts has
those bytes there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from lacos_st.errors import LacosError, shown

_PARTS = {  # scripts that are written in several, by ISO 15924
    "Jpan": ("Hira", "Kana", "Hani"), "Kore": ("Hang", "Hani"), "Hans": ("Hani",), "Hant": ("Hani",),
    "Hanb": ("Hani", "Bopo"), "Hrkt": ("Hira", "Kana"), "Latf": ("Latn",), "Aran": ("Arab",),
}  # fmt: skip


def scripts_of(languages: Sequence[str]) -> list[str]:
    """Scripts of languages, as ISO 15924 names them.

    Args:
        languages: Codes such as "en", "sr-Latn", "ja".

    Raises:
        LacosError: A code that no script is known for, or langcodes is not installed.

    Example:
        >>> scripts_of(["fr", "ja", "sr-Latn", "ar"])
        ['Latn', 'Hira', 'Kana', 'Hani', 'Arab']
    """
    try:
        import langcodes
    except ModuleNotFoundError as missing:
        raise LacosError("--languages needs langcodes: pip install 'lacos-st[eval]'") from missing
    found: dict[str, None] = {}
    for code in languages:
        language = langcodes.get(code if langcodes.tag_is_valid(code) else "und")
        script = language.script
        if script is None:
            likely = language.maximize()
            guessed = (likely.script, likely.territory) == ("Latn", "US")  # what it says of a language nobody knows
            script = likely.script if language.language == "en" or not guessed else None
        if script is None or not all(map(_is_script, _PARTS.get(script, (script,)))):
            raise LacosError(
                f"The script of the language {shown(code)} is not known: give a code such as en, ar, sr-Cyrl or "
                "haw-Latn, or texts of the language: --corpus FILE."
            )
        found |= dict.fromkeys(_PARTS.get(script, (script,)))
    return list(found)


def fits(scripts: Sequence[str]) -> Callable[[bytes], bool]:
    """Make a test whether texts in some scripts can have given bytes of UTF-8 in them.

    Args:
        scripts: As `scripts_of` gives them.

    Example:
        >>> possible = fits(["Arab"])
        >>> [possible(token.encode()) for token in ("سلام", "42!", "salam")]
        [True, True, False]
    """
    import regex

    of_these = "".join(rf"\p{{Script={script}}}" for script in scripts)
    allowed = regex.compile(rf"[{of_these}\p{{Script=Zyyy}}\p{{Script=Zinh}}]*")
    every = "".join(map(chr, (*range(0xD800), *range(0xE000, sys.maxunicode + 1))))
    starts, ends, middles = {b""}, {b""}, set()
    for character in "".join(allowed.findall(every)):
        code = character.encode()
        for cut in range(1, len(code)):
            starts.add(code[:cut])
            ends.add(code[cut:])
            middles |= {code[cut:end] for end in range(cut + 1, len(code))}

    def possible(token: bytes) -> bool:
        size = len(token)
        return token in middles or any(
            token[:first] in ends and token[last:] in starts and _matches(allowed, token[first:last])
            for first in range(min(4, size + 1))
            for last in range(size, max(first, size - 4) - 1, -1)
        )

    return possible


def _matches(allowed: Any, part: bytes) -> bool:
    try:
        return allowed.fullmatch(part.decode()) is not None
    except UnicodeDecodeError:
        return False


def _is_script(name: str) -> bool:
    import regex

    try:
        return bool(regex.compile(rf"\p{{Script={name}}}"))
    except regex.error:
        return False
