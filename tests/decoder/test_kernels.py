"""The C kernels compute what PyTorch's operations compute."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from lacos_st.decoder import kernels
from lacos_st.decoder.quantization import quantize_rows

N, K, OUT = 37, 96, 160

needs_compiler = pytest.mark.skipif(kernels.library() is None, reason="no C compiler")


@pytest.fixture
def data():
    torch.manual_seed(0)
    return {
        "x": torch.randn(N, K) * torch.logspace(-6, 6, N)[:, None],
        "acc": torch.randint(-(10**6), 10**6, (N, OUT), dtype=torch.int32),
        "s": torch.rand(N) * 1e-2,
        "w": torch.rand(OUT) * 1e-1,
        "bias": torch.randn(OUT),
        "more": torch.randn(N, OUT),
        "gain": torch.randn(OUT),
        "shift": torch.randn(OUT),
    }


def product(data):
    return data["acc"].double() * data["s"][:, None] * data["w"] / 127


def assert_rounded(q, s, expected):
    """q * s is ``expected`` to half a step of each row, and the rows use the full range."""
    step = expected.abs().amax(1) / 127
    torch.testing.assert_close(s.double(), step, rtol=1e-5, atol=0)
    assert ((q * s[:, None]).double() - expected).abs().div(step[:, None]).max() < 0.51
    assert (q.abs().amax(1) == 127).all()


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2])
def test_quantize(data, threads, monkeypatch):
    monkeypatch.setattr(kernels, "_PARALLEL_FROM", 0 if threads == 2 else 10**9)
    q, s = kernels.quantize(data["x"])
    expected_q, expected_s = quantize_rows(data["x"])
    assert (q - expected_q).abs().max() <= 1  # a tie may round the other way
    torch.testing.assert_close(s, expected_s[:, 0])
    q, s = kernels.quantize(data["more"], data["w"])
    assert_rounded(q, s, (data["more"] * data["w"]).double())


@needs_compiler
@pytest.mark.skipif(not hasattr(kernels.library(), "multiply"), reason="no AVX2")
@pytest.mark.parametrize("threads", [1, 2])
@given(
    n=st.integers(1, 40),
    k=st.integers(1, 300),
    o=st.integers(1, 70),
    seed=st.integers(0, 2**31),
)
def test_multiply_is_exact(threads, n, k, o, seed):
    generator = torch.Generator().manual_seed(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_multiplies", lambda: True)
        patch.setattr(kernels, "_PARALLEL_FROM", 0 if threads == 2 else 10**9)
        q, w = (torch.randint(-127, 128, size, generator=generator, dtype=torch.int8) for size in ((n, k), (o, k)))
        q[0], w[0] = 127, -127  # the largest sums
        expected = (q.long() @ w.long().t()).int()
        assert (kernels.multiply(q, w.t()) == expected).all()
        assert (kernels.multiply(q, w.t().contiguous()) == expected).all()


@needs_compiler
def test_zero_and_broken_rows():
    x = torch.randn(4, K)
    x[1], x[2, 5], x[3, 7] = 0, float("nan"), float("inf")
    q, s = kernels.quantize(x)
    rows = q * s[:, None]
    assert (rows[1] == 0).all()
    assert rows[0].isfinite().all()
    assert rows[2].isnan().any(), "a NaN must not vanish in an integer"
    assert not rows[3].isfinite().all()


@needs_compiler
@pytest.mark.parametrize("keep", [False, True])
def test_norm_quantize(data, keep):
    q, s, y = kernels.norm_quantize(data["more"], data["gain"], data["shift"], 1e-5, keep)
    expected = functional.layer_norm(data["more"], (OUT,), data["gain"], data["shift"], 1e-5)
    assert_rounded(q, s, expected.double())
    assert (y is not None) is keep
    if keep:
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("more", [False, True])
def test_scale(data, bias, more):
    y = kernels.scale(data["acc"], data["s"], data["w"], data["bias"] if bias else None, data["more"] if more else None)
    expected = product(data) + (data["bias"] if bias else 0) + (data["more"] if more else 0)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    plain = kernels.scale(data["acc"], data["s"], None)
    torch.testing.assert_close(plain, data["acc"] * data["s"][:, None] / 127)


@needs_compiler
@pytest.mark.parametrize("keep", [False, True])
def test_scale_add_norm_quantize(data, keep):
    h, q, s, y = kernels.scale_add_norm_quantize(
        data["acc"], data["s"], data["w"], data["bias"], data["more"], data["gain"], data["shift"], 1e-5, keep
    )
    expected = product(data) + data["bias"] + data["more"]
    torch.testing.assert_close(h.double(), expected, rtol=1e-5, atol=1e-5)
    normed = functional.layer_norm(expected, (OUT,), data["gain"].double(), data["shift"].double(), 1e-5)
    assert_rounded(q, s, normed)
    if keep:
        torch.testing.assert_close(y.double(), normed, rtol=1e-4, atol=1e-4)


@needs_compiler
@pytest.mark.parametrize("more", [False, True])
def test_scale_gelu_quantize(data, more):
    q, s, y = kernels.scale_gelu_quantize(
        data["acc"], data["s"], data["w"], data["bias"], data["more"] if more else None, keep=True
    )
    before = product(data) + data["bias"] + (data["more"] if more else 0)
    expected = functional.gelu(before, approximate="tanh")
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-6)
    assert_rounded(q, s, expected)


@needs_compiler
def test_gelu_over_its_whole_range():
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-1e4, 1e4, -0.0])])[None]
    ones, zeros = torch.ones(1), torch.zeros(x.shape, dtype=torch.int32)
    weights = torch.ones(x.shape[1])
    _, _, y = kernels.scale_gelu_quantize(zeros, ones, weights, x[0].contiguous(), keep=True)
    torch.testing.assert_close(y.double(), functional.gelu(x.double(), approximate="tanh"), rtol=2e-6, atol=3e-7)


@needs_compiler
def test_denormals_survive_loading():
    """Code linked with -ffast-math would flush them to zero in the whole process."""
    assert torch.tensor(1e-40) * torch.tensor(1.0) != 0


@needs_compiler
@pytest.mark.parametrize("mode", ["causal", "bidirectional", "symmetric"])
@pytest.mark.parametrize("dim", [20, 32, 64])
def test_attend(mode, dim):
    torch.manual_seed(0)
    heads, lengths = 3, [1, 9, 0, 40]
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    qkv, slopes = torch.randn(sum(lengths), heads * 3 * dim) * 3, torch.tensor([0.5, 0.03, 0.9])
    y = kernels.attend(qkv, starts, slopes, mode)
    for first, length in zip(starts.tolist(), lengths, strict=False):
        q, k, v = qkv[first : first + length].double().view(length, heads, 3, dim).permute(2, 1, 0, 3)
        distance = torch.arange(length)[None, :] - torch.arange(length)[:, None]
        bias = -distance.abs() if mode == "symmetric" else distance
        scores = q @ k.mT / dim**0.5 + slopes[:, None, None] * bias
        if mode == "causal":
            scores = scores.masked_fill(distance > 0, float("-inf"))
        expected = (scores.softmax(-1) @ v).transpose(0, 1).reshape(length, heads * dim)
        torch.testing.assert_close(y[first : first + length].double(), expected, rtol=1e-4, atol=1e-5)


def test_other_dtypes_and_strides_never_reach_c():
    x = torch.randn(4, 64)
    for bad in (x.bfloat16(), x.double(), torch.randn(64, 4).t()):
        with pytest.raises(TypeError, match="contiguous float32"):
            kernels.quantize(bad)


def test_encoding_under_autocast_is_finite_and_close(tiny_model):
    for key, parameter in tiny_model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.1)
    features = tiny_model.eval().preprocess(["a man plays", "dogs run through the grass"])
    with torch.no_grad():
        expected = tiny_model(dict(features))["sentence_embedding"]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = tiny_model(dict(features))["sentence_embedding"]
    assert torch.cosine_similarity(expected, actual).min() > 0.999
