"""Calls that sentence-transformers takes, and this package too."""

import inspect
from collections import OrderedDict

import bitsandbytes as bnb
import pytest
import torch
from sentence_transformers import InputExample, SentenceTransformer
from sentence_transformers.sentence_transformer.losses import DenoisingAutoEncoderLoss
from sentence_transformers.sentence_transformer.modules import Dense, Pooling
from tiny import CORPUS
from torch.utils.data import DataLoader

from lacos_st.decoder.embedding_table import LacosEmbedding8bit
from lacos_st.errors import LacosError
from lacos_st.model.dense import LacosDense
from lacos_st.model.model import LacosSentenceTransformer
from lacos_st.model.pooling import LacosPooling
from lacos_st.model.transformer import LacosTransformer
from lacos_st.training.losses import MaskedMultipleNegativesRankingLoss

TEXTS = list(CORPUS[:4])


def test_saving_to_none_saves_nothing(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model.save(None)
    tiny_model.save_pretrained(None)
    assert not list(tmp_path.iterdir())


def test_older_names_of_the_poolings_arguments():
    with pytest.warns(FutureWarning, match="pooling_mode_mean_tokens"):
        pooling = LacosPooling(64, pooling_mode_mean_tokens=True, pooling_mode_max_tokens=True)
    with pytest.warns(FutureWarning):
        stock = Pooling(64, pooling_mode_mean_tokens=True, pooling_mode_max_tokens=True)
    assert pooling.get_config_dict() == stock.get_config_dict()
    assert LacosPooling(64).pooling_mode == "weightedmean"
    assert LacosPooling(64, "mean", False).get_config_dict() == Pooling(64, "mean", False).get_config_dict()


def test_older_names_of_the_transformers_arguments(tiny_bloom):
    transformer = LacosTransformer(str(tiny_bloom), tokenizer_args={"model_max_length": 9}, model_args={})
    assert transformer.max_seq_length == 9
    assert transformer.tokenizer.padding_side == "right"


@pytest.mark.parametrize("kind", [list, tuple, iter, lambda modules: OrderedDict(zip("abc", modules, strict=True))])
def test_modules_in_any_order_that_has_one(kind, tiny_bloom):
    modules = [LacosTransformer(str(tiny_bloom)), Pooling(64), Dense(64, 8)]
    model = LacosSentenceTransformer(modules=kind(modules))
    assert [type(module) for module in model] == [LacosTransformer, LacosPooling, LacosDense]
    names = ["a", "b", "c"] if kind not in (list, tuple, iter) else ["0", "1", "2"]
    assert list(dict(model.named_children())) == names
    assert model.encode(TEXTS).shape == (4, 8)


@pytest.mark.parametrize("given", [None, "by name", "by place"])
def test_fit_takes_its_optimiser_by_name_and_by_place(given, tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = []

    class Ours(bnb.optim.AdamW8bit):
        def __init__(self, *args, **kwargs):
            made.append(type(self))
            super().__init__(*args, **kwargs)

    class Mine(torch.optim.SGD):
        def __init__(self, parameters, lr):
            made.append(type(self))
            super().__init__(parameters, lr)

    before = {key: value.clone() for key, value in tiny_model.named_parameters() if value.dtype == torch.int8}
    assert before
    monkeypatch.setattr(bnb.optim, "AdamW8bit", Ours)
    examples = DataLoader([InputExample(texts=[text, text]) for text in TEXTS], batch_size=4)
    objectives = [(examples, MaskedMultipleNegativesRankingLoss(tiny_model))]
    rest = {"show_progress_bar": False, "optimizer_params": {"lr": 1e-3}}
    if given == "by place":
        tiny_model.fit(objectives, None, 1, None, "WarmupLinear", 0, Mine, **rest)
    elif given == "by name":
        tiny_model.fit(objectives, optimizer_class=Mine, **rest)
    else:
        tiny_model.fit(objectives, **rest)
    assert made == [Mine if given else Ours]
    assert all(torch.equal(value, before[key]) for key, value in tiny_model.named_parameters() if key in before)
    order = list(inspect.signature(SentenceTransformer.fit).parameters)
    assert order.index("optimizer_class") == 7  # after self and six that were passed by place


def test_a_length_that_the_template_fills_is_refused_by_the_setter_too(tiny_bloom, tmp_path):
    model = LacosSentenceTransformer(tiny_bloom)
    with pytest.raises(LacosError, match=r"max_seq_length=1 leaves no room for text: the template '\{text\}</s>'"):
        model.max_seq_length = 1
    assert model.max_seq_length == 512
    bare = LacosSentenceTransformer(tiny_bloom, transformer_options={"template": "{text}"})
    bare.max_seq_length = 1
    stock = SentenceTransformer(str(tiny_bloom))
    stock.max_seq_length = 1
    assert bare.preprocess(TEXTS)["input_ids"].tolist() == stock.preprocess(TEXTS)["input_ids"].tolist()
    bare.save(str(tmp_path / "model"))
    assert LacosSentenceTransformer(tmp_path / "model").max_seq_length == 1


@pytest.mark.parametrize("quantization", ["int8", "none"])
def test_new_tokens_get_rows_and_the_old_rows_stay(quantization, tiny_bloom, tmp_path):
    model = LacosSentenceTransformer(tiny_bloom, transformer_options={"quantization": quantization})
    before = model.encode(TEXTS)
    inner = model.transformer.model
    rows = inner.get_input_embeddings().weight.detach().clone()
    model.tokenizer.add_tokens(["<new>", "<newer>"])
    table = inner.resize_token_embeddings(len(rows) + 2)
    assert table is inner.get_input_embeddings()
    assert isinstance(table, LacosEmbedding8bit) == (quantization == "int8")
    assert len(table.weight) == inner.config.vocab_size == len(rows) + 2
    assert torch.equal(table.weight[:-2], rows)
    assert table(torch.tensor([len(rows)])).abs().sum() > 0
    assert (model.encode(TEXTS) == before).all()
    for name in ("model", "checkpoint-4"):  # the stored base has another table
        model.add_lora(name=name.replace("-", "")).save(str(tmp_path / name))
        assert (LacosSentenceTransformer(tmp_path / name).encode(TEXTS) == model.eval().encode(TEXTS)).all()
    assert len(inner.resize_token_embeddings(len(rows)).weight) == len(rows)


def test_what_an_8_bit_table_cannot_do_is_said(tiny_model):
    with pytest.raises(LacosError, match=r"8 bits and frozen.*tie_encoder_decoder=False"):
        DenoisingAutoEncoderLoss(tiny_model, tie_encoder_decoder=True)
    assert tiny_model.encode(TEXTS).shape == (4, 64)
    from peft import LoraConfig

    tiny_model.add_adapter(LoraConfig(target_modules=["word_embeddings"]), "table")
    with pytest.raises(LacosError, match=r"merge_adapter\(\) first"):
        tiny_model.transformer.model.resize_token_embeddings(600)
