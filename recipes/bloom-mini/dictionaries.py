"""Bilingual dictionaries as training text: words with their translations, and English sentences glossed word by word.

Where a language has few translated sentences, a dictionary still says what its words mean. FreeDict's dictionaries
(freedict.org; Debian packages `dict-freedict-*`; GPL-2.0-or-later, or CC BY-SA 3.0 for those made from Wiktionary) are
read as dictd keeps them: `freedict-xxx-yyy.index` (headword, offset, length in base 64) and `.dict.dz` (gzip).
A language that has no large dictionary of English is reached through German or French: x -> German -> English.

A gloss is no sentence of its language: word order and endings are the English ones or none. For a sentence's mean of
token vectors that matters little, and the vectors of content words are what is missing.
"""

from __future__ import annotations

import gzip
import random
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

LICENCE = "GPL-2.0-or-later / CC BY-SA 3.0 (by dictionary)"
PIVOTS = ("deu", "fra")
DIRECT = 5.0  # what a dictionary of English itself counts for, beside one way through a pivot
LANGUAGES = {
    "spa": "es", "fra": "fr", "por": "pt", "ara": "ar", "hin": "hi", "ind": "id", "deu": "de", "ita": "it",
    "nld": "nl", "pol": "pl", "rus": "ru", "tur": "tr", "swe": "sv", "ces": "cs", "fin": "fi", "ell": "el",
    "hrv": "hr",
}  # fmt: skip
SCRIPTS = {"ar": "[\u0620-\u064a]", "hi": "[\u0900-\u097f]", "ru": "[\u0400-\u04ff]", "el": "[\u0370-\u03ff]"}
DIGITS = {c: i for i, c in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")}
DROPPED = {"a", "an", "the", "to", "of", "is", "are", "was", "were", "be", "been", "do", "does", "did", "s", "t"}
NOISE = re.compile(r"<[^>]*>|\([^)]*\)|\[[^]]*\]|\{[^}]*\}|/[^/]*/|^\s*(\d+|[IVX]+)\.|~")


UNWRITTEN = re.compile("[\u0301\u0307\u0640\u064b-\u0652]")  # stress, and what Arabic leaves out
NASAL = re.compile("(?<=[\u093f\u0940\u0945-\u094c])\u0901")  # over a vowel sign Hindi writes a dot, not a crescent


def usual(term: str) -> str:
    """As a sentence would have it: dictionaries write \u0133 for ij, stress marks, and numbers of senses."""
    term = UNWRITTEN.sub("", unicodedata.normalize("NFKC", term)).replace("\u2010", "-")
    return re.sub(r"\s*\d+\)?$", "", NASAL.sub("\u0902", term)).strip()


def number(digits: str) -> int:
    value = 0
    for digit in digits:
        value = value * 64 + DIGITS[digit]
    return value


def entries(folder: Path, name: str) -> Iterator[tuple[str, list[str]]]:
    """(headword, translations in the order of senses) of one dictionary, lower-cased; none if it is not there."""
    index = folder / f"freedict-{name}.index"
    if not index.exists():
        return
    with gzip.open(folder / f"freedict-{name}.dict.dz") as file:
        text = file.read()
    for line in index.read_text(encoding="utf-8").splitlines():
        head, offset, length = line.split("\t")[:3]
        if head.startswith("00") or len(head.split()) > 3:
            continue
        body = text[number(offset) : number(offset) + number(length)].decode("utf-8", "replace").splitlines()[1:]
        terms: list[str] = []
        for sense in body[:6]:
            if sense.lstrip().startswith(('"', "see:", "note:", "Note:", "Synonym")):
                continue
            for term in re.split(r"[,;.،]", NOISE.sub(" ", sense)):
                term = usual(" ".join(term.split()).lower()).strip(" :!?|\"'-")
                term = term.removeprefix("to ")
                if 1 < len(term) <= 40 and len(term.split()) <= 3 and term not in terms:
                    terms.append(term)
        if terms:
            yield usual(head.lower()), terms[:5]


def english_to(folder: Path, code: str, pivots: dict[str, dict[str, list[str]]]) -> dict[str, list[str]]:
    """English word -> up to three translations, the best attested first."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for english, terms in entries(folder, f"eng-{code}"):
        for position, term in enumerate(terms):
            found[english][term] += DIRECT / (1 + position)
    for word, terms in entries(folder, f"{code}-eng"):
        for position, term in enumerate(terms):
            found[term][word] += DIRECT / (1 + position)
    for pivot, meanings in pivots.items():
        through: list[tuple[str, str, float]] = []
        for head, terms in entries(folder, f"{pivot}-{code}"):
            through += [(head, term, 1 / (1 + i)) for i, term in enumerate(terms[:3])]
        for word, terms in entries(folder, f"{code}-{pivot}"):
            through += [(term, word, 1 / (1 + i)) for i, term in enumerate(terms[:3])]
        for middle, word, weight in through:
            for position, english in enumerate(meanings.get(middle, [])[:3]):
                found[english][word] += weight / (1 + position)
    script = re.compile(SCRIPTS.get(LANGUAGES[code], r"[a-z\u00df-\u024f]"))
    best = {
        english: [word for word, weight in words.most_common(3) if weight > 0.3 and script.match(word)]
        for english, words in found.items()
    }
    return {english: words for english, words in best.items() if words}


def load(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Language -> English word -> translations."""
    pivots = {}
    for pivot in PIVOTS:
        meanings: dict[str, list[str]] = {}
        for word, terms in entries(folder, f"{pivot}-eng"):
            meanings.setdefault(word, terms)
        for english, terms in entries(folder, f"eng-{pivot}"):
            for term in terms[:2]:
                if english not in meanings.setdefault(term, []):
                    meanings[term] = [*meanings[term], english]
        pivots[pivot] = meanings
    return {
        lang: english_to(folder, code, {p: m for p, m in pivots.items() if p != code and lang != "id"})
        for code, lang in LANGUAGES.items()
    }


def stems(word: str) -> Iterator[str]:
    """The word itself, then what it may be a form of, likeliest first."""
    yield word
    for ending, others in (("ies", ["y"]), ("es", ["", "e"]), ("s", [""]), ("ied", ["y"]), ("ed", ["", "e"]),
                           ("ing", ["", "e"]), ("ly", [""]), ("er", ["", "e"]), ("est", ["", "e"])):  # fmt: skip
        if word.endswith(ending) and len(word) > len(ending) + 2:
            stem = word[: -len(ending)]
            yield from (stem + other for other in others)
            if stem[-1] == stem[-2]:
                yield stem[:-1]


def gloss(sentence: str, dictionary: dict[str, list[str]], choose: random.Random) -> str | None:
    """`sentence` word by word in the dictionary's language; None where too much of it is unknown."""
    words = re.findall(r"[^\W\d_]+|\d+|[.,!?]", sentence)
    out: list[str] = []
    known = content = at = 0
    while at < len(words):
        for size in (3, 2, 1):
            piece = " ".join(words[at : at + size]).lower()
            options = next((dictionary[s] for s in stems(piece) if s in dictionary), None)
            if options and piece not in DROPPED:
                out.append(choose.choices(options, [6, 3, 1][: len(options)])[0])
                known, content, at = known + size, content + size, at + size
                break
        else:
            word = words[at]
            if (word[0].isupper() and at > 0) or not word[0].isalpha():
                out.append(word)  # a name, a number, punctuation
            elif piece not in DROPPED:
                content += 1
            at += 1
    return " ".join(out) if known >= 2 and known >= 0.75 * content else None
