"""`accelerate`: a stock model over any decoder packs its batches, and gives the embeddings that it gave before."""

import families
import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tiny import CORPUS

from lacos_st.decoder.generic import can_pack
from lacos_st.decoder.quantization import LacosLinear8bit
from lacos_st.model.accelerate import accelerate

TEXTS = list(CORPUS)


def stock(directory, **options):
    transformer = Transformer(str(directory), **options)
    transformer.tokenizer.padding_side = "right"
    return SentenceTransformer(modules=[transformer, Pooling(64, "mean")], device="cpu")


@pytest.fixture(params=sorted(families.CONFIGS))
def base(request, tiny_bloom, tmp_path):
    return families.write(request.param, tiny_bloom, tmp_path / request.param)


def test_embeddings_stay_what_they_were(base):
    model = stock(base)
    before = model.encode(TEXTS)
    after = accelerate(model).encode(TEXTS)
    np.testing.assert_allclose(after, before, atol=1e-4, rtol=1e-4)
    assert can_pack(model[0].model) == (base.name not in families.PADDED)
    np.testing.assert_allclose(np.stack([model.encode(text) for text in TEXTS]), after, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_neox"])
def test_in_8_bits_they_stay_close_to_full_precision(family, tiny_bloom, tmp_path):
    base = families.write(family, tiny_bloom, tmp_path / family)
    exact = stock(base).encode(TEXTS)
    eight = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
    model = accelerate(stock(base, model_kwargs=eight))
    assert {layer.outliers is None for layer in model.modules() if isinstance(layer, LacosLinear8bit)} == {False}
    found = model.encode(TEXTS)
    cosines = (found * exact).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(exact, axis=1)
    assert cosines.min() > 0.998
