"""Which adapters are kept whole, and which are refused before they are trained."""

import numpy as np
import pytest
from peft import IA3Config, LoraConfig
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from tiny import CORPUS, randomise

from lacos_st.errors import LacosError
from lacos_st.model.adapters import check_plain_lora
from lacos_st.model.model import LacosSentenceTransformer

TEXTS = list(CORPUS[:5])


@pytest.mark.parametrize("start", ["olora", "pissa", "pissa_niter_4", "gaussian", "orthogonal", True])
@pytest.mark.parametrize("name", ["model", "checkpoint-3"])
def test_however_an_adapter_begins_it_is_saved_with_its_base(start, name, tiny_bloom, tmp_path):
    model = LacosSentenceTransformer(tiny_bloom, transformer_options={"quantization": "none"})
    plain = model.encode(TEXTS)
    model.add_adapter(LoraConfig(r=4, target_modules=["query_key_value"], init_lora_weights=start))
    if start != "orthogonal":  # which begins as no identity
        np.testing.assert_allclose(model.eval().encode(TEXTS), plain, atol=1e-4)
    randomise(model.eval())
    model.save(str(tmp_path / name))
    for cls in (LacosSentenceTransformer, SentenceTransformer):
        np.testing.assert_allclose(
            cls(str(tmp_path / name)).encode(TEXTS), model.encode(TEXTS), atol=1e-4, err_msg=cls.__name__
        )


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "lora_only"}, "bias"),
        ({"modules_to_save": ["ln_f"]}, "modules_to_save"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"layer_replication": [(0, 2), (1, 2)]}, "layer_replication"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"target_parameters": ["h.0.mlp"]}, "target_parameters"),
        ({"init_lora_weights": "mica"}, "init_lora_weights='mica'"),
    ],
)
def test_more_than_two_matrices_is_refused(settings, named):
    with pytest.raises(LacosError, match=rf"'mine' is LoRA with .*{named}"):
        check_plain_lora(LoraConfig(target_modules=["query_key_value"], **settings), "mine")


def test_other_sizes_and_places_are_plain():
    check_plain_lora(
        LoraConfig(
            r=3,
            lora_alpha=5,
            lora_dropout=0.2,
            use_rslora=True,
            rank_pattern={"dense": 2},
            alpha_pattern={"dense": 7},
            layers_to_transform=[0],
            exclude_modules=["h.1"],
            target_modules=["dense"],
            inference_mode=True,
        ),
        "mine",
    )
    with pytest.raises(LacosError, match="'mine' is IA3Config"):
        check_plain_lora(IA3Config(target_modules=["dense"], feedforward_modules=[]), "mine")


def test_it_is_refused_before_the_first_step(tiny_bloom):
    model = LacosSentenceTransformer(tiny_bloom, transformer_options={"quantization": "none"})
    model.add_adapter(LoraConfig(target_modules=["query_key_value"], trainable_token_indices=[1, 2]))
    with pytest.raises(LacosError, match="trainable_token_indices"):
        model.train()


@pytest.mark.parametrize(
    "name", ["1", "0", "self_attention", "weight", "lora_A", "h", "base_layer", "a+b(c", "ein Name", "الاسم"]
)
def test_an_adapter_keeps_its_own_tensors_whatever_the_others_are_named(name, tiny_bloom, tmp_path):
    model = LacosSentenceTransformer(tiny_bloom).add_lora(rank=2, name="first", targets=["query_key_value"])
    model.add_lora(rank=3, name=name, targets=["query_key_value"])
    randomise(model.eval())
    expected = {}
    for each in (name, "first"):
        model.set_adapter(each)
        expected[each] = model.encode(TEXTS)
    assert np.abs(expected["first"] - expected[name]).max() > 1e-3
    model.save(str(tmp_path / "model"), create_model_card=False)
    files = {"first": "adapter", name: f"adapter/{name}"}
    for each, folder in files.items():
        assert len(load_file(tmp_path / "model" / folder / "adapter_model.safetensors")) == 4, each
    loaded = LacosSentenceTransformer(tmp_path / "model")
    for each in files:
        loaded.set_adapter(each)
        np.testing.assert_array_equal(loaded.encode(TEXTS), expected[each], err_msg=each)


@pytest.mark.parametrize("name", ["", "  ", "a.b", "..", "a/b", "a\\b", "x" * 256, "é" * 128, 1, "keys", "training"])
def test_a_name_that_cannot_be_carried_is_refused_at_once(name, tiny_bloom):
    model = LacosSentenceTransformer(tiny_bloom)
    config = LoraConfig(target_modules=["query_key_value"])
    for add in (lambda: model.add_lora(name=name), lambda: model.add_adapter(config, name)):
        with pytest.raises(LacosError, match="An adapter cannot be named"):
            add()
    assert not model.transformer.adapter_names
