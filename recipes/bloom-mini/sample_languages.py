"""The sample in other languages that travels with the package: `languages-train`.

NLI triplets are English but for a few, and trained on them alone the space turns away from other languages. So there
are, under licences that allow commercial redistribution:

* an English sentence, its translation, and the translation of another sentence that is spelt most like the right one
  (Tatoeba, NTREX): what means the same across languages;
* NLI triplets in Spanish, French, Portuguese and Italian, translated by rules (`translate.py`) from English
  ones: what means the same, and what seems to, within a language.

Run after `sample.py`. Sentences of STS sets and of the held-out triplets are left out.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
from collect import ISO, jsonl, norm, read_lines, sts_sentences
from sample import COLUMNS, shippable, write
from sklearn.feature_extraction.text import TfidfVectorizer
from translate import OF_ENGLISH, translations

from lacos_st.embedded import ASSETS

Triplet = dict[str, str]
TATOEBA = {"es": 2000, "fr": 2000, "de": 1500, "zh": 2000, "vi": 700, "id": 700, "ja": 700}
NTREX = {"arb": 900, "hin": 900, "por": 900, "por-BR": 600, "ita": 600, "tur": 500, "rus": 500, "nld": 500, "pol": 500}


def across(data_dir: Path, forbidden: set[str], longest: int, choose: random.Random) -> list[Triplet]:
    """Triplets (English, its translation, a translation spelt like it)."""
    found = []
    english = read_lines(data_dir / "parallel/ntrex128/eng.txt.gz")
    sources = [
        (lang, [(r["en"], r[lang]) for r in jsonl(data_dir / f"parallel/tatoeba.en-{lang}.train.jsonl.gz")], count)
        for lang, count in TATOEBA.items()
    ] + [
        (ISO[code], list(zip(english, read_lines(data_dir / f"parallel/ntrex128/{code}.txt.gz"), strict=True)), count)
        for code, count in NTREX.items()
    ]
    for _, pairs, count in sources:
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


def within(triplets: list[Triplet], count: int, choose: random.Random) -> list[Triplet]:
    """`count` English triplets in each language of `OF_ENGLISH`, other ones in each."""
    chosen = choose.sample(triplets, count * len(OF_ENGLISH))
    found = []
    for position, lang in enumerate(OF_ENGLISH):
        part = chosen[position * count : (position + 1) * count]
        sentences = list(dict.fromkeys(text for triplet in part for text in triplet.values()))
        into = {
            text: " ".join(row.get(lang, "").split()) for text, row in translations(sentences, {lang: OF_ENGLISH[lang]})
        }
        rows = [{column: into[triplet[column]] for column in COLUMNS} for triplet in part]
        found += [row for row in rows if all(row.values()) and len({norm(text) for text in row.values()}) == 3]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=ASSETS / "samples")
    parser.add_argument("--translated", type=int, default=700, help="NLI triplets a language")
    parser.add_argument("--longest", type=int, default=90, help="characters of the longest sentence")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    choose, forbidden = random.Random(args.seed), sts_sentences(args.data_dir)
    forbidden |= {norm(row["anchor"]) for row in jsonl(args.output / "nli-dev.jsonl.gz")}
    rows = across(args.data_dir, forbidden, args.longest, choose)
    print("across languages", len(rows))
    english = [
        {column: row[column] for column in COLUMNS}
        for row in jsonl(args.data_dir / "nli/triplets.en.jsonl.gz")
        if shippable(row, args.longest)
    ]
    rows += within(english, args.translated, choose)
    rows = [row for row in rows if not any(norm(text) in forbidden for text in row.values())]
    choose.shuffle(rows)
    write(args.output / "languages-train.jsonl.gz", rows)
    print("languages-train", len(rows))


if __name__ == "__main__":
    main()
