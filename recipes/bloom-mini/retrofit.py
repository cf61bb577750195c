"""Stage 6: rows of the embedding table move towards those of tokens that mean the same (Faruqui et al., 2015).

    v_i <- (1 - s_i) v_i + s_i mean of v_j over the 64 nearest tokens j, weighed by cosine(i, j) - 0.35 where above 0

Near is what the second teacher's embeddings of the tokens' strings say, in any language. Most tokens are rare, so
training has updated their rows a few times only, and rounding to 4 bits has added noise. Averaging with rows of the
same meaning removes some of that, and brings words of one meaning together across languages. Nothing is trained. The
layers above need not be trained again: a row keeps its length, its last two dimensions, and most of its direction.

Two kinds of rows stay as they are: tokens that are frequent in English, which have had enough updates, and pieces
within words, whose strings mean nothing by themselves.

    python retrofit.py work/bloom-mini/deep work/bloom-mini/retrofitted    # once: again it would move them further
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from corpus import rarities
from student import save
from teach import strings_of
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lacos_st.decoder.bloom import LacosBloomModel

NEIGHBOURS, LEAST = 64, 0.35
SHARE = 0.4  # 0.3 is about as good on development sets, 0.5 loses 0.3 within genres
FREQUENT, RARE = 6.0, 9.0  # nats of rarity in English up to which a token stays, and from which it has its full share


def neighbours(said: Tensor) -> tuple[Tensor, Tensor]:
    """Of (tokens, width) unit rows: (tokens, NEIGHBOURS) numbers of the nearest others, and their cosines."""
    nearest, cosines = [], []
    for start in range(0, len(said), 2048):
        cosine = said[start : start + 2048] @ said.T
        cosine.diagonal(start).fill_(-1)
        found = cosine.topk(min(NEIGHBOURS, len(said) - 1))
        nearest.append(found.indices)
        cosines.append(found.values)
    return torch.cat(nearest), torch.cat(cosines)


def mean_of(vectors: Tensor, nearest: Tensor, cosines: Tensor) -> Tensor:
    """(rows, hidden) unit length, or 0: neighbours' mean vector, each as much as its cosine is above `LEAST`."""
    weights = (cosines - LEAST).clamp_min(0)
    return normalize((weights[:, :, None] * vectors[nearest]).sum(1))


def retrofitted(rows: Tensor, said: Tensor, share: Tensor) -> Tensor:
    """(tokens, hidden) rows, each `share` of the way to the mean of its neighbours; as long as they were.

    Args:
        rows: (tokens, hidden) what the student says of them.
        said: (tokens, width) what a teacher says of them.
        share: (tokens,) from 0 to 1; a token without a neighbour stays.
    """
    nearest, cosines = neighbours(normalize(said - said.mean(0)))
    unit = normalize(rows)
    mean = mean_of(unit, nearest, cosines)
    share = share[:, None] * mean.any(1, keepdim=True)
    drawn = normalize((1 - share) * unit + share * mean) * rows.norm(dim=1, keepdim=True)
    return torch.where(share > 0, drawn, rows)


def is_word(token: str, text: str) -> bool:
    """Whether a token begins a word, and is likely to be one; in Chinese and Japanese letters any."""
    begins = token.startswith("\u0120") and len(text) > 2
    return text[:1].isalpha() and (begins or "\u3040" <= text[0] < "\uac00")


def whole_words(tokenizer: PreTrainedTokenizerBase, strings: list[str]) -> np.ndarray:
    """Numbers of the tokens that are likely words, of all tokens' strings."""
    return np.flatnonzero([*map(is_word, tokenizer.convert_ids_to_tokens([*range(len(strings))]), strings)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="output of distil.py")
    parser.add_argument("output", type=Path)
    parser.add_argument("--work-dir", type=Path, default=Path("work/bloom-mini"))
    args = parser.parse_args()
    model = LacosBloomModel.from_pretrained(args.model)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    strings, said = strings_of(tokenizer), np.load(args.work_dir / "token-said.npy").astype(np.float32)
    tokens = whole_words(tokenizer, strings)
    langs, rarity = rarities(args.work_dir)
    english = torch.from_numpy(rarity[langs.index("en"), tokens].astype(np.float32))
    share = SHARE * ((english - FREQUENT) / (RARE - FREQUENT)).clamp(0, 1)
    with torch.no_grad():
        table = model.word_embeddings.weight
        table[tokens, :-2] = retrofitted(table[tokens, :-2], torch.from_numpy(said[tokens]), share)
    save(model, args.output, args.model)
    print(f"{args.output}: {int((share > 0).sum()):,} of {len(tokenizer):,} tokens moved")


if __name__ == "__main__":
    main()
