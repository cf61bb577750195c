"""`LacosPooling`: ST's pooling with the defaults of a causal model.

Token embeddings (batch, tokens, hidden), or packed (1, all tokens, hidden) with `cu_seq_lens_q`, become sentence
embeddings (batch, hidden). In a causal model position i has read tokens 0..i, so late positions know most:

- `weightedmean` (SGPT, arXiv 2202.08904), the default: position i weighs i + 1;
- `lasttoken`: the end token that the template appends, which has read everything.

Beyond ST's: embeddings come out in fp32 whatever the tokens' dtype (a vector rounded to bf16 has a length that is off
by up to 0.4 %), and a prompt that is left out may have another length in each text (`prompt_mask`, see `texts.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor

from lacos_st.model.texts import layout, prompt_lengths, select


class LacosPooling(Pooling):
    """ST's `Pooling`; weighted mean by default.

    Args:
        embedding_dimension: Hidden size of the model.
        pooling_mode: One of ST's modes or several, then concatenated. Default "weightedmean".
        include_prompt: Whether the prompt's tokens are pooled. Default True. A text without any other token is pooled
            with its prompt.

    Example:
        >>> pooling = LacosPooling(2)
        >>> tokens = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
        >>> pooling({"token_embeddings": tokens, "attention_mask": torch.ones(1, 2)})["sentence_embedding"]
        tensor([[0.3333, 0.6667]])
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if len(args) < 2 and not any(key.startswith("pooling_mode") for key in kwargs):  # ST has older names for it
            kwargs["pooling_mode"] = "weightedmean"
        super().__init__(*args, **kwargs)

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Add `sentence_embedding` (batch, dimension), fp32, to the features."""
        single = {**features, "token_embeddings": features["token_embeddings"].float()}
        features["sentence_embedding"] = self._pool(single, **kwargs)
        return features

    def _pool(self, features: dict[str, Any], **kwargs: Any) -> Tensor:
        if self.include_prompt or "prompt_mask" not in features:
            return super().forward(features, **kwargs)["sentence_embedding"]
        lengths = prompt_lengths(features)
        lengths = lengths.masked_fill(lengths == layout(features).sizes, 0)
        # ST pools with one prompt length for the whole batch: pool each length by itself.
        pooled: list[Tensor] = []
        order: list[Tensor] = []
        different = lengths.unique()
        for length in different:
            rows = (lengths == length).nonzero().flatten()
            some = features if len(different) == 1 else select(features, rows)
            part = super().forward({**some, "prompt_length": int(length)}, **kwargs)
            pooled.append(part["sentence_embedding"])
            order.append(rows)
        return torch.cat(pooled)[torch.cat(order).argsort()]
