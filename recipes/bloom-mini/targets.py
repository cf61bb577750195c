"""What a sentence is drawn to, (hidden,): what a teacher says of it, and how it is spelt.

The first teacher speaks of its English; where there is none the second speaks of the sentence itself (`space.py`). The
spelling are its own characters and tokens (`spelling.py`).
What each share scores by itself on development sets is in `docs/ablations.md`: a tenth of spelling helps even where the
teachers are at their best, and more is a safety net where few translations are known.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from collect import READ, SINGLE_WORDS
from kept import kept
from space import Space, unit
from teach import done

LEXICAL: dict[str | None, float] = {
    **dict.fromkeys(READ, 0.45),
    **dict.fromkeys(("de", "nl", "pl", "ru", "tr"), 0.5),
    **dict.fromkeys(("en", "ja", "zh"), 0.15),
    **dict.fromkeys(("az", "bn", "fa", "hi", "kk", "ky", "mr", "sr", "ug", "uz"), 0.65),
    None: 0.5,
}
"""Share of the spelling in a target: less where a teacher speaks the language or characters are words, more where words
are long or translations few."""
TOKENS = 0.5
"""Share of the tokens in the spelling, beside the characters."""


def words_centred(said: np.ndarray, words: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Unit rows, fp32, less their mean: that of the words among them for words, the one given for sentences.

    Single words lie to one side of what a teacher says of sentences, and would draw all their tokens there.
    """
    said = said.astype(np.float32)
    if words.any():
        mean = np.where(words[:, None], said[words].mean(0), mean)
    return unit(said - mean)


def said_of(work_dir: Path, hidden: int) -> tuple[np.ndarray, np.ndarray]:
    """What teachers say: (vectors, hidden) fp16, unit length, and for each text its row there, or -1.

    A text has its English translation's vector; if it has none and the second teacher has read the text itself, that.
    """
    first, second = done(work_dir / "teacher.json"), done(work_dir / "second.json")

    def make() -> dict[str, np.ndarray]:
        table = pq.read_table(work_dir / "texts.parquet", columns=["english", "source"])
        english, single = table["english"].to_numpy(), np.isin(table["source"].to_numpy(), SINGLE_WORDS)
        rows = np.load(work_dir / "english.npy")[:first]
        read = np.load(work_dir / "second-rows.npy")[:second]
        alone = np.flatnonzero(english[read] < 0)  # rows of what the second teacher says, in the order of the texts
        alone = alone[np.argsort(read[alone])]
        place = np.full(len(table), -1, np.int32)
        place[rows] = np.arange(len(rows))
        row = np.where(english >= 0, place[english], -1).astype(np.int32)
        row[read[alone]] = len(rows) + np.arange(len(alone))
        space = Space.load(work_dir, hidden)
        said = np.load(work_dir / "teacher.npy")[: len(rows)]
        said = space.target(words_centred(said, single[rows], np.zeros(said.shape[1], np.float32)))
        other = np.load(work_dir / "second.npy", mmap_mode="r")[alone]
        other = unit(words_centred(other, single[read[alone]], space.mean) @ space.second)
        return {"vectors": np.concatenate([said, other]).astype(np.float16), "rows": row}

    stored = kept(work_dir / f"said-{hidden}-{first}-{second}.npz", make)
    return stored["vectors"], stored["rows"]
