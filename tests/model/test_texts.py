"""Where texts lie in a batch, which of their tokens are a prompt, and which texts are the same."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import CORPUS

from lacos_st.model.model import LacosSentenceTransformer
from lacos_st.model.texts import hash_texts, layout, prompt_lengths, prompt_mask, select

rows = st.lists(st.lists(st.integers(4, 6), max_size=5), min_size=1, max_size=5)


def padded(texts, left=False, extra=1):
    width = max(map(len, texts)) + extra
    ids, mask = torch.full((len(texts), width), 3), torch.zeros(len(texts), width, dtype=torch.long)
    for row, text in enumerate(texts):
        place = slice(width - len(text), width) if left else slice(0, len(text))
        ids[row, place], mask[row, place] = torch.tensor(text, dtype=torch.long), 1
    return {"input_ids": ids, "attention_mask": mask}


def packed(texts):
    ids = torch.tensor([token for text in texts for token in text], dtype=torch.long)[None]
    return {"input_ids": ids, "cu_seq_lens_q": torch.tensor([0, *map(len, texts)]).cumsum(0)}


def forms(texts):
    return padded(texts), padded(texts, left=True), packed(texts)


def common(text, prompt):
    """Length of the beginning that two lists share."""
    return next((i for i, (a, b) in enumerate(zip(text, prompt, strict=False)) if a != b), min(len(text), len(prompt)))


@given(rows)
def test_the_layout_finds_every_token(texts):
    for features in forms(texts):
        index, text, place, sizes = layout(features)
        assert features["input_ids"].flatten()[index].tolist() == [token for row in texts for token in row]
        assert text.tolist() == [number for number, row in enumerate(texts) for _ in row]
        assert place.tolist() == [i for row in texts for i in range(len(row))]
        assert sizes.tolist() == [len(row) for row in texts]


@given(rows, st.lists(st.integers(4, 6), max_size=4))
def test_a_prompt_is_what_a_text_shares_with_it(texts, prompt):
    for features in forms(texts):
        mask = prompt_mask(features, prompt)
        assert mask.shape == features["input_ids"].shape
        assert prompt_lengths({**features, "prompt_mask": mask}).tolist() == [common(text, prompt) for text in texts]
        index, _, _, _ = layout(features)
        expected = [i < common(text, prompt) for text in texts for i in range(len(text))]
        assert mask.flatten()[index].bool().tolist() == expected
        assert mask.sum() == sum(expected)  # and nothing at pads


def test_without_a_mask_there_is_no_prompt():
    assert prompt_lengths(packed([[4, 5], []])).tolist() == [0, 0]


@given(rows.filter(lambda texts: len(texts) > 1), st.data())
def test_selected_texts_keep_their_tokens(texts, data):
    chosen = torch.tensor(sorted(data.draw(st.sets(st.integers(0, len(texts) - 1), min_size=1))))
    for features in (padded(texts), packed(texts)):
        part = select({**features, "token_embeddings": features["input_ids"][..., None].float()}, chosen)
        index, _, _, sizes = layout(part)
        tokens = part["token_embeddings"].flatten()[index].long().tolist()
        assert tokens == [token for row in chosen.tolist() for token in texts[row]]
        assert sizes.tolist() == [len(texts[row]) for row in chosen.tolist()]


def test_hashes_are_equal_exactly_for_equal_texts():
    texts = ["guitar", " guitar", "", "a\0b", ("a", "b"), ("ab", ""), {"text": "guitar"}, *CORPUS]
    hashes = hash_texts(texts)
    assert hashes[0] == hashes[6]
    assert hashes[3] != hashes[5]
    assert len(hashes.unique()) == len(texts) - 2  # a pair is its texts with a zero byte between
    assert hashes.min() >= 0
    assert hashes.max() < 2**60
    assert hash_texts(["guitar"]).item() == 482729717533213204  # in every process


@pytest.mark.parametrize("prompt", ["query: ", "query:", "q", "title: none | text: "])
@pytest.mark.parametrize("unpad", [False, True])
def test_preprocess_marks_the_tokens_wholly_within_the_prompt(prompt, unpad, tiny_bloom):
    model = LacosSentenceTransformer(tiny_bloom)
    model[0].unpad_inputs = unpad
    texts = ["guitar", "", " dogs run", "1 2 3", "uitar"]
    features = model.preprocess(texts, prompt=prompt)
    assert ("cu_seq_lens_q" in features) == unpad
    found = prompt_lengths(features).tolist()
    offsets = model.tokenizer([prompt + text for text in texts], return_offsets_mapping=True)["offset_mapping"]
    for length, text in zip(found, offsets, strict=True):
        assert length == sum(start < end <= len(prompt) for start, end in text)
    assert features["prompt_length"] == min(found)
