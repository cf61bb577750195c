"""What free software says, in the languages it speaks: gettext's catalogues, and CLDR's names of emoji.

Both are translated by people, message by message, into a hundred languages, many of which have hardly another free
source of translations. A Debian system keeps catalogues where its packages put them, /usr/share/locale/hi/LC_MESSAGES
and the like; any folder with such files will do. They are under the licences of their programs (GPL, LGPL, MPL, BSD).
CLDR (the npm package `cldr-annotations-full`; Unicode licence) names everyday things: "woman walking", "hot pepper".
"""

from __future__ import annotations

import json
import random
import re
import struct
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

LICENCE, CLDR = "GPL / LGPL / MPL-2.0 / BSD (by program)", "Unicode-3.0"
LEFT_OUT = {"zh_TW", "zh_HK", "uz@cyrillic", "ca@valencia", "tt@iqtelif", "pa_PK"}  # scripts that no STS set has
CODE = re.compile(r"[{}%$|\\@#=<>/^*\[\]]|\w[_.~]\w|--|\.\.\.|https?:|&\w+;")  # what no sentence has
TAG, MNEMONIC = re.compile(r"</?[a-zA-Z][^<>]*>"), re.compile(r"\([_&~]\w\)|(?<!\w)[_&~](?=\w)(?!\w+;)")


def messages(path: Path) -> Iterator[tuple[str, str]]:
    """(message, translation) of one compiled catalogue, singulars only; none if it is not in UTF-8.

    The format is gettext's (its manual, "The Format of GNU MO Files"); Python's reader stops at faulty plural rules.
    """
    data = path.read_bytes()
    order = {b"\xde\x12\x04\x95": "<", b"\x95\x04\x12\xde": ">"}.get(data[:4])
    if order is None:
        return
    _, count, *tables = struct.unpack(f"{order}4I", data[4:20])
    sides = [
        [data[at : at + size].split(b"\0")[0] for size, at in struct.iter_unpack(f"{order}2I", data[i : i + 8 * count])]
        for i in tables
    ]
    try:
        pairs = [(message.decode(), translation.decode()) for message, translation in zip(*sides, strict=True)]
    except UnicodeDecodeError:
        return
    yield from (pair for pair in pairs if all(pair))  # an empty message holds the header


def sentences(message: str, translation: str) -> Iterator[tuple[str, str]]:
    """Pairs of lines that read like text."""
    message = message.rsplit("\x04", 1)[-1]  # a context may stand before it
    sides = [MNEMONIC.sub("", TAG.sub("", side)).strip().splitlines() for side in (message, translation)]
    if len(sides[0]) != len(sides[1]):
        sides = [[" ".join(side)] for side in sides]
    for english, other in zip(*sides, strict=True):
        english, other = (" ".join(side.split()).strip(' :\u2026"') for side in (english, other))
        words = re.findall(r"[A-Za-z]+", english)
        if 3 <= len(words) <= 30 and other != english and len(other) > 3 and not CODE.search(english + " " + other):
            yield english, other


def catalogue_rows(folder: Path, languages: Iterable[str], most: Counter[str]) -> Iterator[dict[str, str]]:
    """{"en": message, language: translation, ...} in random order, at most `most[language]` of each language."""
    languages = set(languages)
    rows: dict[str, dict[str, str]] = defaultdict(dict)
    for path in sorted(folder.rglob("LC_MESSAGES/*.mo")):
        name = path.parents[1].name
        lang = re.split("[_@]", name)[0]
        if lang not in languages or name in LEFT_OUT or path.name.startswith("iso_"):
            continue  # iso_*: seven thousand names of languages
        for message, translation in messages(path):
            for english, other in sentences(message, translation):
                rows[english].setdefault(lang, other)
    left = Counter(most)
    for english in random.Random(0).sample(sorted(rows), len(rows)):
        wanted = {lang: text for lang, text in rows[english].items() if left[lang] > 0}
        if wanted:
            left.subtract(wanted.keys())
            yield {"en": english, **wanted}


def annotation_rows(folder: Path, languages: Iterable[str]) -> Iterator[dict[str, str]]:
    """{"en": name, language: name, ...} of each emoji, and its keywords in a row."""
    files = {lang: folder / "annotations" / lang / "annotations.json" for lang in ("en", *sorted(languages))}
    said = {
        lang: json.loads(path.read_text(encoding="utf-8"))["annotations"]["annotations"]
        for lang, path in files.items()
        if path.exists()
    }
    for emoji in said["en"]:
        for part in ("tts", "default"):
            yield {lang: ", ".join(names[emoji][part]) for lang, names in said.items() if part in names.get(emoji, {})}
