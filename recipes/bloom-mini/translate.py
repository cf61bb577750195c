"""English sentences in Spanish, French, Portuguese and Italian, by Apertium's rules.

Few sentences have a human translation, and a dictionary's glosses (`dictionaries.py`) lack endings and articles: most
forms of a verb are in neither. Apertium (apertium.org; GPL; Debian packages `apertium-eng-spa`, `apertium-eng-cat`,
`apertium-spa-cat`, `apertium-fra-cat`, `apertium-por-cat`, `apertium-cat-ita`) knows the forms, runs offline and
translates some thousand sentences a second. It errs in grammar and word senses, which a mean of token vectors
forgives. Catalan, the pair best looked after, is the way to French, Portuguese and Italian.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

LICENCE = "the licence of the English sentence"
ROUTES = {
    "es": ("eng-spa",),
    "fr": ("eng-cat", "cat-fra"),
    "pt": ("eng-cat", "cat-por_BR"),
    "it": ("eng-cat", "cat-ita"),
}
CHUNK = 2000
MARKS = re.compile(r"(?<=\w)#|[@*](?=\w)")  # a form that could not be made, a word that is not known


def run(mode: str, sentences: tuple[str, ...]) -> list[str]:
    """Translations in order, "" where there is none. A blank line parts sentences: rules do not reach across it.

    Apertium breaks off at a sentence it stumbles over: what stands before is kept, and it is started again there.
    """
    text = "\n\n".join(sentences) + "\n"
    found = subprocess.run(["apertium", "-u", mode], input=text, capture_output=True, text=True, check=False).stdout
    kept = MARKS.sub("", found.removesuffix("\n")).split("\n\n")
    if len(kept) == len(sentences):
        return kept
    if len(sentences) == 1:
        return [""]
    kept = kept[: min(len(kept), len(sentences)) - 1]
    rest = sentences[len(kept) :]
    half = len(rest) // 2 if kept else len(sentences) // 2
    return kept + run(mode, rest[: max(half, 1)]) + (run(mode, rest[max(half, 1) :]) if len(rest) > 1 else [])


def translations(
    sentences: list[str], languages: Iterable[str] = tuple(ROUTES)
) -> Iterator[tuple[str, dict[str, str]]]:
    """(sentence, its translation in each language) in order.

    Raises:
        SystemExit: Apertium or one of its pairs is not installed.
    """
    routes = {lang: ROUTES[lang] for lang in languages}
    installed = ""
    if shutil.which("apertium"):
        installed = subprocess.run(["apertium", "-l"], capture_output=True, text=True, check=True).stdout
    missing = sorted({mode for route in routes.values() for mode in route} - set(installed.split()))
    if missing:
        raise SystemExit(f"Apertium's {', '.join(missing)} not found: install the packages that translate.py names.")

    def chunk(part: tuple[str, ...]) -> list[tuple[str, dict[str, str]]]:
        by_mode: dict[tuple[str, ...], list[str]] = {(): list(part)}
        for route in routes.values():
            for depth in range(1, len(route) + 1):
                if route[:depth] not in by_mode:
                    by_mode[route[:depth]] = run(
                        route[depth - 1], tuple(text or "." for text in by_mode[route[: depth - 1]])
                    )
        return [
            (text, {lang: by_mode[route][i] for lang, route in routes.items() if by_mode[route][i] not in ("", ".")})
            for i, text in enumerate(part)
        ]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = [tuple(sentences[i : i + CHUNK]) for i in range(0, len(sentences), CHUNK)]
        for done in pool.map(chunk, parts):
            yield from done
