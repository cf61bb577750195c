"""What cannot be trained, or not saved after it, is refused before the first step."""

import pytest
from datasets import Dataset
from sentence_transformers import (
    MultiVectorEncoder,
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
    SparseEncoder,
)
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.modules import Dense, Pooling
from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder
from tiny import CORPUS

from lacos_st.errors import LacosError
from lacos_st.model.model import LacosSentenceTransformer
from lacos_st.model.pooling import LacosPooling
from lacos_st.model.transformer import LacosTransformer
from lacos_st.training.losses import MaskedMultipleNegativesRankingLoss

TEXTS = list(CORPUS)


def train(model, output):
    arguments = SentenceTransformerTrainingArguments(output_dir=str(output), max_steps=1, report_to="none")
    data = Dataset.from_dict({"anchor": TEXTS[:8], "positive": TEXTS[3:11]})
    loss = MaskedMultipleNegativesRankingLoss(model)
    SentenceTransformerTrainer(model, arguments, train_dataset=data, loss=loss).train()


def test_a_model_in_which_nothing_trains(tiny_model, tiny_bloom, tmp_path):
    with pytest.raises(LacosError, match=r"add_lora\(\).*is_trainable=True"):
        train(LacosSentenceTransformer(tiny_bloom), tmp_path / "run")
    tiny_model.save(str(tmp_path / "model"))
    loaded = LacosSentenceTransformer(tmp_path / "model")
    with pytest.raises(LacosError, match=r"add_lora\(\).*is_trainable=True"):
        train(loaded, tmp_path / "run")
    loaded.transformer.set_trainable()
    train(loaded, tmp_path / "run")


def test_outside_a_trainer_it_is_a_warning(tiny_bloom):
    with pytest.warns(UserWarning, match=r"Nothing in this model trains: add_lora\(\)"):
        LacosSentenceTransformer(tiny_bloom).train()


def around(base):
    """Models of other classes around our transformer, for each of which saving would come too late to refuse."""
    transformer = LacosTransformer(str(base))
    return {
        "stock": SentenceTransformer(modules=[transformer, Pooling(64), Dense(64, 8)]),
        "sparse": SparseEncoder(modules=[transformer, Pooling(64), SparseAutoEncoder(64)]),
        "many": MultiVectorEncoder(modules=[transformer, Dense(64, 8, module_input_name="token_embeddings")]),
        "router": SentenceTransformer(
            modules=[
                Router({"query": [transformer, Pooling(64)], "document": [LacosTransformer(str(base)), Pooling(64)]})
            ]
        ),
    }


def test_a_model_of_another_class_around_our_transformer(tiny_bloom):
    for name, model in around(tiny_bloom).items():
        with pytest.raises(LacosError, match=r"Only a LacosSentenceTransformer\(modules="):
            model.train()
        assert not model.eval().training, name


def test_a_router_of_our_transformers(tiny_bloom):
    routes = {name: [LacosTransformer(str(tiny_bloom)), LacosPooling(64)] for name in ("query", "document")}
    with pytest.raises(LacosError, match=r"first module is Router.*prompts="):
        LacosSentenceTransformer(modules=[Router(routes)])
