"""Prompts: counted once, in every form of input, in encoding and in training, from many threads."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
    TripletLoss,
)
from sentence_transformers.sentence_transformer.modules import Pooling
from tiny import CORPUS

from lacos_st.errors import LacosError
from lacos_st.model.model import LacosSentenceTransformer
from lacos_st.model.pooling import LacosPooling
from lacos_st.model.transformer import LacosTransformer
from lacos_st.training.losses import CachedMaskedMultipleNegativesRankingLoss, MaskedMultipleNegativesRankingLoss

PROMPT = "query: "
# Of the first of each column ST's prompt takes five tokens, of the second six: its space is a token of its own there.
TRIPLETS = {"anchor": ["guitar", " dogs run"], "positive": ["music", ""], "negative": ["grass", " a child laughs"]}


@pytest.fixture
def model(tiny_bloom):
    """In full precision: embeddings do not depend on the batch."""
    model = LacosSentenceTransformer(tiny_bloom, transformer_options={"quantization": "none"})
    model.set_pooling_include_prompt(False)
    return model


def collate(model, columns, prompts):
    """The features of each column as the Trainer makes them."""
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    batch = SentenceTransformerDataCollator(model.preprocess, prompts=prompts)(rows)
    return [{key[len(c) + 1 :]: value for key, value in batch.items() if key.startswith(f"{c}_")} for c in columns]


def alone(model, columns, prompts):
    """The embeddings of each column, text by text."""
    return [
        torch.cat([model(model.preprocess([text], prompt=prompts.get(name)))["sentence_embedding"] for text in texts])
        for name, texts in columns.items()
    ]


@pytest.mark.parametrize("include_prompt", [True, False])
def test_many_threads_encode_with_and_without_prompts(include_prompt, model):
    model.set_pooling_include_prompt(include_prompt)
    jobs = [(list(CORPUS[i : i + 1 + i % 4]), prompt) for i in range(9) for prompt in (None, PROMPT, "a dog: ")]
    expected = [model.encode(texts, prompt=prompt) for texts, prompt in jobs]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda job: model.encode(job[0], prompt=job[1]), jobs * 4))
    for got, wanted in zip(found, expected * 4, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("prompt", [None, PROMPT])
def test_a_text_in_a_dict_is_that_text(prompt, model):
    texts = ["guitar", "", " dogs"]
    dicts = model.encode([{"text": text} for text in texts], prompt=prompt)
    np.testing.assert_array_equal(dicts, model.encode(texts, prompt=prompt))
    assert np.abs(dicts).max(axis=1).min() > 0


def test_of_a_pair_the_prompt_before_its_first_text_is_left_out(model):
    pair = ("a man plays", "music")
    features = model.preprocess([pair], prompt=PROMPT)
    head = features["input_ids"][0][features["prompt_mask"][0].bool()]
    assert model.tokenizer.decode(head) == "query:"
    tokens = model[0](dict(features))["token_embeddings"][0]
    weights = torch.arange(1, len(tokens) + 1).float()[:, None] * (features["prompt_mask"][0] == 0)[:, None]
    expected = (tokens * weights).sum(0) / weights.sum()
    np.testing.assert_allclose(model.encode([pair], prompt=PROMPT)[0], expected.detach().numpy(), atol=1e-5)


LOSSES = [
    TripletLoss,
    MultipleNegativesRankingLoss,
    MaskedMultipleNegativesRankingLoss,
    lambda model: CachedMultipleNegativesRankingLoss(model, mini_batch_size=1),
    lambda model: CachedMaskedMultipleNegativesRankingLoss(model, mini_batch_size=1),
]


@pytest.mark.parametrize("unpad", [False, True])
@pytest.mark.parametrize("prompts", [dict.fromkeys(TRIPLETS, PROMPT), {"anchor": PROMPT}, {"positive": "a dog: "}])
def test_losses_see_each_text_as_it_is_embedded_alone(prompts, unpad, model):
    expected = alone(model, TRIPLETS, prompts)
    model[0].unpad_inputs = unpad
    for build in LOSSES:
        loss = build(model)
        columns = [[column] for column in expected]
        right = (
            loss.compute_loss_from_embeddings(expected, None)
            if hasattr(loss, "compute_loss_from_embeddings")
            else loss.calculate_loss(columns)
        )
        value = loss(collate(model, TRIPLETS, prompts), None)
        assert value.item() == pytest.approx(right.item(), abs=1e-4), type(loss).__name__


@pytest.mark.parametrize("unpad", [False, True])
def test_gradients_of_cached_losses_leave_the_same_prompts_out(unpad, model):
    model[0].unpad_inputs = unpad
    prompts = dict.fromkeys(TRIPLETS, PROMPT)
    weight = model[0].model.h[0].mlp.dense_h_to_4h.weight
    gradients = []
    for loss in (
        MaskedMultipleNegativesRankingLoss(model),
        CachedMaskedMultipleNegativesRankingLoss(model, mini_batch_size=1),
    ):
        model.zero_grad()
        MatryoshkaLoss(model, loss, matryoshka_dims=[64, 16])(collate(model, TRIPLETS, prompts), None).backward()
        gradients.append(weight.grad.clone())
    assert gradients[0].abs().max() > 1e-4
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-3)


def test_a_prompt_in_one_column_does_not_hide_an_anchor_among_the_documents(model):
    columns = {"anchor": ["guitar", "a man"], "positive": ["music", "guitar"]}
    features = collate(model, columns, {"anchor": PROMPT})
    ids = [column["input_ids"][row] for column, row in zip(features, (0, 1), strict=True)]
    assert ids[0][5] != ids[1][0]  # " guitar" and "guitar"
    assert MultipleNegativesRankingLoss(model)(features, None).item() > 0.1
    # Both rows hold "guitar", so that neither has a negative.
    for kind in (MaskedMultipleNegativesRankingLoss, CachedMaskedMultipleNegativesRankingLoss):
        assert kind(model)(features, None).item() == 0


def test_texts_that_are_read_alike_are_the_same_though_they_end_differently(model):
    model.max_seq_length = 4
    columns = {"anchor": ["a man", "two dogs"], "positive": [CORPUS[0] + " x", CORPUS[0] + " y"]}
    features = collate(model, columns, {})
    assert MaskedMultipleNegativesRankingLoss(model)(features, None).item() == 0


def test_padding_to_a_multiple_leaves_the_prompt_where_it_is(tiny_bloom):
    transformer = LacosTransformer(
        str(tiny_bloom), template="<s>{text}", processing_kwargs={"text": {"pad_to_multiple_of": 8}}
    )
    features = transformer.preprocess(["guitar", "", "music"], prompt=PROMPT)
    assert features["input_ids"].shape[1] % 8 == 0
    assert features["prompt_mask"].sum(1).tolist() == [6, 7, 6]  # the start and five tokens; a space behind them


def test_a_prompt_that_takes_the_whole_length_is_refused(model):
    model.max_seq_length = 7
    assert np.isfinite(model.encode(["a man plays", "guitar"], prompt=PROMPT)).all()
    model.max_seq_length = 6
    with pytest.raises(LacosError, match=r"The prompt 'query: ' takes all of the 6 tokens"):
        model.encode(["a man plays", "guitar"], prompt=PROMPT)
    assert np.isfinite(model.encode(CORPUS)).all()


@pytest.mark.parametrize("unpad", [False, True])
@pytest.mark.parametrize("mode", ["mean", "max", "lasttoken", "weightedmean"])
def test_without_a_template_no_text_is_empty(mode, unpad, tiny_bloom):
    transformer = LacosTransformer(str(tiny_bloom), quantization="none", template="{text}")
    model = LacosSentenceTransformer(modules=[transformer, LacosPooling(64, mode, include_prompt=False)])
    model[0].unpad_inputs = unpad
    end = model.encode("</s>")
    assert np.abs(end).max() > 0
    for empty in ("", {"text": ""}, ("", "")):
        np.testing.assert_allclose(model.encode([empty, "a man"])[0], end, atol=1e-5)
    np.testing.assert_allclose(model.encode([""]), end[None], atol=1e-5)
    # A text of nothing but its prompt is pooled with it.
    whole = model.encode(["", "guitar"], prompt=PROMPT)
    np.testing.assert_allclose(whole[0], model.encode(PROMPT), atol=1e-5)
    assert np.isfinite(whole).all()


def test_stock_pooling_never_drops_a_text_behind_a_prompt(model):
    features = model.preprocess(["guitar", "music"], prompt=PROMPT)
    assert isinstance(features["prompt_length"], int)
    stock = Pooling(64, "mean", include_prompt=False)(model[0](dict(features)))["sentence_embedding"]
    ours = LacosPooling(64, "mean", include_prompt=False)(model[0](dict(features)))["sentence_embedding"]
    torch.testing.assert_close(stock, ours)
    assert "prompt_length" not in model.preprocess(["guitar"])


@pytest.mark.parametrize(("unpad", "side"), [(False, "right"), (False, "left"), (True, "right")])
def test_the_same_features_can_be_embedded_again(unpad, side, model):
    model[0].unpad_inputs = unpad
    model.tokenizer.padding_side = side
    features = model.preprocess(["guitar", "", "a child laughs"], prompt=PROMPT)
    with torch.no_grad():
        first, second = (model(features)["sentence_embedding"].clone() for _ in range(2))
    torch.testing.assert_close(first, second)
    expected = alone(model, {"text": ["guitar", "", "a child laughs"]}, {"text": PROMPT})[0]
    torch.testing.assert_close(first, expected.detach(), atol=1e-5, rtol=1e-4)


def test_features_may_be_numpy_arrays(model):
    tensors = model.preprocess(["guitar", ""], prompt=PROMPT)
    arrays = model.preprocess(["guitar", ""], prompt=PROMPT, processing_kwargs={"common": {"return_tensors": "np"}})
    assert isinstance(arrays["input_ids"], np.ndarray)
    assert torch.equal(arrays["prompt_mask"], tensors["prompt_mask"])


def test_queries_and_documents_get_their_prompts(model):
    model.prompts = {"query": PROMPT, "document": "a dog: "}
    for encode, prompt in ((model.encode_query, PROMPT), (model.encode_document, "a dog: ")):
        np.testing.assert_array_equal(encode(["guitar", ""]), model.encode(["guitar", ""], prompt=prompt))
