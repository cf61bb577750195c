"""A base with modules of its own between tokens and embedding: stock's, frozen, in their own dtype."""

import itertools
import json

import numpy as np
import pytest
import torch
from conftest import CORPUS
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.modules import Dense, LayerNorm
from torch import nn

from lacos_st import (
    LacosConfig,
    LacosDense,
    LacosPooling,
    LacosSentenceTransformer,
    LacosTransformer,
    MaskedMultipleNegativesRankingLoss,
    train,
)
from lacos_st.artifact import AdapterCheckpoint
from lacos_st.assembly import build_model

TEXTS = list(CORPUS)


@pytest.fixture
def widened(tiny_bloom, tmp_path):
    """Directory of a base whose embeddings are wider than its states."""
    torch.manual_seed(0)
    modules = [
        LacosTransformer(str(tiny_bloom)),
        LacosDense(64, 96, False, nn.PReLU(init=-0.2), module_input_name="token_embeddings"),
        LacosPooling(96, "mean"),
        LayerNorm(96),
    ]
    LacosSentenceTransformer(modules=modules).save(str(tmp_path / "widened"))
    return tmp_path / "widened"


def test_equals_st_and_takes_any_dtype():
    torch.manual_seed(0)
    ours = LacosDense(4, 6, module_input_name="token_embeddings")
    stock = Dense(4, 6, module_input_name="token_embeddings")
    stock.load_state_dict(ours.state_dict())
    tokens = torch.randn(2, 3, 4)
    expected = stock({"token_embeddings": tokens})["token_embeddings"]
    assert torch.equal(ours({"token_embeddings": tokens})["token_embeddings"], expected)
    half = ours({"token_embeddings": tokens.bfloat16()})["token_embeddings"]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, atol=0.02, rtol=0)


def test_stock_reads_it_and_says_the_same(widened):
    listing = json.loads((widened / "modules.json").read_text())
    assert [entry["type"].startswith("sentence_transformers.") for entry in listing] == [True] * 4
    ours, stock = LacosSentenceTransformer(widened), SentenceTransformer(str(widened))
    assert type(ours[1]) is LacosDense
    assert type(stock[1]) is Dense
    cosines = ours.encode(TEXTS, normalize_embeddings=True) * stock.encode(TEXTS, normalize_embeddings=True)
    assert cosines.sum(1).min() > 0.99  # two forms of the 8-bit product
    alone = np.stack([ours.encode(text) for text in TEXTS])
    np.testing.assert_allclose(ours.encode(TEXTS), alone, atol=1e-4)


def test_an_embedding_is_what_its_modules_say(widened):
    model = LacosSentenceTransformer(widened)
    tokens = model.encode(TEXTS[:3], output_value=None)
    for text, row in zip(TEXTS[:3], tokens, strict=True):
        mean = row["token_embeddings"][row["attention_mask"].bool()].double().mean(0)
        expected = (mean - mean.mean()) / (mean.var(unbiased=False) + 1e-5).sqrt()
        torch.testing.assert_close(torch.tensor(model.encode(text)).double(), expected, atol=1e-4, rtol=1e-4)


def test_training_leaves_it_as_it_is_and_checkpoints_do_without_it(widened, tmp_path):
    before = [LacosSentenceTransformer(widened)[place].state_dict() for place in (1, 3)]
    rows = "".join(json.dumps({"anchor": a, "positive": b}) + "\n" for a, b in itertools.pairwise(TEXTS))
    (tmp_path / "pairs.jsonl").write_text(rows * 4, encoding="utf-8")
    data = [str(tmp_path / "pairs.jsonl")]
    config = LacosConfig(
        base=str(widened), output=str(tmp_path / "out"), train_data=data, eval_data=data, epochs=1, batch_size=4
    )
    train(config)
    trained = LacosSentenceTransformer(tmp_path / "out")
    for place, expected in zip((1, 3), before, strict=True):
        assert not any(parameter.requires_grad for parameter in trained[place].parameters())
        for key, value in trained[place].state_dict().items():
            assert torch.equal(value, expected[key]), key
    assert np.abs(trained.encode(TEXTS) - LacosSentenceTransformer(widened).encode(TEXTS)).max() > 1e-4


def test_modules_of_a_new_pipeline_train_and_come_back_from_the_best_checkpoint(tiny_bloom, tmp_path):
    modules = [LacosTransformer(str(tiny_bloom)), LacosPooling(64, "mean"), Dense(64, 8)]
    model = LacosSentenceTransformer(modules=modules).add_lora(rank=2)
    before = model[2].linear.weight.detach().clone()
    data = Dataset.from_dict({"anchor": TEXTS[:8], "positive": TEXTS[3:11]})
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=4,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        eval_strategy="steps",
        eval_steps=2,
        save_steps=2,
        load_best_model_at_end=True,
        report_to="none",
        disable_tqdm=True,
    )
    loss = MaskedMultipleNegativesRankingLoss(model)
    SentenceTransformerTrainer(model, arguments, train_dataset=data, eval_dataset=data, loss=loss).train()
    assert not torch.equal(model[2].linear.weight, before)
    stored = AdapterCheckpoint(tmp_path / "run" / "checkpoint-2").state_dict()["2.linear.weight"]
    last = AdapterCheckpoint(tmp_path / "run" / "checkpoint-4").state_dict()["2.linear.weight"]
    assert not torch.equal(stored, last)
    assert any(torch.equal(model[2].linear.weight, kept) for kept in (stored, last))


def test_a_recipe_that_asks_for_another_pooling_replaces_the_pooling(widened):
    model = build_model(LacosConfig(base=str(widened), pooling="weightedmean"))
    assert [type(module) for module in model] == [LacosTransformer, LacosDense, LacosPooling, LayerNorm]
    assert model.pooling.pooling_mode == "weightedmean"
    assert model.encode(TEXTS[:2]).shape == (2, 96)
