"""The samples that travel with the package: triplets under licences that allow commercial redistribution.

* `nli-train`, `nli-dev`: a premise, what it entails, what it contradicts.
* `translations-train`: an English sentence, its translation, and the translation of another sentence that is spelt
  most like the right one (Tatoeba, NTREX). NLI triplets hold little but English, and the space turned away from the
  other languages.

InferBR (Portuguese, MIT) is left out: its triplets cost Portuguese five points (`docs/ablations.md`).

Reads `nli/triplets.*.jsonl.gz` below --data-dir; each row names its data set, and only those in LICENCES are kept.
Rows with a sentence of an STS set are dropped. Held-out triplets share no anchor with the training ones.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
from collect import ISO, jsonl, norm, read_lines, sts_sentences
from sklearn.feature_extraction.text import TfidfVectorizer

from lacos_st.embedded import ASSETS

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


TATOEBA = {"es": 2000, "fr": 2000, "de": 1500, "zh": 2000, "vi": 700, "id": 700, "ja": 700}
NTREX = {"arb": 900, "hin": 900, "por": 900, "por-BR": 600, "ita": 600, "tur": 500, "rus": 500, "nld": 500, "pol": 500}


def translations(data_dir: Path, forbidden: set[str], longest: int, choose: random.Random) -> list[dict[str, str]]:
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


def write(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=ASSETS / "samples")
    parser.add_argument("--held-out", type=int, default=125, help="triplets of each data set in HELD_OUT")
    parser.add_argument("--longest", type=int, default=120, help="characters of the longest sentence")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    forbidden = sts_sentences(args.data_dir)
    rows: dict[str, dict[str, str]] = {}
    for path in sorted((args.data_dir / "nli").glob("triplets.*.jsonl.gz")):
        for row in jsonl(path):
            texts = [row["anchor"], row["positive"], row["negative"]]
            if (
                row["dataset"].split(".")[0] in LICENCES
                and max(map(len, texts)) <= args.longest
                and not any(norm(text) in forbidden for text in texts)
            ):
                rows["\t".join(map(norm, texts))] = row
    kept = list(rows.values())
    random.Random(args.seed).shuffle(kept)
    taken: Counter[str] = Counter()
    held: list[dict[str, str]] = []
    for row in kept:
        if row["dataset"] in HELD_OUT and taken[row["dataset"]] < args.held_out:
            taken[row["dataset"]] += 1
            held.append(row)
    anchors = {norm(row["anchor"]) for row in held}
    train = [row for row in kept if norm(row["anchor"]) not in anchors]
    other = translations(args.data_dir, forbidden, args.longest, random.Random(args.seed))
    write(args.output / "translations-train.jsonl.gz", [row for row in other if norm(row["anchor"]) not in anchors])
    print("translations-train", len(other))
    for name, part in (("nli-train", train), ("nli-dev", held)):
        columns = ("anchor", "positive", "negative")
        write(args.output / f"{name}.jsonl.gz", [{key: row[key] for key in columns} for row in part])
        print(name, len(part), Counter(row["dataset"].split(".")[0] for row in part).most_common())


if __name__ == "__main__":
    main()
