"""What the Trainer reads back, for the best step and to resume: all that trained, and never a second base."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.modules import Normalize, Router
from sentence_transformers.sentence_transformer.modules import CNN, Dense
from tiny import CORPUS, randomise

from lacos_st.errors import LacosError
from lacos_st.model.model import LacosSentenceTransformer
from lacos_st.training.losses import MaskedMultipleNegativesRankingLoss

TEXTS = list(CORPUS)


class OwnNormalize(Normalize):
    """A module outside ST's namespace, for which ST asks for `trust_remote_code`."""


def build(base, what):
    """A model of each kind that trains."""
    torch.manual_seed(0)
    options = {"quantization": "none"} if what.startswith("full") else {}
    model = LacosSentenceTransformer(base, transformer_options=options)
    if what == "full, adapter over a base that trains":
        model.add_lora(rank=2)
        model.transformer.model.requires_grad_(True)
    elif what == "8 bits, dense":
        model.append(Dense(64, 8))
    elif what == "8 bits, modules of all kinds":
        model.insert(1, CNN(64, 16))
        model.pooling.embedding_dimension = 48
        model.append(Router({"query": [Dense(48, 8), OwnNormalize()], "document": [Dense(48, 8)]}))
        model.append(OwnNormalize())
    elif what == "8 bits, adapter over the table":
        model.add_adapter(LoraConfig(r=2, target_modules=["word_embeddings", "query_key_value"]))
    elif what == "8 bits, adapter over a merged base":
        randomise(model.add_lora(rank=2)).merge_adapter().add_lora(rank=2)
    return model


def trainer_for(model, output, **options):
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(output),
        max_steps=4,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        save_steps=2,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        router_mapping={"anchor": "query", "positive": "document"} if isinstance(model[-2], Router) else None,
        **options,
    )
    model.model_card_data.generate_widget_examples = False
    data = Dataset.from_dict({"anchor": TEXTS[:8], "positive": TEXTS[3:11]})
    loss = MaskedMultipleNegativesRankingLoss(model)
    return SentenceTransformerTrainer(model, arguments, train_dataset=data, eval_dataset=data, loss=loss)


def trained(model):
    return {key: value.detach().clone() for key, value in model.named_parameters() if value.requires_grad}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert found
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


KINDS = [
    "full",
    "full, adapter over a base that trains",
    "8 bits, dense",
    "8 bits, modules of all kinds",
    "8 bits, adapter over the table",
    "8 bits, adapter over a merged base",
]


@pytest.mark.parametrize("what", KINDS)
def test_the_best_step_comes_back_and_a_run_goes_on(what, tiny_bloom, tmp_path, monkeypatch):
    model = build(tiny_bloom, what)
    trainer = trainer_for(model, tmp_path, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True)
    at = {}
    save = trainer._save_checkpoint
    monkeypatch.setattr(
        trainer, "_save_checkpoint", lambda *a: save(*a) or at.update({trainer.state.global_step: trained(model)})
    )
    monkeypatch.setattr(trainer, "_determine_best_metric", best_is_the_first(trainer))
    trainer.train()
    assert any(not torch.equal(at[2][key], at[4][key]) for key in at[2])
    assert_same(trained(model), at[2])  # though two steps more were made
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.zero_()
    trainer._load_from_checkpoint(str(tmp_path / "checkpoint-4"))
    assert_same(trained(model), at[4])
    again = build(tiny_bloom, what)
    trainer_for(again, tmp_path / "again").train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for key, value in trained(again).items():
        torch.testing.assert_close(value, at[4][key], rtol=1e-4, atol=1e-5)


def best_is_the_first(trainer):
    def decide(metrics, trial):
        is_first = trainer.state.best_global_step in (None, 0)
        if is_first:
            trainer.state.best_metric, trainer.state.best_global_step = 1.0, trainer.state.global_step
        return is_first

    return decide


@pytest.mark.parametrize("what", ["8 bits, adapter over a merged base", "8 bits, dense", "full"])
def test_a_checkpoint_is_a_model_too(what, tiny_bloom, tmp_path):
    model = build(tiny_bloom, what)
    trainer_for(model, tmp_path).train()
    for cls in (LacosSentenceTransformer, SentenceTransformer):
        loaded = cls(str(tmp_path / "checkpoint-4"))
        cosine = loaded.encode(TEXTS, normalize_embeddings=True) * model.encode(TEXTS, normalize_embeddings=True)
        assert cosine.sum(1).min() > 0.999


def test_a_base_that_has_trained_is_saved_though_it_is_on_the_hub(tiny_bloom, tmp_path):
    model = build(tiny_bloom, "full")
    model[0].base, model[0].save_base = {"name": "bigscience/bloom-560m", "revision": "abc"}, False
    trainer_for(model, tmp_path).train()
    randomise(model.add_lora(rank=2))  # which freezes the base
    for name in ("model", "checkpoint-9"):
        model.save(str(tmp_path / name))
        np.testing.assert_allclose(
            LacosSentenceTransformer(tmp_path / name).encode(TEXTS), model.encode(TEXTS), atol=1e-5
        )


def test_eight_bits_without_an_adapter_are_saved_though_they_are_on_the_hub(tiny_bloom, tmp_path):
    model = build(tiny_bloom, "8 bits, dense")
    model[0].base, model[0].save_base = {"name": "bigscience/bloom-560m", "revision": "abc"}, False
    model.save(str(tmp_path / "model"))
    np.testing.assert_array_equal(LacosSentenceTransformer(tmp_path / "model").encode(TEXTS), model.encode(TEXTS))


def test_a_checkpoint_holds_adapters_under_the_models_own_names(tiny_model, tmp_path):
    randomise(tiny_model).add_lora(rank=2, name="second")
    tiny_model.set_adapter("default")
    checkpoint = tmp_path / "checkpoint-7"
    tiny_model.save_pretrained(str(checkpoint))
    assert not (checkpoint / "model.safetensors").exists()
    expected = {key: value for key, value in tiny_model.state_dict().items() if "lora_" in key}
    read = type(tiny_model)._load_with_module_classes
    assert_same(read(str(checkpoint), {}).state_dict(), expected)
    (checkpoint / "second" / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(LacosError, match="checkpoint-7' cannot be read"):
        read(str(checkpoint), {})
