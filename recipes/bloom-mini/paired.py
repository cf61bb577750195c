"""How much better is one model than another on STS-B, to a twentieth of a point?

`dev.py` cannot say: 1,500 development pairs have forums in the place of a fifth of the test's captions and news, and
tell half a point at best. So here are the development and the training pairs together, 6,949 that nothing is trained
on, and each weighs as much as makes their files' shares those of the test split (Cer et al., 2017): 250 pairs of
MSRvid, 254 of forums and so on. The error is that of the *difference*, by drawing pairs anew for both models at once
(paired bootstrap, Efron and Tibshirani, 1993): where one model was trained from the other, it is a tenth of either's.

    python paired.py bloom-mini lacos-bloom --data-dir FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from collect import jsonl

from lacos_st import LacosSentenceTransformer

TEST = {"MSRvid": 250, "images": 250, "track5.en-en": 125, "MSRpar": 250, "headlines": 250, "forum": 254}
FORUMS = ("deft-forum", "answers-forums")  # the test's are of a third one
DRAWS = 200
Pairs = tuple[list[str], list[str], np.ndarray]  # left, right, gold scores


def weights(files: np.ndarray) -> np.ndarray:
    """(pairs,) so that each file of `TEST` has its share there; 0 for other files."""
    found = np.zeros(len(files))
    for name, count in TEST.items():
        found[files == name] = count / max(1, (files == name).sum())
    return found / found.sum()


def ranks(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The weight of what is lower, and half of what is equal: ranks, if all weigh the same."""
    _, at = np.unique(values, return_inverse=True)
    each = np.bincount(at, weight)
    return (np.cumsum(each) - each / 2)[at]


def spearman(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> float:
    """Rank correlation x 100 of weighted pairs."""
    first, second = ranks(first, weight), ranks(second, weight)
    first, second = first - np.average(first, weights=weight), second - np.average(second, weights=weight)
    scale = np.average(first**2, weights=weight) * np.average(second**2, weights=weight)
    return float(np.average(first * second, weights=weight) / scale**0.5 * 100)


def read(sts: Path, lang: str, weight: np.ndarray) -> Pairs:
    """Development and training pairs that weigh anything."""
    rows = [row for part in ("dev", "train") for row in jsonl(sts / f"stsb.{lang}.{part}.jsonl.gz")]
    if len(rows) != len(weight):
        raise SystemExit(f"{sts}: STS-B in {lang!r} has {len(rows):,} pairs, in English {len(weight):,}.")
    rows = [row for row, heavy in zip(rows, weight > 0, strict=True) if heavy]
    return [r["sentence1"] for r in rows], [r["sentence2"] for r in rows], np.array([r["score"] for r in rows])


def difference(now: np.ndarray, then: np.ndarray, gold: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """What a model's cosines gain over another's, x 100, and its standard error."""
    random = np.random.default_rng(0)
    drawn = [np.arange(len(gold)), *(random.integers(0, len(gold), len(gold)) for _ in range(DRAWS))]
    found = [spearman(now[at], gold[at], weight[at]) - spearman(then[at], gold[at], weight[at]) for at in drawn]
    return found[0], float(np.std(found[1:]))


def cosines(model: LacosSentenceTransformer, pairs: Pairs) -> np.ndarray:
    left, right, _ = pairs
    texts = sorted({*left, *right})
    row = {text: at for at, text in enumerate(texts)}
    table = model.encode(texts, batch_size=256, normalize_embeddings=True, show_progress_bar=False)
    return (table[[row[text] for text in left]] * table[[row[text] for text in right]]).sum(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="directory, or an embedded name")
    parser.add_argument("models", nargs="+", help="those that are compared with it")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with sts/")
    parser.add_argument("--langs", nargs="+", default=["en", "es", "pt", "fr"])
    args = parser.parse_args()
    sts = args.data_dir / "sts"
    english = [row for part in ("dev", "train") for row in jsonl(sts / f"stsb.en.{part}.jsonl.gz")]
    files = [row["subset"].split("/")[1] for row in english]
    weight = weights(np.array(["forum" if name in FORUMS else name for name in files]))
    sets = {lang: read(sts, lang, weight) for lang in args.langs}
    weight = weight[weight > 0]
    base = LacosSentenceTransformer(args.base)
    then = {lang: cosines(base, pairs) for lang, pairs in sets.items()}
    scores = {lang: spearman(then[lang], pairs[2], weight) for lang, pairs in sets.items()}
    print(args.base, " ".join(f"{lang} {score:.2f}" for lang, score in scores.items()), flush=True)
    for name in args.models:
        model, shown = LacosSentenceTransformer(name), []
        for lang, pairs in sets.items():
            gain, error = difference(cosines(model, pairs), then[lang], pairs[2], weight)
            shown.append(f"{lang} {gain:+.2f} ± {error:.2f}")
        print(name, " ".join(shown), flush=True)


if __name__ == "__main__":
    main()
