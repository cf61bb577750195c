"""`LacosDense`: ST's dense layer, over a transformer that computes in another dtype.

A base may have one between its token embeddings and their pooling, as the embedded one has: what is not linear before
the mean lets an embedding tell more apart than a token state has dimensions (`recipes/bloom-mini/student.py`). It
belongs to the base and is frozen with it, in full precision; the transformer computes in what its device does best.
"""

from __future__ import annotations

from typing import Any

from sentence_transformers.sentence_transformer.modules import Dense


class LacosDense(Dense):
    """ST's `Dense`, with the same arguments, that takes its input in any dtype.

    Example:
        >>> dense = LacosDense(2, 3, module_input_name="token_embeddings")
        >>> dense({"token_embeddings": torch.zeros(1, 4, 2, dtype=torch.bfloat16)})["token_embeddings"].dtype
        torch.float32
    """

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        """As ST's, in the dtype of its own weights."""
        name = self.module_input_name
        return super().forward({**features, name: features[name].to(self.linear.weight.dtype)})
