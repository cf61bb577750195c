"""`LacosPooling`: ST's pooling with the defaults of a causal model.

Token embeddings (batch, tokens, hidden), or packed (1, all tokens, hidden) with `cu_seq_lens_q`, become sentence
embeddings (batch, hidden). In a causal model position i has read tokens 0..i, so late positions know most:

- `weightedmean` (SGPT, arXiv 2202.08904), the default: position i weighs i + 1;
- `lasttoken`: the end token that the template appends, which has read everything.

Beyond ST's: embeddings come out in fp32 whatever the tokens' dtype (a vector rounded to bf16 has a length that is off
by up to 0.4 %), and `prompt_length` may differ from text to text (see `LacosTransformer.preprocess`).
"""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor


class LacosPooling(Pooling):
    """ST's `Pooling`; weighted mean by default.

    Args:
        embedding_dimension: Hidden size of the model.
        pooling_mode: One of ST's modes or several, then concatenated. Default "weightedmean".
        include_prompt: Whether the prompt's tokens are pooled. Default True.

    Example:
        >>> pooling = LacosPooling(2)
        >>> tokens = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
        >>> pooling({"token_embeddings": tokens, "attention_mask": torch.ones(1, 2)})["sentence_embedding"]
        tensor([[0.3333, 0.6667]])
    """

    def __init__(
        self,
        embedding_dimension: int,
        pooling_mode: str | tuple[str, ...] | list[str] = "weightedmean",
        include_prompt: bool = True,
    ) -> None:
        super().__init__(embedding_dimension, pooling_mode=pooling_mode, include_prompt=include_prompt)

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Add `sentence_embedding` (batch, dimension), fp32, to the features."""
        single = {**features, "token_embeddings": features["token_embeddings"].float()}
        features["sentence_embedding"] = self._pool(single, **kwargs)
        return features

    def _pool(self, features: dict[str, Any], **kwargs: Any) -> Tensor:
        lengths = features.get("prompt_length")
        if self.include_prompt or not isinstance(lengths, Tensor) or bool((lengths == lengths.flatten()[0]).all()):
            return super().forward(features, **kwargs)["sentence_embedding"]
        # ST pools with one prompt length for the whole batch: pool each length by itself.
        pooled: list[Tensor] = []
        order: list[Tensor] = []
        for length in lengths.unique():
            rows = (lengths == length).nonzero().flatten()
            part = super().forward({**_select(features, rows), "prompt_length": int(length)}, **kwargs)
            pooled.append(part["sentence_embedding"])
            order.append(rows)
        return torch.cat(pooled)[torch.cat(order).argsort().to(pooled[0].device)]


def _select(features: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """The token embeddings of some sentences of a batch, padded or packed."""
    tokens = features["token_embeddings"]
    rows = rows.to(tokens.device)
    if "cu_seq_lens_q" not in features:
        return {"token_embeddings": tokens[rows], "attention_mask": features["attention_mask"][rows]}
    starts = features["cu_seq_lens_q"]
    spans = [torch.arange(int(starts[row]), int(starts[row + 1]), device=tokens.device) for row in rows.tolist()]
    sizes = torch.tensor([0, *(len(span) for span in spans)], device=tokens.device)
    return {"token_embeddings": tokens[:, torch.cat(spans)], "cu_seq_lens_q": sizes.cumsum(0)}
