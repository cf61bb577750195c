"""How much better is one model than another on STS-B, to a twentieth of a point?

`dev.py` cannot say: 1,500 development pairs have forums in the place of a fifth of the test's captions and news, and
tell half a point at best. So here are the development and the training pairs together, which nothing is trained on,
and each weighs as much as makes their files' shares those of the test split (Cer et al., 2017): 250 pairs of MSRvid,
254 of forums and so on, none of `deft-news`. The error is that of the *difference*, by drawing pairs anew for both
models at once (paired bootstrap, Efron and Tibshirani, 1993): where one was trained from the other, it is a tenth of
either's.

    python paired.py bloom-mini lacos-bloom --data-dir FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from collect import jsonl
from dev import Pairs, cosines, load, read

from lacos_st.statistics import bootstrap, spearman

PARTS = ("dev", "train")
TEST = {"MSRvid": 250, "images": 250, "track5.en-en": 125, "MSRpar": 250, "headlines": 250, "forum": 254}
FORUMS = ("deft-forum", "answers-forums")  # the test's are of a third one
DRAWS = 200


def weights(files: np.ndarray) -> np.ndarray:
    """(pairs,) so that each file of `TEST` has its share there; 0 for other files."""
    found = np.zeros(len(files))
    for name, count in TEST.items():
        found[files == name] = count / max(1, (files == name).sum())
    return found / found.sum()


def weight_of(sts: Path) -> np.ndarray:
    """(pairs,) of `both`, in any language: English alone names the files."""
    rows = [row for part in PARTS for row in jsonl(sts / f"stsb.en.{part}.jsonl.gz")]
    files = [row["subset"].split("/")[1] for row in rows]
    return weights(np.array(["forum" if name in FORUMS else name for name in files]))


def both(sts: Path, lang: str) -> Pairs:
    """Development and training pairs of a language, in the same order in each."""
    first, second = (read(sts / f"stsb.{lang}.{part}.jsonl.gz") for part in PARTS)
    return first[0] + second[0], first[1] + second[1], first[2] + second[2]


def difference(now: np.ndarray, then: np.ndarray, gold: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """What a model's cosines gain over another's, x 100, and its standard error."""
    drawn = [bootstrap(gold, found, "STS-B", DRAWS, weight) for found in (now, then)]
    return spearman(gold, now, weight) - spearman(gold, then, weight), float(np.std(drawn[0] - drawn[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="directory, or an embedded name")
    parser.add_argument("models", nargs="+", help="those that are compared with it")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with sts/")
    parser.add_argument("--langs", nargs="+", default=["en", "es", "pt", "fr"])
    args = parser.parse_args()
    sts = args.data_dir / "sts"
    weight = weight_of(sts)
    sets = {lang: both(sts, lang) for lang in args.langs}
    gold = {lang: np.array(pairs[2]) for lang, pairs in sets.items()}
    then = cosines(load(args.base), sets)
    print(args.base, *(f"{lang} {spearman(gold[lang], then[lang], weight):.2f}" for lang in sets), flush=True)
    for name in args.models:
        now = cosines(load(name), sets)
        gains = {lang: difference(now[lang], then[lang], gold[lang], weight) for lang in sets}
        print(name, *(f"{lang} {gain:+.2f} ± {error:.2f}" for lang, (gain, error) in gains.items()), flush=True)


if __name__ == "__main__":
    main()
