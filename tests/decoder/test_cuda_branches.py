"""What runs on CUDA alone, on the CPU: tensors that say they are on a GPU, and stand-ins for CUDA's functions."""

import inspect

import pytest
import torch
from test_attention import HEADS, HIDDEN, eager_attention, layout_of
from torch.nn.attention import varlen

from lacos_st.decoder import kernels
from lacos_st.decoder.attention import attend
from lacos_st.decoder.quantization import _integer_product


class OnCuda(torch.Tensor):
    """A tensor in memory that takes the branches of one on a GPU."""

    is_cuda = True


def varlen_on_cpu(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, scale, window_size):
    """Attention sequence by sequence, in fp64."""
    assert torch.equal(cu_seq_q, cu_seq_k)
    assert cu_seq_q.dtype == torch.int32
    assert max_q == max_k == cu_seq_q.diff().max()
    assert window_size in ((-1, 0), (-1, -1))
    assert q.shape == k.shape == v.shape
    assert q.shape[-1] % 8 == 0, "fused kernels want head sizes that are multiples of 8"
    outputs = []
    for first, last in zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True):
        a, b, c = (x[first:last].transpose(0, 1).double() for x in (q, k, v))
        scores = a @ b.mT * scale
        if window_size == (-1, 0):
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
        outputs.append((scores.softmax(-1) @ c).transpose(0, 1))
    return torch.cat(outputs).to(q.dtype)


@pytest.mark.parametrize("mode", ["causal", "bidirectional"])
@pytest.mark.parametrize("lengths", [[12, 10, 10, 3, 1], [600, 20]])
def test_attention_in_one_call(mode, lengths, monkeypatch):
    calls = []
    signature = inspect.signature(varlen.varlen_attn)

    def stand_in(*args, **kwargs):
        signature.bind(*args, **kwargs)  # PyTorch's function takes what ours gives
        calls.append(kwargs)
        return varlen_on_cpu(*args, **kwargs)

    monkeypatch.setattr(varlen, "varlen_attn", stand_in)
    torch.manual_seed(0)
    qkv = torch.randn(sum(lengths), 3 * HIDDEN).bfloat16()
    ours = attend(qkv.as_subclass(OnCuda), layout_of(lengths), HEADS, mode).as_subclass(torch.Tensor)
    reference = eager_attention(qkv, lengths, HEADS, mode)
    assert len(calls) == 1
    assert (ours.double() - reference).norm() < 4e-3 * reference.norm()


@pytest.mark.parametrize("rows", [1, 16, 17, 40])
def test_an_integer_product_of_few_rows_is_padded(rows, monkeypatch):
    """cuBLASLt's integer product wants more than 16 rows."""
    seen = []

    def multiply(q, weight):
        seen.append(len(q))
        if len(q) <= 16:
            raise RuntimeError("self.size(0) needs to be greater than 16")
        return (q.long() @ weight.long()).int()

    torch.manual_seed(0)
    x, weight = torch.randn(rows, 24), torch.randint(-127, 128, (24, 8), dtype=torch.int8)
    expected = _integer_product(x, weight)
    monkeypatch.setattr(kernels, "multiply", multiply)
    actual = _integer_product(x.as_subclass(OnCuda), weight).as_subclass(torch.Tensor)
    assert seen == [max(rows, 17)]
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(actual, x @ weight.float() / 127, rtol=0.1, atol=0.3)
