"""Sentences of languages with two alphabets, written in the other one.

Uyghur is written in Arabic letters, and in Cyrillic ones in Kazakhstan; Serbian in Cyrillic and in Latin letters. Our
sources have one of each. Letters correspond nearly one to one, so each sentence is transliterated, and the model sees
both forms. Without that it takes the other alphabet for another language.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

UYGHUR_CYRILLIC, SERBIAN_LATIN = "ug-Cyrl", "sr-Latn"
_UYGHUR = str.maketrans(
    "ابپتجچخدرزژسشغفقكگڭلمنھوۇۆۈۋېىيە؟،؛", "абптҗчхдрзжсшғфқкгңлмнһоуөүвеийә?,;", "ئـ"
)  # the two left out: a vowel's carrier, a stroke that lengthens
_SERBIAN = dict(zip("абвгдђежзијклмнопрстћуфхцчш", "abvgdđežzijklmnoprstćufhcčš", strict=True))
_SERBIAN |= {"љ": "lj", "њ": "nj", "џ": "dž"}
_SERBIAN |= {cyrillic.upper(): latin.capitalize() for cyrillic, latin in _SERBIAN.items()}
_SERBIAN_LETTERS = str.maketrans(_SERBIAN)


def uyghur_in_cyrillic(text: str) -> str:
    """Of a text in Arabic letters, which have no capitals: sentences begin with one.

    Example:
        >>> uyghur_in_cyrillic("بۇ ياخشى.")
        'Бу яхши.'
    """
    text = text.translate(_UYGHUR).replace("йа", "я").replace("йу", "ю")
    return re.sub(r"(?:^|[.!?]\s+)\w", lambda match: match.group().upper(), text)


def serbian_in_latin(text: str) -> str:
    """Of a text in Cyrillic letters.

    Example:
        >>> serbian_in_latin("Љубав је њежна.")
        'Ljubav je nježna.'
    """
    return text.translate(_SERBIAN_LETTERS)


def by_letters(row: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(language, text) of a row's sentences, those in two alphabets under two names.

    Tokens of one alphabet say nothing of how rare those of the other are. "sr" is in Cyrillic letters.
    """
    for lang, text in row.items():
        latin = serbian_in_latin(text) if lang == "sr" else None
        if latin != text:
            yield lang, text
        if latin is not None:
            yield SERBIAN_LATIN, latin
        if lang == "ug":
            yield UYGHUR_CYRILLIC, uyghur_in_cyrillic(text)
