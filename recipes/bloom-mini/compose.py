"""Stage after retrofitting: words of several tokens drawn to what they mean, through their tokens.

A student says of a word, but for what layers add, the sum of its tokens' unit vectors u, each as loud as l:

    m_w = sum of l_p u_p over the tokens p of w
    t_w = mean of the vectors of whole words that mean the same, in any language (`retrofit.py`)

Retrofitting leaves pieces of words alone, since of a piece's string no teacher says anything. But inflected languages
are written in pieces, and of the words that share a piece a teacher says enough. So all vectors move together, as
little as possible, until the words come nearer to their targets; ridge regression around what they were:

    minimise  sum of c_w |A u - (1 - s) m - s t|^2  +  sum of |u - u_before|^2,   A, m: brought to unit length by word

c_w falls with the root of a word's rank in its language, as the root of its frequency does (Zipf), and a language
counts in all as the root of its share in `FAVOUR`. A token that English or a Romance language uses stays: these have
most of the text, and layers know their tokens as they are. So do numbers and punctuation.

    python compose.py work/bloom-mini/retrofitted work/bloom-mini/composed
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from collect import FAVOUR, SINGLE_WORDS, UNSPACED
from corpus import rarities
from kept import kept
from letters import UYGHUR_CYRILLIC
from retrofit import NEIGHBOURS, mean_of, whole_words
from scipy.sparse import csr_matrix, diags
from scipy.sparse.linalg import LinearOperator, cg
from space import unit
from student import save, states
from teach import said_by_second, token_embeddings
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lacos_st.bloom import LacosBloomModel

SHARE = 0.4
KNOWN = ["en", "es", "fr", "it", "pt", "ro"]  # languages that gain nothing or lose: their words are met often enough
RARE = 7.5  # nats of rarity, in each of them, from which a token moves
WORDS = dict.fromkeys(("de", "nl", "pl"), 15_000)
OTHERS = 12_000  # words of another language, at most
LEFT_OUT = {*UNSPACED, *KNOWN, UYGHUR_CYRILLIC, "ar"}  # translations of Arabic are found more often without its words


def words_of(work_dir: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Words of three letters or more, of several tokens, with their languages and their ranks there from 0."""
    table = pq.read_table(work_dir / "texts.parquet", columns=["lang", "text", "source"])
    single, langs = np.isin(table["source"].to_numpy(), SINGLE_WORDS), table["lang"].to_numpy()
    words: list[str] = []
    code: list[str] = []
    ranks: list[int] = []
    for lang, favour in sorted(FAVOUR.items()):
        own = table["text"].take(np.flatnonzero(single & (langs == lang))).to_pylist()
        if favour < 0.5 or lang in LEFT_OUT or not own:
            continue
        ids = tokenizer(own, add_special_tokens=False)["input_ids"]
        several = [rank for rank, row in enumerate(ids) if len(row) > 1 and len(own[rank]) > 2]
        several = several[: WORDS.get(lang, OTHERS)]
        words += [own[rank] for rank in several]
        code += [lang] * len(several)
        ranks += several
    return words, np.array(code), np.array(ranks)


def said_of(work_dir: Path, words: list[str]) -> np.ndarray:
    """(words, 384) fp32, unit length, what the second teacher says of them."""
    different = sorted(set(words))

    def make() -> dict[str, np.ndarray]:
        return {"words": np.array(different), "vectors": said_by_second(different)}

    stored = kept(work_dir / f"word-said-{len(different)}.npz", make)
    vectors = stored["vectors"]
    place = {word: row for row, word in enumerate(stored["words"].tolist())}
    return vectors[[place[word] for word in words]].astype(np.float32)


@torch.inference_mode()
def loudness(model: LacosBloomModel) -> np.ndarray:
    """(tokens,) how loud each is by itself: the length of its state."""
    parts = torch.arange(model.config.vocab_size).split(4096)
    return torch.cat([states(model, ids, torch.arange(len(ids) + 1)).norm(dim=1) for ids in parts]).numpy()


def targets(said: np.ndarray, whole: np.ndarray, vectors: Tensor) -> np.ndarray:
    """(words, hidden) unit length, or 0: the mean of whole words of which the teacher says the most similar.

    Args:
        said: (words, width) what it says of words, less what it says of all.
        whole: (tokens, width) the same of tokens that are whole words.
        vectors: (tokens, hidden) those tokens' unit vectors.
    """
    tokens, found = normalize(torch.from_numpy(whole)), []
    for part in torch.from_numpy(said).split(4096):
        cosines, nearest = (normalize(part) @ tokens.T).topk(min(NEIGHBOURS, len(tokens)))
        found.append(mean_of(vectors, nearest, cosines))
    return torch.cat(found).numpy()


def importance(langs: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """(words,) how much each counts; 1 on average."""
    weight = (ranks + 10.0) ** -0.5
    for lang in np.unique(langs):
        own = langs == lang
        weight[own] *= FAVOUR[lang] ** 0.5 / weight[own].mean()
    return weight / weight.mean()


def composed(
    before: np.ndarray, words: csr_matrix, wanted: np.ndarray, weight: np.ndarray, moves: np.ndarray
) -> np.ndarray:
    """(tokens, hidden) the solution; tokens that do not move are as before.

    Args:
        before: (tokens, hidden).
        words: (words, tokens) each row makes a word of them.
        wanted: (words, hidden) what that should be.
        weight: (words,) how much each counts.
        moves: (tokens,) which do.
    """
    own = words.tocsc()[:, moves].tocsr()
    weighted = own.T.multiply(weight).tocsr()
    right = weighted @ (wanted - words @ before)
    system = LinearOperator((own.shape[1], own.shape[1]), lambda x: weighted @ (own @ x) + x, dtype=right.dtype)
    after = before.copy()
    after[moves] += np.stack([cg(system, column, rtol=1e-3)[0] for column in right.T], 1)
    return after


def matrix(ids: Iterable[list[int]], loud: np.ndarray) -> csr_matrix:
    """(words, tokens) how loud each of its tokens is in each word."""
    rows = [*ids]
    bounds = np.cumsum([0, *map(len, rows)])
    flat = np.concatenate(rows)
    return csr_matrix((loud[flat], flat, bounds), (len(rows), len(loud)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="output of retrofit.py")
    parser.add_argument("output", type=Path)
    parser.add_argument("--work-dir", type=Path, default=Path("work/bloom-mini"))
    args = parser.parse_args()
    model = LacosBloomModel.from_pretrained(args.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    words, lang, ranks = words_of(args.work_dir, tokenizer)
    strings, of_tokens = token_embeddings(args.work_dir, tokenizer)
    whole = whole_words(tokenizer, strings)
    said = said_of(args.work_dir, words)
    common = np.concatenate([of_tokens[whole], said]).mean(0)
    table = model.word_embeddings.weight.data
    before = normalize(table[:, :-2])
    wanted = targets(said - common, of_tokens[whole] - common, before[whole])

    before = before.numpy()
    made = matrix(tokenizer(words, add_special_tokens=False)["input_ids"], loudness(model))
    made = (diags(1 / np.linalg.norm(made @ before, axis=1)) @ made).tocsr()
    now = made @ before
    known = wanted.any(1, keepdims=True)
    languages, rarity = rarities(args.work_dir)
    used = rarity[[languages.index(lang) for lang in KNOWN]].min(0) <= RARE
    moves = ~used & np.array([string[:1].isalpha() for string in strings])
    wish = np.where(known, unit((1 - SHARE) * now + SHARE * wanted), now)
    after = composed(before, made, wish, importance(lang, ranks), moves)
    changed = np.flatnonzero((after != before).any(1))
    rows = table[changed, :-2]
    table[changed, :-2] = torch.from_numpy(unit(after[changed])).to(rows) * rows.norm(dim=1, keepdim=True)
    save(model, args.output, args.model)
    cosine = [float((unit(made @ vectors) * wanted).sum(1).mean()) for vectors in (before, after)]
    tokens = f"{len(changed):,} tokens of {len(words):,} words"
    print(f"{args.output}: {tokens}, from {cosine[0]:.3f} to {cosine[1]:.3f} of what they mean")


if __name__ == "__main__":
    main()
