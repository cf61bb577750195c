"""The recipe's student: what it trains is what sentence-transformers reads."""

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from student import Widening, config, pool, save, states
from transformers import AutoTokenizer

from lacos_st import LacosSentenceTransformer
from lacos_st.decoder.bloom import LacosBloomModel
from lacos_st.embedded import unpack as embedded

TEXTS = [
    "A man is playing a guitar.",
    "Deux chiens courent.",
    "رجل يعزف على الجيتار في الشارع",
    "一个男人在街上弹吉他。",
]


def test_sentence_transformers_says_of_a_checkpoint_what_the_recipe_does(tmp_path):
    embedded.unpack("bloom-mini", tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    model = LacosBloomModel(config(len(tokenizer), 64, 1)).eval()
    save(model, tmp_path / "output", tmp_path / "base")
    ours = LacosSentenceTransformer(tmp_path / "output", transformer_options={"quantization": "none"})
    rows = [tokenizer(text)["input_ids"] for text in TEXTS]
    bounds = torch.tensor(np.cumsum([0, *map(len, rows)]))
    with torch.no_grad():
        expected = Widening(64)(states(model, torch.tensor([token for row in rows for token in row]), bounds), bounds)
    assert expected.shape == (len(TEXTS), 128)
    expected = torch.nn.functional.normalize(expected, dim=1)
    np.testing.assert_allclose(ours.encode(TEXTS), expected, atol=1e-5)
    np.testing.assert_allclose(SentenceTransformer(str(tmp_path / "output")).encode(TEXTS), expected, atol=1e-5)


def test_half_of_a_widened_state_is_the_state():
    """relu(x) - relu(-x) = x: the pairs say all that the state said, and cosines of V h are those of h."""
    torch.manual_seed(0)
    states = torch.nn.functional.pad(torch.randn(50, 30), (0, 2))
    wide = Widening(32).dense({"token_embeddings": states})["token_embeddings"]
    told = wide[:, :32] - wide[:, 32:]
    torch.testing.assert_close(told @ told.T, states @ states.T, atol=0.05, rtol=0)  # V is rounded to 16 bits


def test_a_mean_of_states_is_told_apart_better_when_widened():
    """Of random tokens: the more two sentences share, the higher their cosine; in few numbers noise hides that."""
    torch.manual_seed(0)
    states = torch.nn.functional.pad(torch.randn(4000, 32), (0, 2))
    shared = torch.arange(200) % 10
    bounds = torch.arange(0, 4001, 10)
    for pair, count in enumerate(shared):  # sentences 2i and 2i + 1 have `count` tokens in common
        first = 20 * pair
        states[first + 10 : first + 10 + count] = states[first : first + count]
    told = []
    for embeddings in (pool(states, bounds), Widening(34)(states, bounds)):
        unit = torch.nn.functional.normalize(embeddings, dim=1)
        told.append(np.corrcoef((unit[::2] * unit[1::2]).sum(1), shared)[0, 1])
    assert told[1] > told[0] + 0.02
