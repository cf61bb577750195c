"""`preprocess`: texts -> tokenised features, which say of each text what its prompt is and which text it was."""

from __future__ import annotations

from typing import Any

from sentence_transformers.base.modules import Transformer

from lacos_st.errors import LacosError
from lacos_st.texts import hash_texts, layout, prompt_lengths, prompt_mask


class PreprocessingTransformer(Transformer):
    """ST's `Transformer` with a `preprocess` that tells more of a batch."""

    def preprocess(self, inputs: Any, prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """As ST's, with `text_hash` and, behind a prompt, `prompt_mask` (see `texts.py`).

        `prompt_length` counts the prompt's tokens that all texts share. ST counts the prompt by itself, which also
        drops the first word of a text where a prompt ends in a space: there the tokenizer joins that space to the word.

        Raises:
            LacosError: The prompt takes all of `max_seq_length`.
        """
        features = super().preprocess(inputs, prompt=prompt, **kwargs)
        if "input_ids" not in features:
            return features
        sizes = layout(features).sizes
        if not sizes.all():  # without a template a text may be without any token
            filled = [text if size else self.tokenizer.eos_token for text, size in zip(inputs, sizes, strict=True)]
            features = super().preprocess(filled, prompt=prompt, **kwargs)
            sizes = layout(features).sizes
        features["text_hash"] = hash_texts(inputs)
        if prompt:
            ids = self.tokenizer.backend_tokenizer.encode(prompt, add_special_tokens=False).ids
            features["prompt_mask"] = prompt_mask(features, ids)
            lengths = prompt_lengths(features)
            room = kwargs.get("max_length") or self.max_seq_length
            if ((sizes == room) & (lengths + self.tokenizer.num_special_tokens_to_add() == room)).any():
                raise LacosError(
                    f"The prompt {prompt!r} takes all of the {room} tokens that are read (max_seq_length), and nothing "
                    "of a text is left. Shorten the prompt, or raise max_seq_length."
                )
            features["prompt_length"] = int(lengths.min())
        return features
