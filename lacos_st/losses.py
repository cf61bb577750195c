"""Contrastive losses that never push a text away from its own paraphrase.

`MultipleNegativesRankingLoss` treats every other document of a batch as a negative of an anchor. NLI data repeats
every premise, so a batch holds (p, e1, c1) and (p, e2, c2), and e2 is pushed away from p although it follows from p.
These losses mask such candidates, by the identity of texts and not of embeddings:

- Row i of a batch belongs to an anchor A_i and a positive P_i. A document or anchor of row j is masked for row i if
  {A_i, P_i} and {A_j, P_j} share a text; a hard negative only if it is itself A_i or P_i. The own pair never is.
- With `mask_margin`, a candidate is masked as well if it scores above the positive of either row by the margin: it
  is probably an unlabelled paraphrase (the idea of GISTEmbed, arXiv 2402.16829, without a guide model).

How: each embedding (batch, dimension) carries 8 more columns, two 60-bit text hashes in three exact float32 pieces
each, the row's index and the row's positive score. ST gathers, chunks and caches them together with the embedding,
and only the similarity function, where every pair meets, reads and removes them. Everything else (directions,
partition, hardness, gathering, gradient caching) is ST's own, inherited.
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

TAG_COLUMNS = 8  # anchor hash (3), positive hash (3), row, positive score
_PIECE_BITS = 20  # float32 holds integers up to 2^24 exactly


class _IdentityMasking(nn.Module):
    """What both losses share: hash the texts of a batch, tag the embeddings, mask in the similarity function."""

    mask_duplicates: bool
    mask_margin: float | None
    similarity_fct: Callable[[Tensor, Tensor], Tensor]
    _hashes: list[Tensor]

    def __init__(
        self, model: nn.Module, mask_duplicates: bool = True, mask_margin: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(model, **kwargs)
        self.mask_duplicates, self.mask_margin = mask_duplicates, _checked(mask_margin)

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            sentence_features: Tokenised columns: anchors, positives, then any number of negatives.
            labels: Unused; the pairs are the diagonal.

        Returns:
            A scalar.
        """
        features = list(sentence_features)
        self._hashes = [text_hashes(column) for column in features] if self.mask_duplicates else []
        return super().forward(features, labels)

    def _tagged(self, embeddings: list[Tensor], similarity: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
        anchors, positives = embeddings[:2]
        size, device = len(anchors), anchors.device
        rows = torch.arange(size, device=device, dtype=torch.float32) + get_rank() * size
        if self.mask_duplicates:
            hashes = [_pieces(column.to(device)) for column in self._hashes]
        else:  # every text its own
            hashes = [_pieces(rows.long() * len(embeddings) + k + 1) for k in range(len(embeddings))]
        own = torch.cat([hashes[0], hashes[1], rows[:, None], self._positive_scores(anchors, positives, similarity)], 1)
        tagged = [torch.cat([column.float(), own], dim=1) for column in embeddings[:2]]
        for column, digest in zip(embeddings[2:], hashes[2:], strict=True):
            nobody = torch.full((size, 1), -1.0, dtype=torch.float32, device=device)
            never = torch.full((size, 1), torch.inf, dtype=torch.float32, device=device)
            tagged.append(torch.cat([column.float(), digest, digest, nobody, never], dim=1))
        return tagged

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
            row_a, row_b = tag_a[:, 6], tag_b[:, 6]
            own = (row_a[:, None] == row_b[None, :]) & (row_a >= 0)[:, None]
            same = torch.zeros_like(own)
            for x in (tag_a[:, 0:3], tag_a[:, 3:6]):
                for y in (tag_b[:, 0:3], tag_b[:, 3:6]):
                    same |= (x[:, None, :] == y[None, :, :]).all(dim=-1)
            ceiling = torch.minimum(tag_a[:, 7][:, None], tag_b[:, 7][None, :]) + margin
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

    Texts are identical if their token ids are (a prompt's tokens aside). With nothing to mask, value and gradient
    equal ST's.

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
        """ST's loss over tagged embeddings, with the masking similarity in place of the user's."""
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
        """ST's chunked loss over tagged embeddings."""
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


def text_hashes(features: dict[str, Any]) -> Tensor:
    """Hash each tokenised text of a batch, padded or packed.

    Multiply-shift hashing over 64-bit arithmetic with a fixed key for each position: texts of different ids collide
    with a probability of about 2^-60.

    Args:
        features: `input_ids` (batch, tokens) and `attention_mask`, or packed (1, tokens) and `cu_seq_lens_q`.

    Returns:
        int64 (batch,), below 2^60.
    """
    ids = features["input_ids"]
    device = ids.device
    if "cu_seq_lens_q" in features:
        starts = features["cu_seq_lens_q"].to(device).long()
        sizes = starts.diff()
        positions = torch.arange(ids.shape[-1], device=device) - starts[:-1].repeat_interleave(sizes)
        ids, sentences, count = (
            ids.flatten(),
            torch.arange(len(sizes), device=device).repeat_interleave(sizes),
            len(sizes),
        )
    else:
        mask = features["attention_mask"].bool()
        positions = (mask.cumsum(dim=1) - 1)[mask]
        sentences, count = mask.nonzero()[:, 0], len(ids)
        ids = ids[mask]
    if (prompt := features.get("prompt_length")) is not None:
        prompt = torch.as_tensor(prompt, device=device).expand(count)[sentences]
        kept = positions >= prompt
        ids, positions, sentences = ids[kept], (positions - prompt)[kept], sentences[kept]
    terms = (ids.long() + 1) * (_mix(positions) | 1)
    total = torch.zeros(count, dtype=torch.int64, device=device).index_add_(0, sentences, terms)
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
