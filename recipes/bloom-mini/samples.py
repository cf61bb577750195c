"""The triplets that travel with the package, under licences that allow commercial redistribution.

* `nli-train`, `nli-dev`: a premise, what it entails, what it contradicts; mostly English. Each row of
  `nli/triplets.*.jsonl.gz` below --data-dir names its data set, and only those in LICENCES are kept. InferBR
  (Portuguese, MIT) is left out: its triplets cost Portuguese five points.
* `es-train`, `fr-train`, `pt-train`, `it-train`: English ones translated by Apertium's rules (apertium.org; GPL;
  Debian packages `apertium-eng-spa`, `apertium-eng-cat`, `apertium-spa-cat`, `apertium-fra-cat`, `apertium-por-cat`,
  `apertium-cat-ita`), which run offline. Catalan, the pair best looked after, is the way to French and Italian,
  Spanish and Catalan that to Portuguese.
* `across-train`: an English sentence, its translation (Tatoeba, NTREX), and the translation of another sentence that
  is spelt most like the right one: what means the same across languages, which NLI alone unlearns.

Sentences of STS sets are left out, before translating and after; held-out triplets share no anchor with those trained
on.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import re
import shutil
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from collect import jsonl, norm, read_lines, sts_sentences
from sklearn.feature_extraction.text import TfidfVectorizer

from lacos_st.embedded.names import ASSETS

Triplet = dict[str, str]
COLUMNS = ("anchor", "positive", "negative")
LICENCES = {
    "snli": "CC BY-SA 4.0",
    "mnli": "OANC / CC BY 3.0 / CC BY-SA 3.0 / public domain, by genre",
    "cad-nli": "Apache-2.0 over SNLI's CC BY-SA 4.0",
    "conjnli": "MIT",
    "tenp-base": "CC BY-SA 3.0",
    "tenp-contrast": "CC BY-SA 3.0",
    "sanli-base-wiki": "CC BY-SA 3.0",
    "breaking-nli": "CC BY-SA 4.0",
    "indonli": "CC BY-SA 4.0",
    "klue-nli": "CC BY-SA 4.0",
    "farstail": "Apache-2.0",
}
HELD_OUT = ("snli.test", "mnli.dev-mismatched", "indonli.test-lay", "klue-nli.dev")
TATOEBA = {"es": 600, "fr": 600, "de": 500, "zh": 600, "vi": 250, "id": 250, "ja": 250}
NTREX = {"arb": 300, "hin": 300, "por": 300, "por-BR": 200, "ita": 200, "tur": 200, "rus": 200, "nld": 200, "pol": 200}
ROUTES = {  # pairs of Apertium's on the way from English
    "es": ("eng-spa",),
    "fr": ("eng-cat", "cat-fra"),
    "it": ("eng-cat", "cat-ita"),
    "pt": ("eng-spa", "spa-cat", "cat-por_BR"),  # Spanish has the better rules of English
}
CHUNK = 2000
MARKS = re.compile(r"(?<=\w)#|[@*](?=\w)")  # a form that could not be made, a word that is not known


def apertium(pair: str, sentences: tuple[str, ...]) -> list[str]:
    """Translations in order, "" where there is none. A blank line parts sentences: rules do not reach across it.

    Apertium breaks off at a sentence it stumbles over: what stands before is kept, and it is started again there.
    """
    text = "\n\n".join(sentences) + "\n"
    found = subprocess.run(["apertium", "-u", pair], input=text, capture_output=True, text=True, check=False).stdout
    kept = MARKS.sub("", found.removesuffix("\n")).split("\n\n")
    if len(kept) == len(sentences):
        return kept
    if len(sentences) <= 1:
        return [""] * len(sentences)
    done = kept[:-1] if len(kept) < len(sentences) else []
    rest = sentences[len(done) :]
    half = (len(rest) + 1) // 2
    return done + apertium(pair, rest[:half]) + apertium(pair, rest[half:])


def translations(sentences: list[str], route: tuple[str, ...]) -> dict[str, str]:
    """Each sentence's translation through the pairs of `route`, "" where there is none.

    Raises:
        SystemExit: Apertium or one of its pairs is not installed.
    """
    installed = ""
    if shutil.which("apertium"):
        installed = subprocess.run(["apertium", "-l"], capture_output=True, text=True, check=True).stdout
    if missing := sorted(set(route) - set(installed.split())):
        raise SystemExit(f"Apertium's {', '.join(missing)} not found: install the packages that samples.py names.")

    def through(part: tuple[str, ...]) -> list[str]:
        for pair in route:
            part = tuple(apertium(pair, tuple(text or "." for text in part)))
        return [text if text != "." else "" for text in part]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = [tuple(sentences[i : i + CHUNK]) for i in range(0, len(sentences), CHUNK)]
        found = [text for part in pool.map(through, parts) for text in part]
    return dict(zip(sentences, found, strict=True))


def shippable(row: dict[str, str], longest: int) -> bool:
    """Whether a triplet's licence lets it travel, and its sentences are short enough."""
    return row["dataset"].split(".")[0] in LICENCES and max(len(row[column]) for column in COLUMNS) <= longest


def nli(data_dir: Path, forbidden: set[str], longest: int, held_out: int, seed: int) -> dict[str, list[Triplet]]:
    """`nli-train` and `nli-dev`, the latter with `held_out` triplets of each data set in HELD_OUT."""
    rows: dict[str, dict[str, str]] = {}
    for path in sorted((data_dir / "nli").glob("triplets.*.jsonl.gz")):
        for row in jsonl(path):
            texts = [norm(row[column]) for column in COLUMNS]
            if shippable(row, longest) and not forbidden.intersection(texts):
                rows["\t".join(texts)] = row
    kept = list(rows.values())
    random.Random(seed).shuffle(kept)
    taken: Counter[str] = Counter()
    held = []
    for row in kept:
        if row["dataset"] in HELD_OUT and taken[row["dataset"]] < held_out:
            taken[row["dataset"]] += 1
            held.append(row)
    anchors = {norm(row["anchor"]) for row in held}
    train = [row for row in kept if norm(row["anchor"]) not in anchors]
    return {"nli-train": [*map(triplet, train)], "nli-dev": [*map(triplet, held)]}


def triplet(row: dict[str, str]) -> Triplet:
    """The three sentences alone."""
    return {column: row[column] for column in COLUMNS}


def across(data_dir: Path, forbidden: set[str], longest: int, choose: random.Random) -> list[Triplet]:
    """Triplets (English, its translation, a translation spelt like it)."""
    found = []
    english = read_lines(data_dir / "parallel/ntrex128/eng.txt.gz")
    sources = [
        ([(r["en"], r[lang]) for r in jsonl(data_dir / f"parallel/tatoeba.en-{lang}.train.jsonl.gz")], count)
        for lang, count in TATOEBA.items()
    ] + [
        (list(zip(english, read_lines(data_dir / f"parallel/ntrex128/{code}.txt.gz"), strict=True)), count)
        for code, count in NTREX.items()
    ]
    for pairs, count in sources:
        usable = [
            pair for pair in pairs
            if len(pair[0]) >= 12 and max(map(len, pair)) <= longest and not forbidden & {norm(text) for text in pair}
        ]  # fmt: skip
        once = list({norm(left): (left, right) for left, right in usable}.values())
        chosen = choose.sample(once, min(count, len(once)))
        table = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4)).fit_transform([right for _, right in chosen])
        alike = (table @ table.T).toarray()
        alike[alike > 0.8] = -1  # itself, and what may mean the same
        for (left, right), nearest in zip(chosen, np.argmax(alike, 1), strict=True):
            found.append({"anchor": left, "positive": right, "negative": chosen[nearest][1]})
    return found


def english_triplets(data_dir: Path, forbidden: set[str], longest: int) -> list[Triplet]:
    """Those that may travel, without a forbidden sentence: translated, nobody would know it again."""
    rows = [row for row in jsonl(data_dir / "nli/triplets.en.jsonl.gz") if shippable(row, longest)]
    return [row for row in map(triplet, rows) if not forbidden & {norm(text) for text in row.values()}]


def translated(triplets: list[Triplet], lang: str) -> list[Triplet]:
    """Those triplets that can be translated whole, and whose three sentences then still differ."""
    sentences = list(dict.fromkeys(text for row in triplets for text in row.values()))
    translation = {text: " ".join(found.split()) for text, found in translations(sentences, ROUTES[lang]).items()}
    rows = [{column: translation[row[column]] for column in COLUMNS} for row in triplets]
    return [row for row in rows if all(row.values()) and len({norm(text) for text in row.values()}) == 3]


def write(path: Path, rows: list[Triplet]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    print(path.name, len(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=ASSETS / "samples")
    parser.add_argument("--held-out", type=int, default=125, help="triplets of each data set in HELD_OUT")
    parser.add_argument("--translated", type=int, default=4000, help="NLI triplets a language")
    parser.add_argument("--longest", type=int, default=120, help="characters of the longest sentence")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    forbidden = sts_sentences(args.data_dir)
    samples = nli(args.data_dir, forbidden, args.longest, args.held_out, args.seed)
    for name, rows in samples.items():
        write(args.output / f"{name}.jsonl.gz", rows)
    choose = random.Random(args.seed)
    forbidden |= {norm(row["anchor"]) for row in samples["nli-dev"]}
    english = english_triplets(args.data_dir, forbidden, args.longest)
    samples = {lang: translated(choose.sample(english, args.translated), lang) for lang in ("es", "fr", "pt", "it")}
    samples["across"] = across(args.data_dir, forbidden, args.longest, choose)
    for name, rows in samples.items():
        kept = [row for row in rows if not any(norm(text) in forbidden for text in row.values())]
        choose.shuffle(kept)
        write(args.output / f"{name}-train.jsonl.gz", kept)


if __name__ == "__main__":
    main()
