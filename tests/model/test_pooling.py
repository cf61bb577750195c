import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.sentence_transformer.modules import Pooling

from lacos_st.model.pooling import LacosPooling

MODES = ["weightedmean", "lasttoken", "mean", "max", "cls", "mean_sqrt_len_tokens"]


def prompts_of(lengths, width):
    """A mask of the first tokens of each row."""
    return (torch.arange(width) < torch.tensor(lengths)[:, None]).long()


def batch(lengths, width=None, seed=0):
    width = width or max(lengths)
    tokens = torch.randn(len(lengths), width, 4, generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    return {"token_embeddings": tokens, "attention_mask": mask}


@pytest.mark.parametrize("mode", MODES)
def test_equals_st_without_prompts(mode):
    features = batch([3, 5, 1])
    ours = LacosPooling(4, mode)(dict(features))["sentence_embedding"]
    stock = Pooling(4, mode)(dict(features))["sentence_embedding"]
    assert torch.equal(ours, stock)


def test_embeddings_are_fp32_whatever_the_tokens_are():
    features = batch([3, 5])
    features["token_embeddings"] = features["token_embeddings"].bfloat16()
    result = LacosPooling(4)(features)
    assert result["sentence_embedding"].dtype == torch.float32
    assert result["token_embeddings"].dtype == torch.bfloat16


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(3, 6), st.integers(0, 2)), min_size=2, max_size=5),
    st.sampled_from(["weightedmean", "lasttoken", "mean", "max"]),
)
def test_prompts_of_different_lengths_pool_as_each_text_alone(rows, mode):
    lengths, prompts = [length for length, _ in rows], [prompt for _, prompt in rows]
    features = batch(lengths)
    pooling = LacosPooling(4, mode, include_prompt=False)
    mask = prompts_of(prompts, max(lengths))
    together = pooling({**features, "prompt_mask": mask, "prompt_length": min(prompts)})["sentence_embedding"]
    for row, (length, prompt) in enumerate(rows):
        alone = {
            "token_embeddings": features["token_embeddings"][row : row + 1, :length],
            "attention_mask": features["attention_mask"][row : row + 1, :length],
            "prompt_length": prompt,
        }
        expected = Pooling(4, mode, include_prompt=False)(alone)["sentence_embedding"]
        torch.testing.assert_close(together[row : row + 1], expected)


@pytest.mark.parametrize("mode", ["weightedmean", "lasttoken", "mean", "max"])
def test_packed_equals_padded(mode):
    lengths = [3, 5, 2]
    padded = batch(lengths)
    packed = {
        "token_embeddings": padded["token_embeddings"][padded["attention_mask"].bool()][None],
        "cu_seq_lens_q": torch.tensor([0, 3, 8, 10]),
    }
    prompts = prompts_of([1, 0, 1], 5)
    pooling = LacosPooling(4, mode, include_prompt=False)
    real = padded["attention_mask"].bool()
    a = pooling({**padded, "prompt_mask": prompts})["sentence_embedding"]
    b = pooling({**packed, "prompt_mask": prompts[real][None]})["sentence_embedding"]
    torch.testing.assert_close(a, b)


def test_gradients_flow_through_grouped_rows():
    features = batch([3, 4])
    features["token_embeddings"].requires_grad_()
    pooling = LacosPooling(4, "mean", include_prompt=False)
    pooling({**features, "prompt_mask": prompts_of([1, 2], 4)})["sentence_embedding"].sum().backward()
    touched = features["token_embeddings"].grad.abs().sum(-1) > 0
    assert touched.tolist() == [[False, True, True, False], [False, False, True, True]]
