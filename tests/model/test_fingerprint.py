"""A model's fingerprint: the same for the same content, another after any change that counts."""

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sts_sets import step

from lacos_st.model.fingerprint import fingerprint


@pytest.fixture
def small(tiny_bloom) -> SentenceTransformer:
    """A random BLOOM with mean pooling: embeds anything in milliseconds."""
    torch.manual_seed(0)
    return SentenceTransformer(str(tiny_bloom))


def test_a_fingerprint_survives_saving_and_use_but_no_change(tmp_path, small):
    first = fingerprint(small)
    small.encode(["anything"])
    assert fingerprint(small) == first
    small.save(str(tmp_path / "saved"))
    assert fingerprint(SentenceTransformer(str(tmp_path / "saved"))) == first
    changes = {
        "max_seq_length": lambda m: setattr(m, "max_seq_length", 5),
        "prompt": lambda m: m.prompts.update(query="q: "),
        "truncation": lambda m: setattr(m, "truncate_dim", 8),
        "padding side": lambda m: setattr(m.tokenizer, "padding_side", "right"),
        "vocabulary": lambda m: m.tokenizer.add_tokens(["neu"]),
        "weight": step,
    }
    for change in changes.values():
        change(small)
        now = fingerprint(small)
        assert now != first
        first = now


def test_the_strength_of_an_adapter_is_content(tiny_bloom):
    """Alpha scales the adapter's product and stands in no tensor; nor does its being switched off."""
    from peft import LoraConfig

    prints, states = set(), []
    for alpha in (8, 16):
        model = SentenceTransformer(str(tiny_bloom))
        torch.manual_seed(0)
        model.add_adapter(LoraConfig(r=4, lora_alpha=alpha, target_modules=["query_key_value"]))
        states.append(model.state_dict())
        prints.add(fingerprint(model))
    model.disable_adapters()
    prints.add(fingerprint(model))
    assert len(prints) == 3
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_8_bit_layers_keep_their_fingerprint_when_they_are_used(tiny_model, tmp_path):
    first = fingerprint(tiny_model)
    tiny_model.encode(["the red cat"])
    assert fingerprint(tiny_model) == first


def test_the_form_of_compute_is_content_and_a_compiler_is_not(tiny_bloom, monkeypatch):
    """Two forms give two embeddings, so "auto" has other digits where it chooses another; a named form has not."""
    from lacos_st.decoder import kernels
    from lacos_st.model.model import LacosSentenceTransformer

    def of(form):
        return fingerprint(LacosSentenceTransformer(tiny_bloom, transformer_options={"compute_form": form}))

    named = of("w8a16")
    assert of("w8a8") != named
    monkeypatch.setattr(kernels, "library", lambda: None)
    kernels._multiplies.cache_clear()
    try:
        assert of("w8a16") == named
    finally:
        kernels._multiplies.cache_clear()
