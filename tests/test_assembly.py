"""A recipe becomes what it says; where it says nothing, the base decides."""

import pytest

from lacos_st import LacosConfig, LacosSentenceTransformer
from lacos_st.assembly import EMBEDDING_RATE, PLAIN_RATE, adapter_settings, build_arguments, build_model


@pytest.fixture
def saved(tiny_bloom, tmp_path):
    LacosSentenceTransformer(tiny_bloom).save(str(tmp_path / "saved"))
    return str(tmp_path / "saved")


def test_a_base_that_makes_embeddings_already_learns_slowly(tiny_bloom, saved, tmp_path):
    def rate(base, **options):
        config = LacosConfig(base=str(base), **options)
        return build_arguments(config, tmp_path, 100, None, build_model(config)).learning_rate

    assert [rate(tiny_bloom), rate(saved), rate("bloom-mini")] == [PLAIN_RATE, EMBEDDING_RATE, EMBEDDING_RATE]
    assert rate(saved, learning_rate=1e-3) == 1e-3


def test_the_adapter_is_as_the_recipe_says(saved):
    asked = {"lora_rank": 3, "lora_alpha": 5, "lora_dropout": 0.1, "lora_targets": ["dense", "dense_4h_to_h"]}
    assert adapter_settings(build_model(LacosConfig(base=saved, **asked))) == asked
