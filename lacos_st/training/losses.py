"""Contrastive losses that never push a text away from its own paraphrase.

`MultipleNegativesRankingLoss` treats every other document of a batch as a negative of an anchor. NLI data repeats
every premise, so a batch holds (p, e1, c1) and (p, e2, c2), and e2 is pushed away from p although it follows from p.
These losses mask such candidates, by the identity of texts and not of embeddings. Two texts are the same if they were
given as the same (`text_hash`, see `texts.py`) or are read as the same tokens, prompts aside:

- Row i of a batch belongs to an anchor A_i and a positive P_i. A document or anchor of row j is masked for row i if
  {A_i, P_i} and {A_j, P_j} share a text; a hard negative only if it is itself A_i or P_i. The own pair never is.
- With `mask_margin`, a candidate is masked as well if it scores above the positive of either row by the margin: it
  is probably an unlabelled paraphrase (the idea of GISTEmbed, arXiv 2402.16829, without a guide model).

How: each embedding (batch, dimension) carries 14 more columns: for anchor and positive two 60-bit hashes (of the tokens
and of the text) in three exact float32 pieces each, the row's index and the row's positive score. ST gathers, chunks
and caches them together with the embedding, and only the similarity function, where every pair meets, reads and removes
them. Everything else (directions, partition, hardness, gathering, gradient caching) is ST's own, inherited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.util import get_rank
from torch import Tensor, nn

from lacos_st.model.texts import layout, prompt_lengths

TAG_COLUMNS = 14  # the anchor's identity (6), the positive's (6), row, positive score
_PIECE_BITS = 20  # float32 holds integers up to 2^24 exactly


class _IdentityMasking(nn.Module):
    """What both losses share: hash the texts of a batch, tag the embeddings, mask in the similarity function."""

    mask_duplicates: bool
    mask_margin: float | None
    similarity_fct: Callable[[Tensor, Tensor], Tensor]
    _identities: list[Tensor]  # of the columns whose loss is being computed; none if it is not known what they embed

    def __init__(
        self, model: nn.Module, mask_duplicates: bool = True, mask_margin: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(model, **kwargs)
        self.mask_duplicates, self.mask_margin = mask_duplicates, _checked(mask_margin)
        self._identities = []

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            sentence_features: Tokenised columns: anchors, positives, then any number of negatives.
            labels: Unused; the pairs are the diagonal.

        Returns:
            A scalar.
        """
        features = list(sentence_features)
        self._identities = [identity(column) for column in features] if self.mask_duplicates else []
        try:
            return super().forward(features, labels)
        finally:
            self._identities = []

    def _tagged(self, embeddings: list[Tensor], similarity: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
        anchors, positives = embeddings[:2]
        size, device = len(anchors), anchors.device
        rows = torch.arange(size, device=device, dtype=torch.float32) + get_rank() * size
        texts = [column.to(device) for column in self._identities]
        if not texts:  # every text its own
            numbers = [_pieces(rows.long() * len(embeddings) + k + 1) for k in range(len(embeddings))]
            texts = [number.repeat(1, 2) for number in numbers]
        own = torch.cat([texts[0], texts[1], rows[:, None], self._positive_scores(anchors, positives, similarity)], 1)
        nobody = torch.tensor([-1.0, torch.inf], dtype=torch.float32, device=device).repeat(size, 1)
        tags = [own, own, *(torch.cat([text, text, nobody], 1) for text in texts[2:])]
        return [
            torch.cat([column.to(torch.promote_types(column.dtype, torch.float32)), tag], dim=1)
            for column, tag in zip(embeddings, tags, strict=True)
        ]

    def _positive_scores(self, anchors: Tensor, positives: Tensor, similarity: Callable) -> Tensor:
        if self.mask_margin is None:
            return torch.full((len(anchors), 1), torch.inf, dtype=torch.float32, device=anchors.device)
        with torch.no_grad():  # the diagonal, 64 rows at a time: similarity functions are matrix functions
            chunks = zip(anchors.split(64), positives.split(64), strict=True)
            return torch.cat([similarity(a.float(), p.float()).diagonal() for a, p in chunks])[:, None]

    def _masked(self, similarity: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        margin = self.mask_margin or 0.0

        def masked_similarity(a: Tensor, b: Tensor) -> Tensor:
            scores = similarity(a[:, :-TAG_COLUMNS], b[:, :-TAG_COLUMNS])
            tag_a, tag_b = a[:, -TAG_COLUMNS:].detach(), b[:, -TAG_COLUMNS:].detach()
            row_a, row_b = tag_a[:, 12], tag_b[:, 12]
            own = (row_a[:, None] == row_b[None, :]) & (row_a >= 0)[:, None]
            same = torch.zeros_like(own)
            for x in (0, 6):  # anchor or positive
                for y in (0, 6):
                    for k in (0, 3):  # the same tokens, or the same text
                        same |= (tag_a[:, None, x + k : x + k + 3] == tag_b[None, :, y + k : y + k + 3]).all(dim=-1)
            ceiling = torch.minimum(tag_a[:, 13][:, None], tag_b[:, 13][None, :]) + margin
            return scores.masked_fill((same | (scores.detach() > ceiling)) & ~own, -torch.inf)

        return masked_similarity

    def get_config_dict(self) -> dict[str, Any]:
        """The loss's settings, for the model card."""
        return {
            **super().get_config_dict(),  # type: ignore[misc]
            "mask_duplicates": self.mask_duplicates,
            "mask_margin": self.mask_margin,
        }


class MaskedMultipleNegativesRankingLoss(_IdentityMasking, MultipleNegativesRankingLoss):
    """`MultipleNegativesRankingLoss` with false negatives masked by text identity and, optionally, by margin.

    With nothing to mask, value and gradient equal ST's.

    Args:
        model: The model to train.
        mask_duplicates: Mask candidates that share a text with the row's pair (see the head of this file).
        mask_margin: Mask candidates that score above the positive by more than this (cosine units, 0 and up). None
            (the default) masks none.
        **kwargs: ST's own: `scale`, `similarity_fct`, `directions`, `partition_mode`, `hardness_mode`,
            `hardness_strength`, `gather_across_devices`.

    Raises:
        ValueError: A negative `mask_margin`.
    """

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor) -> Tensor:
        """ST's loss over tagged embeddings, with the masking similarity in place of the user's.

        Called by itself it does not know the texts: it masks by margin only.
        """
        if len(embeddings) < 2:
            return super().compute_loss_from_embeddings(embeddings, labels)  # which says what is wrong
        similarity = self.similarity_fct
        tagged = self._tagged(embeddings, similarity)
        self.similarity_fct = self._masked(similarity)
        try:
            return super().compute_loss_from_embeddings(tagged, labels)
        finally:
            self.similarity_fct = similarity


class CachedMaskedMultipleNegativesRankingLoss(_IdentityMasking, CachedMultipleNegativesRankingLoss):
    """The same loss with ST's gradient caching (arXiv 2101.06983): large batches in the memory of small ones.

    Args:
        model: The model to train.
        mask_duplicates: As for `MaskedMultipleNegativesRankingLoss`.
        mask_margin: As for `MaskedMultipleNegativesRankingLoss`.
        **kwargs: ST's own, with `mini_batch_size` (sentences) or `mini_batch_num_tokens`.

    Raises:
        ValueError: A negative `mask_margin`.
    """

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """ST's chunked loss over tagged embeddings. Called by itself it masks by margin only."""
        similarity = self.similarity_fct
        columns = [torch.cat(parts) for parts in reps]
        tagged = [
            list(column.split([len(part) for part in parts]))
            for column, parts in zip(self._tagged(columns, similarity), reps, strict=True)
        ]
        self.similarity_fct = self._masked(similarity)
        try:
            return super().calculate_loss(tagged, labels, with_backward=with_backward)
        finally:
            self.similarity_fct = similarity


def identity(features: dict[str, Any]) -> Tensor:
    """Say which texts a column holds: hashes of their tokens and of the texts, where the column has both.

    Args:
        features: A tokenised column.

    Returns:
        float32 (batch, 6).
    """
    tokens = text_hashes(features)
    return torch.cat([_pieces(tokens), _pieces(features.get("text_hash", tokens).to(tokens.device))], dim=1)


def text_hashes(features: dict[str, Any]) -> Tensor:
    """Hash the tokens of each text of a batch, padded or packed, without its prompt.

    Multiply-shift hashing over 64-bit arithmetic with a fixed key for each position: texts of different ids collide
    with a probability of about 2^-60.

    Args:
        features: `input_ids` (batch, tokens) and `attention_mask`, or packed (1, tokens) and `cu_seq_lens_q`;
            `prompt_mask`, if there.

    Returns:
        int64 (batch,), below 2^60.
    """
    index, text, place, sizes = layout(features)
    place = place - prompt_lengths(features)[text]  # negative in a prompt
    terms = (features["input_ids"].flatten()[index].long() + 1) * (_mix(place) | 1)
    total = torch.zeros_like(sizes).index_add_(0, text, terms.masked_fill(place < 0, 0))
    return (total >> 4) & (2**60 - 1)


def _mix(numbers: Tensor) -> Tensor:
    """Spread integers over 64 bits (the finaliser of SplitMix64, Steele et al. 2014), in wrapping int64."""
    numbers = (numbers + 1) * -7046029254386353131
    numbers = (numbers ^ ((numbers >> 30) & (2**34 - 1))) * -4658895280553007687
    numbers = (numbers ^ ((numbers >> 27) & (2**37 - 1))) * -7723592293110705685
    return numbers ^ ((numbers >> 31) & (2**33 - 1))


def _pieces(hashes: Tensor) -> Tensor:
    """Split 60 bits over three float32 columns that hold them exactly."""
    mask = 2**_PIECE_BITS - 1
    return torch.stack([(hashes >> (_PIECE_BITS * k)) & mask for k in range(3)], dim=1).float()


def _checked(margin: float | None) -> float | None:
    if margin is not None and margin < 0:
        raise ValueError(f"mask_margin={margin} must be 0 or more, or None for no masking by margin.")
    return margin
