import json

import numpy as np
import pytest
import torch
from tiny import CORPUS, write_tiny_bloom
from transformers import AutoTokenizer, BloomModel

from lacos_st.decoder.embedding_table import LacosEmbedding8bit
from lacos_st.decoder.quantization import LacosLinear8bit
from lacos_st.errors import LacosError
from lacos_st.model.model import LacosSentenceTransformer
from lacos_st.model.transformer import LacosTransformer


def test_the_base_is_8_bits_and_frozen(tiny_bloom):
    transformer = LacosTransformer(str(tiny_bloom))
    layers = [m for m in transformer.modules() if isinstance(m, torch.nn.Linear)]
    assert len(layers) == 8
    assert all(isinstance(layer, LacosLinear8bit) for layer in layers)
    assert isinstance(transformer.model.get_input_embeddings(), LacosEmbedding8bit)
    assert not any(p.requires_grad for p in transformer.parameters())
    assert not [p for p in transformer.parameters() if p.ndim == 2 and p.is_floating_point()]


def test_full_precision_equals_transformers(tiny_bloom):
    ours = LacosTransformer(str(tiny_bloom), quantization="none", template="{text}")
    stock = BloomModel.from_pretrained(tiny_bloom).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_bloom, padding_side="right")
    with torch.no_grad():
        features = ours.preprocess(list(CORPUS))
        expected = stock(**tokenizer(list(CORPUS), return_tensors="pt", padding=True)).last_hidden_state
        actual = ours(features)["token_embeddings"]
    real = features["attention_mask"].bool()
    torch.testing.assert_close(actual[real], expected[real], atol=1e-5, rtol=1e-5)


def test_int8_stays_close_to_full_precision(tiny_bloom):
    fp32 = LacosSentenceTransformer(tiny_bloom, transformer_options={"quantization": "none"})
    int8 = LacosSentenceTransformer(tiny_bloom)
    a, b = (model.encode(list(CORPUS), normalize_embeddings=True) for model in (fp32, int8))
    assert (a * b).sum(1).min() > 0.998


def test_what_is_stored_in_8_bits_is_not_taken_for_full_precision(tiny_bloom, tmp_path):
    LacosSentenceTransformer(tiny_bloom).save_pretrained(str(tmp_path / "model"))
    with pytest.raises(LacosError, match="stored in 8 bits"):
        LacosSentenceTransformer(tmp_path / "model", transformer_options={"quantization": "none"})


def test_answers_do_not_depend_on_batch_mates(tiny_model):
    alone = np.concatenate([tiny_model.encode([text], normalize_embeddings=True) for text in CORPUS])
    order = [3, 1, 4, 0, 9, 2, 6, 5, 10, 8, 7]
    together = tiny_model.encode([CORPUS[i] for i in order], normalize_embeddings=True, batch_size=11)
    assert (together * alone[order]).sum(1).min() >= 0.9999


def test_packed_batches_are_taken_as_they_come(tiny_bloom):
    padded = LacosSentenceTransformer(tiny_bloom)
    packed = LacosSentenceTransformer(tiny_bloom)
    packed[0].unpad_inputs = True
    assert "cu_seq_lens_q" in packed.preprocess(list(CORPUS))
    a, b = (model.encode(list(CORPUS), normalize_embeddings=True) for model in (padded, packed))
    assert (a * b).sum(1).min() > 0.9999
    assert np.abs(a @ a.T - np.eye(len(a))).max() > 0.05  # other texts are farther apart than that


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "bert"}, "'bert' model, an encoder, and LACoS adapts decoders"),
        ({"model_type": "xlm-roberta"}, "'xlm-roberta' model, an encoder"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "'t5' model, an encoder"),
        ({"model_type": "vit"}, "'vit' model, and LACoS adapts decoders of text"),
        ({"model_type": "nobody-knows"}, "'nobody-knows' model, and LACoS adapts decoders of text"),
    ],
)
def test_what_is_no_decoder_is_refused(tmp_path, config, message):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(LacosError, match=message):
        LacosTransformer(str(tmp_path))


def test_lora_targets_and_names_are_checked(tiny_model):
    with pytest.raises(LacosError, match="q_proj"):
        tiny_model.add_lora(targets=("q_proj",), name="other")
    with pytest.raises(LacosError, match="exists already"):
        tiny_model.add_lora()


def test_several_adapters_swap_and_switch_off(tiny_bloom):
    model = LacosSentenceTransformer(tiny_bloom)
    base = model.encode(CORPUS[:2])
    model.add_lora(rank=2, name="a")
    model.add_lora(rank=3, name="b", targets=("dense",))
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.2)
    model.set_adapter("a")
    first = model.encode(CORPUS[:2])
    model.set_adapter("b")
    assert np.abs(model.encode(CORPUS[:2]) - first).max() > 1e-3
    model.set_adapter("a")
    np.testing.assert_array_equal(model.encode(CORPUS[:2]), first)
    model.disable_adapters()
    np.testing.assert_array_equal(model.encode(CORPUS[:2]), base)


HUB_SIZES = {  # config.json of the published checkpoints: hidden size, layers, heads
    "bloom-560m": (1024, 24, 16),
    "bloom-1b1": (1536, 24, 16),
    "bloom-1b7": (2048, 24, 16),
    "bloom-3b": (2560, 30, 32),
    "bloom-7b1": (4096, 30, 32),
}


@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("size", HUB_SIZES)
def test_directories_laid_out_like_the_hubs_load_train_and_save(size, prefix, tmp_path):
    from datasets import Dataset
    from safetensors.torch import load_file, save_file
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

    from lacos_st.training.losses import MaskedMultipleNegativesRankingLoss

    hidden, _, heads = HUB_SIZES[size]
    directory = write_tiny_bloom(tmp_path / size, hidden=hidden // 16, layers=2, heads=heads // 16)
    state = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(state)
    shards = {"model_00001-of-00002.safetensors": names[::2], "model_00002-of-00002.safetensors": names[1::2]}
    for file, keys in shards.items():
        tensors = {prefix + key: state[key].half().contiguous() for key in keys}
        save_file(tensors, directory / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {prefix + key: file for file, keys in shards.items() for key in keys}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((directory / "config.json").read_text())
    # The fields as published, old names and all.
    config |= {"n_embed": config["hidden_size"], "num_attention_heads": config["n_head"], "torch_dtype": "float16"}
    config |= {"masked_softmax_fusion": True, "offset_alibi": 100, "skip_bias_add": True, "unk_token_id": 0}
    config.pop("dtype", None)
    (directory / "config.json").write_text(json.dumps(config))

    model = LacosSentenceTransformer(directory).add_lora(rank=2, targets=["query_key_value"])
    weights = model[0].model.h[1].mlp.dense_h_to_4h.int8_weight()
    restored = weights[0].float() * weights[1][:, None] / 127
    original = state["h.1.mlp.dense_h_to_4h.weight"]
    assert (restored - original).abs().max() <= original.abs().max() / 245  # half a step of 1/127, and fp16
    data = Dataset.from_dict({"anchor": list(CORPUS[:4]), "positive": list(CORPUS[4:8])})
    SentenceTransformerTrainer(
        model,
        SentenceTransformerTrainingArguments(
            str(tmp_path / "run"), max_steps=1, per_device_train_batch_size=4, use_cpu=True, save_strategy="no",
            report_to="none", optim="adamw_8bit",
        ),
        train_dataset=data,
        loss=MaskedMultipleNegativesRankingLoss(model),
    ).train()  # fmt: skip
    model.save_pretrained(str(tmp_path / "saved"))
    loaded = LacosSentenceTransformer(tmp_path / "saved")
    assert np.isfinite(loaded.encode(CORPUS[:2])).all()


def test_an_adapter_of_attention_is_under_one_percent_trains(tiny_bloom):
    """The share at the sizes of the Hub's checkpoints, from what `add_lora` really adds to a small one."""
    model = LacosSentenceTransformer(tiny_bloom).add_lora(targets=["query_key_value"])
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    config = model[0].config
    by_width = trained / (config.n_layer * config.hidden_size)  # parameters of a layer's adapter grow with the width
    for hidden, layers, _ in HUB_SIZES.values():
        base = 250880 * hidden + layers * (12 * hidden**2 + 13 * hidden) + 4 * hidden
        assert 0.0005 < by_width * layers * hidden / base < 0.01
