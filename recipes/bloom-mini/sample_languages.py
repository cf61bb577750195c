"""The samples in other languages that travel with the package.

`es-train`, `fr-train`, `pt-train`, `it-train`: English NLI triplets translated by rules (`translate.py`): what means
the same, and what seems to, within a language. `across-train`: an English sentence, its translation (Tatoeba, NTREX),
and the translation of another sentence that is spelt most like the right one: what means the same across languages,
which NLI alone unlearns. All are under licences that allow commercial redistribution.

Run after `sample.py`. Sentences of STS sets and of the held-out triplets are left out, before translating and after.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
from collect import jsonl, norm, read_lines, sts_sentences
from sample import COLUMNS, shippable, write
from sklearn.feature_extraction.text import TfidfVectorizer
from translate import OF_ENGLISH, OF_SPANISH, translations

from lacos_st.embedded import ASSETS

Triplet = dict[str, str]
TATOEBA = {"es": 600, "fr": 600, "de": 500, "zh": 600, "vi": 250, "id": 250, "ja": 250}
NTREX = {"arb": 300, "hin": 300, "por": 300, "por-BR": 200, "ita": 200, "tur": 200, "rus": 200, "nld": 200, "pol": 200}
ROUTES = {**OF_ENGLISH, "pt": (*OF_ENGLISH["es"], *OF_SPANISH["pt"])}  # Spanish has the better rules of English


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
    triplets = [{column: row[column] for column in COLUMNS} for row in rows]
    return [triplet for triplet in triplets if not forbidden & {norm(text) for text in triplet.values()}]


def translated(triplets: list[Triplet], lang: str) -> list[Triplet]:
    """Those triplets that can be translated whole, and whose three sentences then still differ."""
    sentences = list(dict.fromkeys(text for triplet in triplets for text in triplet.values()))
    translation = {
        text: " ".join(into.get(lang, "").split()) for text, into in translations(sentences, {lang: ROUTES[lang]})
    }
    rows = [{column: translation[triplet[column]] for column in COLUMNS} for triplet in triplets]
    return [row for row in rows if all(row.values()) and len({norm(text) for text in row.values()}) == 3]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=ASSETS / "samples")
    parser.add_argument("--translated", type=int, default=4000, help="NLI triplets a language")
    parser.add_argument("--longest", type=int, default=120, help="characters of the longest sentence")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    choose, forbidden = random.Random(args.seed), sts_sentences(args.data_dir)
    forbidden |= {norm(row["anchor"]) for row in jsonl(args.output / "nli-dev.jsonl.gz")}
    english = english_triplets(args.data_dir, forbidden, args.longest)
    samples = {lang: translated(choose.sample(english, args.translated), lang) for lang in ROUTES}
    samples["across"] = across(args.data_dir, forbidden, args.longest, choose)
    for name, rows in samples.items():
        kept = [row for row in rows if not any(norm(text) in forbidden for text in row.values())]
        choose.shuffle(kept)
        write(args.output / f"{name}-train.jsonl.gz", kept)
        print(f"{name}-train", len(kept))


if __name__ == "__main__":
    main()
