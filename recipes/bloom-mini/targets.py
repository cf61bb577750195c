"""The target of each sentence: the embedding that the student is trained to produce, (hidden,).

A target has three parts.

* The first teacher's embedding of the sentence's English translation, if there is one.
* The second teacher's embedding of the sentence itself. Where both are there, each counts half.
* How the sentence is spelt (`spelling.py`), for words that the student has seen too rarely to learn their meaning.

The student has fewer dimensions than a teacher, so targets lie in the first teacher's leading principal directions:

    target = first @ turn

The last two dimensions are 0, since the student keeps the weight of a token there (see `student.py`). The second
teacher's embeddings are rotated into that space (orthogonal Procrustes), which changes no cosine.

The second teacher's embeddings x all point in one direction: random pairs have a cosine of 0.8, and each language has
a mean m of its own. So cosines are compared without the means' part:

    cosine(i, j) = (x_i . x_j - m_i . m_j) / (1 - m_i . m_j)

That keeps the order in which the teacher ranks pairs. Centring the embeddings and scaling them to length 1 does not,
and cost a point on development sets.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from collect import WORDS
from corpus import kept
from teach import done, encoded
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoTokenizer

from lacos_st.files import atomic

LEXICAL: dict[str | None, float] = {
    **dict.fromkeys(("en", "ja", "ko", "zh"), 0.1),
    **dict.fromkeys(("es", "fr", "it", "pt"), 0.15),
    **dict.fromkeys(("mr", "pl", "ro", "sv", "tr"), 0.3),
    **dict.fromkeys(("az", "kk", "ky", "ug", "uz"), 0.4),
    None: 0.25,
}
"""Share of the spelling in a target: for words whose meaning the student has not learnt."""
TOKENS = 0.5
"""Share of the tokens in the spelling, beside the characters."""
SHARE = 0.5
"""Of the second teacher, where the first speaks as well."""
SAMPLE = 100_000  # sentences that both teachers know
TURNED = 32768  # sentences, at most, that the turn is made of: the first ones of the table


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def turn(work_dir: Path, hidden: int) -> np.ndarray:
    """(width, hidden) from the first teacher's space onto its leading directions."""
    read = min(TURNED, done(work_dir / "teacher.json"))
    first = np.load(work_dir / "teacher.npy", mmap_mode="r")[:read].astype(np.float32)
    values, vectors = np.linalg.eigh(first.T @ first)
    share = values[2 - hidden :].sum() / values.sum()
    print(f"{hidden - 2} of {len(values)} dimensions keep {share:.4f} of the energy")
    return np.pad(vectors[:, ::-1][:, : hidden - 2], ((0, 0), (0, 2))).astype(np.float32)


def onto(teacher: np.ndarray, student: np.ndarray) -> np.ndarray:
    """(width, hidden) columns at right angles, of unit length but for the silent two, that bring one to the other.

    Orthogonal Procrustes: a turn changes no cosine.

    Args:
        teacher: (sentences, width) unit length, what a teacher says.
        student: (sentences, hidden) unit length, what the student says, or should say, of the same.
    """
    left, _, right = np.linalg.svd(teacher.T @ student[:, :-2], full_matrices=False)
    return np.pad(left @ right, ((0, 0), (0, 2))).astype(np.float32)


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
        english, single = table["english"].to_numpy(), table["source"].to_numpy() == WORDS
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


def numbers_of(work_dir: Path, rows: np.ndarray) -> dict[str, np.ndarray]:
    """`numbers`, (tokens,) int8, the word of each of the student's tokens in rows of `texts.parquet`, and `bounds`."""
    table = pq.read_table(work_dir / "texts.parquet", columns=["text"])["text"].combine_chunks()
    tokenizer = AutoTokenizer.from_pretrained(work_dir / "tokenizer")
    found = encoded(tokenizer, "", table.take(pa.array(rows)).to_pylist())
    numbers = [number.astype(np.int8) for chunk in found for number in chunk.words]
    return {"numbers": np.concatenate(numbers), "bounds": np.cumsum([0, *map(len, numbers)])}


def words_of_english(work_dir: Path, hidden: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Word targets of the sentences of `english.npy`, and which of the student's tokens make which word.

    Returns:
        (words, hidden) fp16, unit length, or 0 where the teacher did not see the word; (sentences + 1,) bounds there;
        (tokens,) int8, the word of each token, or -1; (sentences + 1,) bounds there. Kept in files.
    """
    read = done(work_dir / "teacher.json")
    vectors = work_dir / f"words-{hidden}-{read}.npy"
    if not vectors.exists():
        into, states = turn(work_dir, hidden), np.load(work_dir / "words.npy", mmap_mode="r")
        with atomic(vectors) as temporary:
            table = np.lib.format.open_memmap(temporary, "w+", np.float16, (len(states), hidden))
            for start in range(0, len(states), 2**17):
                part = slice(start, start + 2**17)
                table[part] = unit(states[part].astype(np.float32) @ into)
            table.flush()
    english = np.load(work_dir / "english.npy")[:read]
    stored = kept(work_dir / f"word-numbers-{read}.npz", lambda: numbers_of(work_dir, english))
    return np.load(vectors, mmap_mode="c"), np.load(work_dir / "starts.npy"), stored["numbers"], stored["bounds"]
