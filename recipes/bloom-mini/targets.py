"""What a sentence is drawn to, (hidden,): what two teachers say of it, and how it is spelt.

The first teacher speaks of its English, if it has any; the second of the sentence itself, both alike. The spelling are
its own characters and tokens (`spelling.py`).

    cosine(i, j) = (x_i . x_j - m_i . m_j) / (1 - m_i . m_j),  m the mean of x over a sentence's language

The second teacher's embeddings x all point one way (random pairs have 0.8), each language's somewhat its own.
Subtracting the means' part from the product leaves pairs in the order that the teacher gives them, which embeddings
centred and brought to unit length do not (a point less on development sets; `docs/log.md`). So pairs are compared by
that; a sentence by itself is drawn to its centred embedding, turned into the first teacher's space.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from collect import SINGLE_WORDS
from kept import kept
from space import onto, turn, unit
from teach import done
from torch import Tensor
from torch.nn.functional import normalize

LEXICAL: dict[str | None, float] = {
    **dict.fromkeys(("en", "ja", "ko", "zh"), 0.1),
    **dict.fromkeys(("es", "fr", "it", "pt"), 0.15),
    **dict.fromkeys(("mr", "pl", "ro", "sv", "tr"), 0.3),
    **dict.fromkeys(("az", "kk", "ky", "ug", "uz"), 0.4),
    None: 0.25,
}
"""Share of the spelling in a target. The sketch that stands behind the student's embedding (`lexical.py`) counts tokens
better; what the student spells is for words whose meaning it has not learnt."""
TOKENS = 0.5
"""Share of the tokens in the spelling, beside the characters."""
SHARE = 0.5
"""Of the second teacher, where the first speaks as well."""
SAMPLE = 100_000  # sentences that both teachers know


def words_centred(said: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Unit rows, fp32, words less their mean.

    Single words lie to one side of what a teacher says of sentences, and would draw all their tokens there.
    """
    said = said.astype(np.float32)
    if words.any():
        said[words] -= said[words].mean(0)
    return unit(said)


def said_of(work_dir: Path, hidden: int) -> tuple[np.ndarray, np.ndarray]:
    """What the first teacher says: (vectors, hidden) fp16, unit length, and for each text its row there, or -1."""
    read = done(work_dir / "teacher.json")

    def make() -> dict[str, np.ndarray]:
        table = pq.read_table(work_dir / "texts.parquet", columns=["english", "source"])
        english, single = table["english"].to_numpy(), np.isin(table["source"].to_numpy(), SINGLE_WORDS)
        rows = np.load(work_dir / "english.npy")[:read]
        place = np.full(len(table), -1, np.int32)
        place[rows] = np.arange(len(rows))
        row = np.where(english >= 0, place[english], -1).astype(np.int32)
        said = words_centred(np.load(work_dir / "teacher.npy")[: len(rows)], single[rows])
        return {"vectors": unit(said @ turn(work_dir, hidden)).astype(np.float16), "rows": row}

    stored = kept(work_dir / f"said-{hidden}-{read}.npz", make)
    return stored["vectors"], stored["rows"]


class Second:
    """What the second teacher says, on the device that trains.

    Args:
        work_dir: Where `teach.py` has left it.
        langs: (texts,) their languages.
        single: (texts,) whether a text is a single word: these lie to one side, and have means of their own.
        row: (texts,) the row in `said` of what the first teacher says of each, or -1.
        said: (vectors, hidden) that, unit length.
        device: Where the table is to lie.
    """

    def __init__(
        self,
        work_dir: Path,
        langs: np.ndarray,
        single: np.ndarray,
        row: np.ndarray,
        said: np.ndarray,
        device: torch.device,
    ) -> None:
        rows = np.load(work_dir / "second-rows.npy")[: done(work_dir / "second.json")]
        table = np.array(np.load(work_dir / "second.npy", mmap_mode="r")[: len(rows)])
        self.device = device
        self.row = np.full(len(langs), -1, np.int32)
        self.row[rows] = np.arange(len(rows))
        names, code = np.unique(
            np.where(single, np.char.add(langs.astype(str), " words"), langs)[rows], return_inverse=True
        )
        self.table, self.code = torch.from_numpy(table).to(device), torch.from_numpy(code).to(device)
        counts = self.code.bincount(minlength=len(names)).float()
        self.means = torch.zeros(len(names), table.shape[1], device=device)
        for part in torch.arange(len(rows), device=device).split(2**18):  # a sum in fp32 of a part at a time
            self.means.index_add_(0, self.code[part], self.table[part].float())
        self.means /= counts[:, None]
        self.common = self.means @ self.means.T
        both = np.flatnonzero((row[rows] >= 0) & ~single[rows])[:SAMPLE]
        own = self._centred(torch.from_numpy(both).to(device)).cpu().numpy()
        self.turn = torch.from_numpy(onto(own, said[row[rows[both]]].astype(np.float32))).to(device)

    def _at(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(self.row[rows].astype(np.int64)).to(self.device)

    def _centred(self, at: Tensor) -> Tensor:
        return normalize(self.table[at].float() - self.means[self.code[at]])

    def beside(self, rows: np.ndarray, said: Tensor) -> Tensor:
        """(rows, hidden), unit length: `said`, or 0, and what this teacher says, where it has read the sentence."""
        at = self._at(rows)
        return torch.where((at >= 0)[:, None], normalize(said + normalize(self._centred(at) @ self.turn)), said)

    def cosines(self, rows: np.ndarray, said: Tensor) -> Tensor:
        """(rows, rows), of both; rows of `said` are 0 where the first says nothing."""
        at = self._at(rows)
        vectors, code = self.table[at].float(), self.code[at]
        common = self.common[code][:, code]
        own = (vectors @ vectors.T - common) / (1 - common)
        read, known = (at >= 0).float(), said.any(1).float()
        share = read[:, None] * read * (1 - (1 - SHARE) * known[:, None] * known)
        return (1 - share) * (said @ said.T) + share * own
