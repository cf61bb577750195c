"""What is computed depends on no default of the process: neither its dtype nor its device, which others may change."""

import threading

import pytest
import torch

from lacos_st.decoder import kernels
from lacos_st.decoder.attention import _bias, _fold_alibi, _slopes, attend, attend_by_kernel
from lacos_st.decoder.packing import plan
from lacos_st.model.dense import LacosDense, LacosLayerNorm
from lacos_st.training.losses import MaskedMultipleNegativesRankingLoss

CPU = torch.device("cpu")
TEXTS = ["a man plays", "dogs run through the grass", "the stock market fell sharply on Monday", "dogs"]


@pytest.fixture(params=["bfloat16", "float64", "meta"])
def other_default(request):
    """A function that enters a process with other defaults; nothing cached is left from before."""

    def enter():
        for cached in (_slopes, _bias, _fold_alibi):
            cached.cache_clear()
        if request.param == "meta":
            torch.set_default_device("meta")
        else:
            torch.set_default_dtype(getattr(torch, request.param))

    yield enter
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)
    for cached in (_slopes, _bias, _fold_alibi):
        cached.cache_clear()


@pytest.mark.parametrize("mode", ["causal", "bidirectional", "symmetric"])
def test_attention(other_default, mode):
    torch.manual_seed(0)
    lengths = [300, 128, 100, 9, 1]
    qkv, starts = torch.randn(sum(lengths), 3 * 48), torch.tensor([0, *lengths]).cumsum(0)
    few, few_starts = qkv[:10].clone(), starts[3:] - starts[3]
    expected = attend(qkv, plan(1, len(qkv), CPU, None, starts), 6, mode)
    short = attend(few, plan(1, 10, CPU, None, few_starts), 6, mode)
    other_default()
    torch.testing.assert_close(attend(qkv, plan(1, len(qkv), CPU, None, starts), 6, mode), expected, rtol=0, atol=0)
    if kernels.library() is not None:
        made = attend_by_kernel(few, plan(1, 10, CPU, None, few_starts), 6, mode)
        torch.testing.assert_close(made, short, rtol=1e-4, atol=1e-5)


def test_a_padded_batch_is_planned_alike(other_default):
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 1]])
    expected = plan(4, 4, CPU, mask, None)
    empty = plan(1, 0, CPU, None, torch.zeros(1, dtype=torch.long))
    other_default()
    layout = plan(4, 4, CPU, mask, None)
    assert torch.equal(layout.cu_seqlens, expected.cu_seqlens)
    assert torch.equal(layout.places, expected.places)
    for ours, theirs in zip(layout.groups, expected.groups, strict=True):
        assert ours[:4] == theirs[:4]
        for a, b in zip(ours[4:], theirs[4:], strict=True):
            assert (a is b is None) or torch.equal(a, b)
    assert torch.equal(plan(1, 0, CPU, None, mask.new_zeros(1)).cu_seqlens, empty.cu_seqlens)


@pytest.mark.parametrize("attention", ["causal", "bidirectional", "symmetric"])
@pytest.mark.parametrize("form", ["w8a8", "w8a16"])
def test_a_model_gives_the_same_embeddings(other_default, tiny_bloom, attention, form):
    from lacos_st.model.model import LacosSentenceTransformer

    options = {"attention": attention, "compute_form": form}
    model = LacosSentenceTransformer(tiny_bloom, device="cpu", transformer_options=options).eval()
    features = model.preprocess(TEXTS)
    with torch.no_grad():
        expected = model(dict(features))["sentence_embedding"]
        other_default()
        torch.testing.assert_close(model(dict(features))["sentence_embedding"], expected, rtol=0, atol=1e-6)


def test_a_loss_and_its_gradient(other_default, tiny_model):
    columns = [tiny_model.preprocess(part) for part in (TEXTS[:2], TEXTS[2:], [TEXTS[1], TEXTS[3]])]
    function = MaskedMultipleNegativesRankingLoss(tiny_model.eval(), mask_margin=0.1)
    trained = [p for p in tiny_model.parameters() if p.requires_grad]

    def computed():
        value = function([dict(column) for column in columns], None)
        return value.detach(), *torch.autograd.grad(value, trained)

    expected = computed()
    other_default()
    for ours, theirs in zip(computed(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_encoding_while_others_load_in_16_bits(tiny_model):
    """transformers makes the dtype it loads in the process's default, for as long as it loads."""
    tiny_model.eval()
    expected = tiny_model.encode(TEXTS)
    done, stop = threading.Event(), threading.Event()

    def load():
        while not stop.is_set():
            torch.set_default_dtype(torch.bfloat16)
            done.set()
        torch.set_default_dtype(torch.float32)

    other = threading.Thread(target=load)
    other.start()
    try:
        done.wait()
        for cached in (_slopes, _bias, _fold_alibi):
            cached.cache_clear()
        for _ in range(5):
            assert abs(tiny_model.encode(TEXTS) - expected).max() < 1e-6
    finally:
        stop.set()
        other.join()


def test_modules_with_weights_load_them_as_they_were_saved(tmp_path):
    made = {"dense": LacosDense(3, 2), "norm": LacosLayerNorm(3)}
    for name, module in made.items():
        (tmp_path / name).mkdir()
        module.save(str(tmp_path / name))
    torch.set_default_dtype(torch.bfloat16)
    try:
        loaded = {name: type(module).load(str(tmp_path / name)) for name, module in made.items()}
    finally:
        torch.set_default_dtype(torch.float32)
    for name, module in made.items():
        for key, value in module.state_dict().items():
            torch.testing.assert_close(loaded[name].state_dict()[key], value, rtol=0, atol=0)


@pytest.mark.skipif(kernels.library() is None, reason="no C compiler")
def test_tensors_on_another_device_never_reach_c():
    for kernel in (lambda x: kernels.quantize(x), lambda x: kernels.scale(x.int(), x[:, 0].contiguous(), None)):
        with pytest.raises(TypeError, match="on the CPU, not"):
            kernel(torch.ones(2, 64, device="meta"))
