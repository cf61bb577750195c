"""Stage before the last: count the tokens of each language, for the sketch that stands behind a sentence's meaning.

Nothing is trained: rarities come from the training text (`corpus.py`), and how much the sketch counts in a language
(`SHARE`) was read off pairs outside test splits (`shares.py`). What it is: `lacos_st/lexical.py`.

    python lexical.py     # -> work/bloom-mini/lexical/
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from collect import FAVOUR
from corpus import rarities
from lacos_st.lexical import LEVELS, LexicalSketch
from letters import UYGHUR_CYRILLIC
from ontologies import BIOLOGY

from lacos_st.artifact import SKETCH

SHARE = {
    "en": 0.03, "es": 0.03, "fr": 0.03, "it": 0.1, "pt": 0.03, "de": 0.08, "nl": 0.15, "sv": 0.15, "ro": 0.35,
    "pl": 0.2, "cs": 0.35, "ru": 0.15, "uk": 0.25, "bg": 0.25, "tr": 0.35, "hi": 0.35, "mr": 0.4, "fa": 0.2, "id": 0.1,
    "ms": 0.1, "ja": 0.25, "ko": 0.2, "zh": 0.35, "ar": 0.3, "vi": 0.3, "el": 0.3, "gl": 0.15, "ca": 0.15,
    "az": 0.2, "kk": 0.6, "ky": 0.7, "uz": 0.6, "tt": 0.15, UYGHUR_CYRILLIC: 0.2,
    BIOLOGY: 0.5,
}  # fmt: skip
OTHERS = 0.55  # the less text a language has, the more its spelling is worth
MEANING = 512  # numbers that it is put behind: twice a state's, as `Widening` makes them
PRIOR = 4.0  # what the logarithm of `FAVOUR` is multiplied by: doubt is for English, not for Afrikaans
PRIORS = {BIOLOGY: -18.0}  # nats: it takes many of its words, or glosses and exercises in physics are taken for it


def levels(langs: list[str], rarity: np.ndarray) -> tuple[torch.Tensor, float]:
    """(languages, vocabulary) rarities -> the same in 16 levels, and what the last stands for.

    What fewer than one of seven thousand sentences have is as rare as what none has; of languages that count for
    little, and are there so that others are not taken for them, what fewer than one of six hundred have.
    """
    rarest = float(rarity.max())
    found = np.round(rarity.astype(np.float32) / rarest * (LEVELS - 1)).astype(np.uint8)
    matters = [FAVOUR.get(lang, 0) >= 0.5 or lang == BIOLOGY for lang in langs]
    kept = np.where(matters, LEVELS - 3, LEVELS - 7)
    found[found > kept[:, None]] = LEVELS - 1
    return torch.from_numpy(found), rarest


def count(work_dir: Path) -> LexicalSketch:
    langs, rarity = rarities(work_dir)
    found, rarest = levels(langs, rarity)
    shares = {lang: SHARE.get(lang, OTHERS) for lang in langs}
    least = min(FAVOUR.values()) / 2
    priors = {lang: PRIORS.get(lang, PRIOR * math.log(FAVOUR.get(lang, least))) for lang in langs}
    return LexicalSketch.from_levels(shares, priors, found, rarest, MEANING)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", type=Path, default=Path("work/bloom-mini"))
    args = parser.parse_args()
    output = args.work_dir / SKETCH
    output.mkdir(exist_ok=True)
    sketch = count(args.work_dir)
    sketch.save(str(output))
    print(f"{output}: {len(sketch.entry_levels):,} entries, {sum(t.nbytes for t in sketch.buffers()) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
