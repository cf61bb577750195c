"""What the third teacher says of sentences in their own words, and how near it finds two of them.

    cosine(i, j) = (x_i . x_j - m_i . m_j) / (1 - m_i . m_j),  m the mean of x over a sentence's language

Its embeddings x all point one way (random pairs have 0.8), each language's somewhat its own. Subtracting the means'
part from the product leaves pairs in the order that the teacher gives them, which embeddings centred and brought to
unit length do not (a point less on development sets; `docs/log.md`). Where the first teacher knows a sentence as well,
both count alike.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from collect import FAVOUR
from teach import done
from torch import Tensor
from torch.nn.functional import normalize, pad

SAMPLE = 100_000  # sentences that both teachers know
SHARE = 0.5  # of the third teacher, beside the first
THIRD_LEXICAL: dict[str | None, float] = {
    **dict.fromkeys(("en", "ja", "ko"), 0.1),
    "zh": 0.15,
    **dict.fromkeys(("es", "fr", "it", "pt"), 0.3),
    **dict.fromkeys(("mr", "pl", "ro", "sv", "tr"), 0.5),
    **dict.fromkeys(("az", "kk", "ky", "ug", "uz"), 0.65),
    None: 0.45,
}
"""Share of the spelling beside this teacher. What both order best together is flat from 0.2 to 0.5 in most languages,
and a student learns spelling sooner than what a word means: so the upper end."""
THIRD_FAVOUR = FAVOUR | {
    "ko": 1.5,
    "ja": 1.5,
    "cs": 1.5,
    **dict.fromkeys(("bn", "fa", "id", "mr", "ro", "sr", "sv"), 2.0),
}
"""How often a language is drawn: those with few translations gain most."""


class Third:
    """The third teacher's table on the device that trains.

    Args:
        work_dir: Where `third_teacher.py` has left it.
        langs: (texts,) their languages.
        single: (texts,) whether a text is a single word: these lie to one side, and have means of their own.
        row: (texts,) the row in `said` of what the first two say of each, or -1.
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
        rows = np.load(work_dir / "third-rows.npy")[: done(work_dir / "third.json")]
        table = np.array(np.load(work_dir / "third.npy", mmap_mode="r")[: len(rows)])
        self.device = device
        self.row = np.full(len(langs), -1, np.int32)
        self.row[rows] = np.arange(len(rows))
        names, code = np.unique(
            np.where(single, np.char.add(langs.astype(str), " words"), langs)[rows], return_inverse=True
        )
        means = np.stack([table[code == number].mean(0, dtype=np.float32) for number in range(len(names))])
        self.table, self.means, self.code = (torch.from_numpy(array).to(device) for array in (table, means, code))
        self.common = self.means @ self.means.T
        both = np.flatnonzero((row[rows] >= 0) & ~single[rows])[:SAMPLE]
        first = torch.from_numpy(said[row[rows[both]]].astype(np.float32)).to(device)
        # orthogonal Procrustes, into the student's space but for its two silent dimensions
        u, _, v = torch.linalg.svd(self._centred(torch.from_numpy(both).to(device)).T @ first[:, :-2], False)
        self.turn = pad(u @ v, (0, 2))

    def _at(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(self.row[rows].astype(np.int64)).to(self.device)

    def _centred(self, at: Tensor) -> Tensor:
        return normalize(self.table[at].float() - self.means[self.code[at]])

    def beside(self, rows: np.ndarray, said: Tensor) -> Tensor:
        """(rows, hidden), unit length: `said` and what this teacher says, where it has read the sentence."""
        at = self._at(rows)
        return torch.where((at >= 0)[:, None], normalize(said + normalize(self._centred(at) @ self.turn)), said)

    def cosines(self, rows: np.ndarray, said: Tensor) -> Tensor:
        """(rows, rows), of both; rows of `said` are 0 where the first two say nothing."""
        at = self._at(rows)
        vectors, code = self.table[at].float(), self.code[at]
        common = self.common[code][:, code]
        own = (vectors @ vectors.T - common) / (1 - common)
        read, known = (at >= 0).float(), said.any(1).float()
        share = read[:, None] * read * (1 - (1 - SHARE) * known[:, None] * known)
        return (1 - share) * (said @ said.T) + share * own
