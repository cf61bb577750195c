"""English sentences in Spanish, French, Portuguese and Italian, Spanish ones in Portuguese, by Apertium's rules.

Few sentences have a human translation, and most forms of a verb are in none. Apertium (apertium.org; GPL; Debian
packages `apertium-eng-spa`, `apertium-eng-cat`, `apertium-spa-cat`, `apertium-fra-cat`, `apertium-por-cat`,
`apertium-cat-ita`) knows the forms, runs offline and translates some hundred sentences a second. It errs in grammar and
word senses, which a mean of token vectors forgives. Catalan, the pair best looked after, is the way to French,
Portuguese and Italian. Of Spanish it makes better Portuguese than of English: five hundred sentences a second on two
cores.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

LICENCE = "the licence of the sentence translated"
Routes = dict[str, tuple[str, ...]]  # language -> pairs on the way
OF_ENGLISH: Routes = {
    "es": ("eng-spa",),
    "fr": ("eng-cat", "cat-fra"),
    "pt": ("eng-cat", "cat-por_BR"),
    "it": ("eng-cat", "cat-ita"),
}
OF_SPANISH: Routes = {"pt": ("spa-cat", "cat-por_BR")}
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
    if len(sentences) <= 1:
        return [""] * len(sentences)
    done = kept[:-1] if len(kept) < len(sentences) else []
    rest = sentences[len(done) :]
    half = (len(rest) + 1) // 2
    return done + run(mode, rest[:half]) + run(mode, rest[half:])


def translations(sentences: list[str], routes: Routes) -> Iterator[tuple[str, dict[str, str]]]:
    """(sentence, its translation in each language of `routes`) in order.

    Raises:
        SystemExit: Apertium or one of its pairs is not installed.
    """
    installed = ""
    if shutil.which("apertium"):
        installed = subprocess.run(["apertium", "-l"], capture_output=True, text=True, check=True).stdout
    missing = sorted({mode for route in routes.values() for mode in route} - set(installed.split()))
    if missing:
        raise SystemExit(f"Apertium's {', '.join(missing)} not found: install the packages that translate.py names.")

    def chunk(part: tuple[str, ...]) -> list[tuple[str, dict[str, str]]]:
        known: dict[tuple[str, ...], list[str]] = {(): list(part)}

        def through(route: tuple[str, ...]) -> list[str]:
            if route not in known:
                known[route] = run(route[-1], tuple(text or "." for text in through(route[:-1])))
            return known[route]

        found = {lang: through(route) for lang, route in routes.items()}
        return [
            (text, {lang: into[i] for lang, into in found.items() if into[i] not in ("", ".")})
            for i, text in enumerate(part)
        ]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = [tuple(sentences[i : i + CHUNK]) for i in range(0, len(sentences), CHUNK)]
        for done in pool.map(chunk, parts):
            yield from done
