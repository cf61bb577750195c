"""`preprocess`: texts -> tokenised features, which say of each text what its prompt is and which text it was."""

from __future__ import annotations

from typing import Any

from sentence_transformers.base.modules import Transformer
from sentence_transformers.base.modules.transformer import TRANSFORMER_TASK_DEFAULTS

from lacos_st.errors import LacosError
from lacos_st.model.texts import hash_texts, layout, prompt_lengths, prompt_mask


class PreprocessingTransformer(Transformer):
    """ST's `Transformer` with a `preprocess` that tells more of a batch."""

    template: str

    def infer_modalities(self, model: Any, processor: Any) -> tuple[Any, str]:
        """Of a plain checkpoint: texts, though its tokenizer may know chat messages. Those would have no template."""
        return TRANSFORMER_TASK_DEFAULTS[self.transformer_task]

    def preprocess(self, inputs: Any, prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """As ST's, with `text_hash` and, behind a prompt, `prompt_mask` (see `texts.py`).

        `prompt_length` counts the prompt's tokens that all texts share. ST counts the prompt by itself, which also
        drops the first word of a text where a prompt ends in a space: there the tokenizer joins that space to the word.

        Raises:
            LacosError: The prompt takes all of `max_seq_length`.
        """
        features = super().preprocess(inputs, prompt=prompt, **kwargs)
        if features.get("modality") != "text":  # no inputs, or messages: ST counts no prompt there either
            return features
        sizes = layout(features).sizes
        if not sizes.all():  # without a template a text may be without any token
            filled = [text if size else self.tokenizer.eos_token for text, size in zip(inputs, sizes, strict=True)]
            features = super().preprocess(filled, prompt=prompt, **kwargs)
            sizes = layout(features).sizes
        features["text_hash"] = hash_texts(inputs)
        if prompt:
            before, _, after = (self._ids(part) for part in self.template.partition("{text}"))
            features["prompt_mask"] = prompt_mask(features, before + self._ids(prompt))
            lengths = prompt_lengths(features)
            room = kwargs.get("max_length") or self.max_seq_length
            if ((sizes == room) & (lengths + len(after) == room)).any():
                raise LacosError(
                    f"The prompt {prompt!r} takes all of the {room} tokens that are read (max_seq_length), and nothing "
                    "of a text is left. Shorten the prompt, or raise max_seq_length."
                )
            features["prompt_length"] = int(lengths.min())
        return features

    def _ids(self, text: str) -> list[int]:
        encoding = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)  # padded as the last batch
        return [token for token, real in zip(encoding.ids, encoding.attention_mask, strict=True) if real]
