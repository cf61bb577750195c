"""`LexicalSketch`: which words a text has, in a few hundred dimensions behind its meaning.

What a small model cannot know, it can still recognise: "Kyzyl" is "Kyzyl" in any sentence. A mean of token states has
too few dimensions for that (two random tokens have a cosine of 1 / sqrt(hidden)), so the tokens themselves are counted:

    tokens of a text, each once  -> rarity of each in each language         (tokens, languages)
    softmax(prior - their sums)  -> which language it is, by naive Bayes    (texts, languages)
    that language's rarities     -> how loud each token is                  (tokens,)
    each hashed to a column and a sign -> a count sketch, of unit length    (texts, dimension)

and the embedding becomes [sqrt(1 - share) meaning, sqrt(share) sketch], of unit length: cosines are mixed, by a share
that each language has (one that the model knows well has little). Count sketches keep cosines up to 1 / sqrt(dimension)
(Charikar et al., 2002). Nothing here is learnt by gradients, and none pass through the sketch.

Rarities are inverse document frequencies, in 16 levels; only what is less than rarest is stored, two bytes for each
token and language that know each other, by token.

It is a model's last module, and stock sentence-transformers has none like it: a saved model does not list it, and it
lies in a folder that stock classes do not look into (`model.py`). They give the meaning alone.
"""

from __future__ import annotations

import os
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from sentence_transformers.base.modules import Module
from torch import Tensor, nn

from lacos_st.artifact import SKETCH
from lacos_st.dense import move_only
from lacos_st.errors import LacosError

LEVELS = 16
UNSEEN = 4.0  # nats more against a language that has not got a token: two thousand sentences show few, but show a name
_HASH = 2654435761  # Knuth's multiplicative hash of 32 bits: the golden ratio's


class LexicalSketch(Module):
    """The last module of a model: texts' tokens as count sketches, by the rarity of each in the text's language.

    Args:
        languages: Names, in the order of the tensors' columns.
        meaning: Size of the embeddings that it is put behind.
        dimension: Columns of the sketch.
        tensors: Its buffers, as `from_levels` makes them or `save` wrote them.

    Example:
        >>> levels = torch.tensor([[0, 3, 15, 15], [0, 15, 15, 3]], dtype=torch.uint8)  # two languages, four tokens
        >>> shares, priors = {"en": 0.0, "ky": 0.5}, {"en": 0.0, "ky": 0.0}
        >>> sketch = LexicalSketch.from_levels(shares, priors, levels, rarest=9.0, meaning=2, dimension=8)
        >>> texts = {"input_ids": torch.tensor([[3, 0], [1, 0]]), "attention_mask": torch.ones(2, 2)}
        >>> [round(share, 2) for share in sketch.sketch(texts)[1].tolist()]
        [0.5, 0.0]
        >>> sketch({**texts, "sentence_embedding": torch.ones(2, 2)})["sentence_embedding"].shape
        torch.Size([2, 10])
    """

    config_keys = ("languages", "meaning", "dimension")
    counts: Tensor  # how many entries each token has
    entry_languages: Tensor
    entry_levels: Tensor
    shares: Tensor
    priors: Tensor
    rarest: Tensor
    _apply = move_only

    def __init__(self, languages: list[str], meaning: int, dimension: int, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.languages, self.meaning, self.dimension = languages, meaning, dimension
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    @classmethod
    def from_levels(
        cls,
        shares: dict[str, float],
        priors: dict[str, float],
        levels: Tensor,
        rarest: float,
        meaning: int,
        dimension: int = 512,
    ) -> Self:
        """Make one of counts.

        Args:
            shares: The share of the sketch in an embedding's cosine, 0 to below 1, by language.
            priors: How much likelier a language is than others before its text is read, by language, in nats.
            levels: (languages, vocabulary) uint8, rarities from 0 to 15; 15 is what a language has not.
            rarest: The rarity that level 15 stands for, in nats.
            meaning: Size of the embeddings that it is put behind.
            dimension: Columns of the sketch. Default 512.

        Raises:
            ValueError: The shapes do not fit, or a share or a level is out of range.
        """
        if shares.keys() != priors.keys():
            raise ValueError(f"Shares are of {sorted(shares)}, priors of {sorted(priors)}.")
        if levels.dim() != 2 or len(levels) != len(shares):
            raise ValueError(
                f"levels {tuple(levels.shape)} should be (languages, vocabulary), of {len(shares)} shares."
            )
        wrong = {name: share for name, share in shares.items() if not 0 <= share < 1}
        if wrong or not 0 < len(shares) < 256:
            raise ValueError(f"A share is from 0 to below 1, of 1 to 255 languages: {wrong or len(shares)}.")
        if int(levels.max()) >= LEVELS:
            raise ValueError(f"A level is {int(levels.max())}, and they end at {LEVELS - 1}.")
        known = (levels < LEVELS - 1).T  # by token
        language = known.nonzero().T[1]
        tensors = {
            "counts": known.sum(1).to(torch.uint8),
            "entry_languages": language.to(torch.uint8),
            "entry_levels": levels.T[known].to(torch.uint8),
            "shares": torch.tensor(list(shares.values())),
            "priors": torch.tensor([priors[name] for name in shares]),
            "rarest": torch.tensor(rarest),
        }
        return cls(list(shares), meaning, dimension, tensors)

    def get_embedding_dimension(self) -> int:
        """Size of the whole embedding."""
        return self.meaning + self.dimension

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Put the sketch behind `sentence_embedding`: (texts, meaning) -> (texts, meaning + dimension), unit length."""
        meaning = nn.functional.normalize(features["sentence_embedding"].float(), dim=1)
        sketch, share = self.sketch(features)
        share = share[:, None]
        both = torch.cat([meaning * (1 - share).sqrt(), sketch * share.sqrt()], 1)
        return {**features, "sentence_embedding": both}

    @torch.no_grad()
    def sketch(self, features: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Sketch the texts of a batch.

        Args:
            features: `input_ids` (texts, tokens) and `attention_mask`, or packed `input_ids` (1, tokens) with
                `cu_seq_lens_q`; padded on the right. `left_out`, if there: how many tokens at the beginning are a
                prompt that the pooling leaves out, of all texts or (texts,).

        Returns:
            Sketches (texts, dimension), of unit length or 0, and their shares (texts,), in fp32.
        """
        token, text, texts = _tokens(features, len(self.counts))
        rarity = self.rarities(token)
        against = rarity + UNSEEN * (rarity == self.rarest)
        languages = self.priors.repeat(texts, 1).index_add_(0, text, -against).softmax(1)
        loud = (languages[text] * rarity).sum(1)
        mixed = (token + 1) * _HASH & 0xFFFFFFFF
        column, sign = (mixed >> 8) % self.dimension, 1 - 2 * (mixed >> 31)
        sketch = loud.new_zeros(texts * self.dimension).index_add_(0, text * self.dimension + column, sign * loud)
        sketch = nn.functional.normalize(sketch.view(texts, self.dimension), dim=1)
        return sketch, (languages * self.shares).sum(1) * sketch.any(1)  # no product that autocast would round

    def rarities(self, token: Tensor) -> Tensor:
        """(tokens,) ids -> (tokens, languages), how rare each is in each, in nats."""
        counts = self.counts.long()
        count = counts[token]
        first = counts.cumsum(0)[token] - count
        rows = torch.repeat_interleave(count)
        within = torch.arange(len(rows), device=token.device) - (count.cumsum(0) - count)[rows]
        entry = first[rows] + within
        rarity = self.rarest.repeat(len(token), len(self.languages))
        rarity[rows, self.entry_languages[entry].long()] = self.entry_levels[entry] * (self.rarest / (LEVELS - 1))
        return rarity

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Write `config.json` and `model.safetensors`."""
        self.save_config(output_path)
        self.save_torch_weights(output_path)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> Self:
        """Read what `save` has written.

        Args:
            model_name_or_path: A directory, or a name on the Hub.
            subfolder: The folder in it.
            **kwargs: `token`, `cache_folder`, `revision`, `local_files_only`, as for ST's modules.

        Raises:
            FileNotFoundError: There is none.
        """
        config = cls.load_config(model_name_or_path, subfolder=subfolder, **kwargs)
        file = cls.load_file_path(model_name_or_path, "model.safetensors", subfolder=subfolder, **kwargs)
        if not config or file is None:
            raise FileNotFoundError(f"{model_name_or_path!r} has no sketch of words in {subfolder or '.'!r}.")
        return cls(**config, tensors=load_file(file))


def _tokens(features: dict[str, Any], vocabulary: int) -> tuple[Tensor, Tensor, int]:
    """Different tokens of each text, the text of each, and how many texts there are."""
    ids = features["input_ids"]
    if "cu_seq_lens_q" in features:
        bounds = features["cu_seq_lens_q"].to(ids.device).long()
        text, ids, texts = torch.repeat_interleave(bounds.diff()), ids.flatten(), len(bounds) - 1
        place = torch.arange(len(ids), device=ids.device) - bounds[text]
    else:
        texts = len(ids)
        text, place = features["attention_mask"].nonzero().T
        ids = ids[text, place]
    counted = place >= torch.as_tensor(features.get("left_out", 0), device=ids.device).expand(texts)[text]
    unique = torch.unique((text * vocabulary + ids)[counted])
    return unique % vocabulary, unique // vocabulary, texts


def load_sketch(
    path: str, expected: bool | None, meaning: int, vocabulary: int, options: dict[str, Any]
) -> LexicalSketch | None:
    """The sketch of a saved model, if it has one.

    Args:
        path: The model's directory or name on the Hub.
        expected: What its `lacos.json` says: whether there is one. None where there is no such file, or an older one.
        meaning: Size of the model's embeddings without it.
        vocabulary: Tokens that the model knows.
        options: As for `SentenceTransformer`, whose `token`, `cache_folder`, `revision`, `local_files_only` are used.

    Returns:
        It, or None.

    Raises:
        LacosError: It is missing, damaged, or another model's.
    """
    if expected is False:
        return None
    hub = {name: options.get(name) for name in ("token", "revision")}
    hub["cache_folder"] = options.get("cache_folder") or os.getenv("SENTENCE_TRANSFORMERS_HOME")  # as ST does
    try:
        sketch = LexicalSketch.load(path, SKETCH, local_files_only=bool(options.get("local_files_only")), **hub)
    except FileNotFoundError as error:
        if expected is None:
            return None
        raise LacosError(
            f"{path!r} was saved with a sketch of words ({SKETCH}/), which cannot be found: fetch that folder too, or "
            "load the model with stock sentence-transformers, which leaves it out."
        ) from error
    except SafetensorError as error:
        raise LacosError(f"The sketch in {path!r} ({SKETCH}/) is damaged: fetch that folder again.") from error
    if (sketch.meaning, len(sketch.counts)) != (meaning, vocabulary):
        raise LacosError(
            f"The sketch in {path!r} ({SKETCH}/) is for embeddings of {sketch.meaning} and {len(sketch.counts):,} "
            f"tokens, and the model has {meaning} and {vocabulary:,}: it belongs to another. Remove the folder."
        )
    return sketch
