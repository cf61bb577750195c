"""A base with modules of its own between tokens and embedding: stock's, frozen, in their own dtype."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.modules import Dense, LayerNorm
from tiny import CORPUS
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
from lacos_st.errors import LacosError
from lacos_st.model.dense import LacosLayerNorm
from lacos_st.training.assembly import build_model

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
    model = LacosSentenceTransformer(modules=modules)
    for module in modules[1:]:
        module.requires_grad_(False)
    model.save(str(tmp_path / "widened"))
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


@pytest.mark.parametrize("name", ["lacos-bloom", "bloom-mini"])
@pytest.mark.parametrize("how", ["w8a16", "half", "no compiler"])
def test_the_embedded_models_say_the_same_in_16_bits(name, how, monkeypatch):
    expected = LacosSentenceTransformer(name, device="cpu")
    kept = expected[1].linear.weight.clone()
    assert not any(parameter.requires_grad for parameter in expected.parameters())
    told = expected.encode(TEXTS, normalize_embeddings=True)  # before the compiler is gone
    if how == "no compiler":
        monkeypatch.setattr("lacos_st.decoder.kernels.library", lambda: None)
        monkeypatch.setattr("lacos_st.decoder.kernels._multiplies", lambda: False)  # it remembers the compiler
    options = {"compute_form": "w8a16"} if how == "w8a16" else {}
    model = LacosSentenceTransformer(name, device="cpu", transformer_options=options)
    if how == "half":
        model.half()
    assert torch.equal(model[1].linear.weight, kept)
    assert (model.encode(TEXTS, normalize_embeddings=True) * told).sum(1).min() > 0.999


def test_a_frozen_layer_lies_in_16_bits_where_they_hold_it_exactly(tiny_bloom, tmp_path):
    dense = LacosDense(64, 8)
    with torch.no_grad():
        dense.linear.weight.copy_(dense.linear.weight.half())
        dense.linear.bias.fill_(1 / 3)
    modules = [LacosTransformer(str(tiny_bloom)), LacosPooling(64, "mean"), dense]
    model = LacosSentenceTransformer(modules=modules)
    dense.requires_grad_(False)
    for bias, dtype in ((1 / 3, torch.float32), (0.25, torch.float16)):
        torch.nn.init.constant_(dense.linear.bias, bias)
        expected = model.encode(TEXTS)
        model.save(str(tmp_path / "model"))
        again = LacosSentenceTransformer(tmp_path / "model")
        assert again[2].linear.weight.dtype == again[2].linear.bias.dtype == dtype
        np.testing.assert_allclose(again.encode(TEXTS), expected, atol=1e-6)


def test_a_layer_in_16_bits_does_not_train_in_them():
    model = LacosSentenceTransformer("bloom-mini")
    features = {"token_embeddings": torch.randn(1, 3, 256), "attention_mask": torch.ones(1, 3)}
    model[1].requires_grad_(True)
    with pytest.raises(LacosError, match="give it 32 first"):
        model[1](features)
    model[1].linear.float()
    assert model[1](features)["token_embeddings"].requires_grad


@pytest.mark.parametrize("width", [4, 6])
def test_a_residual_is_added_as_stock_does(width):
    stock = Dense(4, width, use_residual=True)
    ours = LacosDense(4, width, use_residual=True)
    ours.load_state_dict(stock.state_dict())
    features = {"sentence_embedding": torch.randn(3, 4)}
    torch.testing.assert_close(ours(dict(features))["sentence_embedding"], stock(dict(features))["sentence_embedding"])


def test_a_new_pipeline_computes_beside_a_transformer_in_16_bits(tiny_bloom):
    modules = [LacosTransformer(str(tiny_bloom)), LacosPooling(64, "mean"), Dense(64, 8), LayerNorm(8)]
    model = LacosSentenceTransformer(modules=modules)
    expected = model.encode(TEXTS, normalize_embeddings=True)
    model.bfloat16()
    assert (model.encode(TEXTS, normalize_embeddings=True) * expected).sum(1).min() > 0.99
    assert model[2].linear.weight.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert (model.encode(TEXTS, normalize_embeddings=True) * expected).sum(1).min() > 0.99


def test_a_layer_norm_computes_in_its_own_dtype():
    features = {"sentence_embedding": torch.randn(3, 8, dtype=torch.float64)}
    assert LacosLayerNorm(8)(features)["sentence_embedding"].dtype == torch.float32


def test_padding_is_not_computed_and_changes_nothing():
    torch.manual_seed(0)
    dense = LacosDense(4, 6, module_input_name="token_embeddings")
    tokens, mask = torch.randn(2, 3, 4), torch.tensor([[1, 1, 0], [1, 1, 1]])
    plain = dense({"token_embeddings": tokens})["token_embeddings"]
    masked = dense({"token_embeddings": tokens, "attention_mask": mask})["token_embeddings"]
    torch.testing.assert_close(masked, plain * mask[:, :, None])
    tokens[0, 2] = float("nan")
    assert torch.equal(dense({"token_embeddings": tokens, "attention_mask": mask})["token_embeddings"], masked)


def config_for(base, folder, **options):
    rows = "".join(json.dumps({"anchor": a, "positive": b}) + "\n" for a, b in itertools.pairwise(TEXTS))
    (folder / "pairs.jsonl").write_text(rows * 4, encoding="utf-8")
    data = [str(folder / "pairs.jsonl")]
    options = {"train_data": data, "eval_data": data, "epochs": 1, "batch_size": 4, **options}
    return LacosConfig(base=str(base), output=str(folder / "out"), **options)


@pytest.mark.parametrize("bf16", [False, True])
def test_training_leaves_a_base_as_it_is_also_when_trained_on(bf16, widened, tmp_path):
    before = [LacosSentenceTransformer(widened)[place].state_dict() for place in (1, 3)]
    train(config_for(widened, tmp_path, bf16=bf16, eval_steps=3))  # the last: warming up, the first changes nothing
    trained = LacosSentenceTransformer(tmp_path / "out", is_trainable=True)
    for place, expected in zip((1, 3), before, strict=True):
        assert not any(parameter.requires_grad for parameter in trained[place].parameters())
        for key, value in trained[place].state_dict().items():
            assert torch.equal(value, expected[key]), key
    assert np.abs(trained.encode(TEXTS) - LacosSentenceTransformer(widened).encode(TEXTS)).max() > 1e-4


def trainer_for(model, output):
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(output),
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
    data = Dataset.from_dict({"anchor": TEXTS[:8], "positive": TEXTS[3:11]})
    loss = MaskedMultipleNegativesRankingLoss(model)
    return SentenceTransformerTrainer(model, arguments, train_dataset=data, eval_dataset=data, loss=loss)


def test_modules_of_a_new_pipeline_train_and_come_back_with_the_best_checkpoint(tiny_bloom, tmp_path):
    modules = [LacosTransformer(str(tiny_bloom)), LacosPooling(64, "mean"), Dense(64, 8)]
    model = LacosSentenceTransformer(modules=modules).add_lora(rank=2)
    before = model[2].linear.weight.detach().clone()
    trainer = trainer_for(model, tmp_path / "run")
    trainer.train()
    assert not torch.equal(model[2].linear.weight, before)
    best = load_file(Path(trainer.state.best_model_checkpoint) / "2_Dense" / "model.safetensors")["linear.weight"]
    with torch.no_grad():
        model[2].linear.weight.zero_()
    trainer._load_best_model()
    assert torch.equal(model[2].linear.weight, best)
    model.save(str(tmp_path / "saved"))
    again = LacosSentenceTransformer(tmp_path / "saved", is_trainable=True)
    assert again[2].linear.weight.requires_grad
    assert torch.equal(again[2].linear.weight, best)


def test_in_full_precision_the_best_checkpoint_comes_back_too(tiny_bloom, tmp_path):
    model = LacosSentenceTransformer(tiny_bloom, transformer_options={"quantization": "none"}).add_lora(rank=2)
    trainer = trainer_for(model, tmp_path / "run")
    trainer.train()
    name = next(key for key, _ in model.named_parameters() if "lora_B" in key)
    best = model.get_parameter(name).detach().clone()
    with torch.no_grad():
        model.get_parameter(name).zero_()
    trainer._load_best_model()
    assert best.any()
    assert torch.equal(model.get_parameter(name), best)


def test_a_recipe_that_asks_for_another_pooling_replaces_the_pooling(widened):
    model = build_model(LacosConfig(base=str(widened), pooling="weightedmean"))
    assert [type(module) for module in model] == [LacosTransformer, LacosDense, LacosPooling, LacosLayerNorm]
    assert model.pooling.pooling_mode == "weightedmean"
    assert model.encode(TEXTS[:2]).shape == (2, 96)


def test_parameters_of_a_full_precision_base_that_train_are_loaded_with_the_adapter(tiny_bloom):
    model = LacosSentenceTransformer(tiny_bloom, transformer_options={"quantization": "none"}).add_lora(rank=2)
    assert model.transformer.is_base_frozen
    norm = model.transformer.model.ln_f.weight
    norm.requires_grad_(True)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        norm.zero_()
    model.load_state_dict(state)
    assert norm.all()


def test_a_model_saved_before_it_was_recorded_keeps_its_modules_frozen(widened):
    record = json.loads((widened / "lacos.json").read_text())
    del record["frozen_modules"]
    (widened / "lacos.json").write_text(json.dumps(record))
    assert not any(parameter.requires_grad for parameter in LacosSentenceTransformer(widened)[1].parameters())


def test_modules_given_beside_a_path_are_ignored_and_those_of_the_path_frozen(widened, tiny_bloom):
    other = list(LacosSentenceTransformer(tiny_bloom, transformer_options={"quantization": "none"}))
    model = LacosSentenceTransformer(widened, modules=other)
    assert [type(module) for module in model] == [LacosTransformer, LacosDense, LacosPooling, LacosLayerNorm]
    assert not any(parameter.requires_grad for parameter in model.parameters())
