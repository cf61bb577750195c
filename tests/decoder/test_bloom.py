"""The packed forward pass equals transformers' own, whatever the packing, and its gradients too."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from transformers import AutoModel, BitsAndBytesConfig, BloomConfig, BloomModel

from lacos_st.decoder import bloom, kernels
from lacos_st.decoder.bloom import LacosBloomModel
from lacos_st.decoder.fast_path import accelerate_
from lacos_st.decoder.quantization import resolve_compute_form
from lacos_st.errors import LacosError

VOCAB, HIDDEN, LAYERS, HEADS = 97, 48, 3, 6  # 6 heads: ALiBi's slopes for a number that is no power of 2


def stock(seed=0, **config):
    torch.manual_seed(seed)
    settings_ = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": HEADS} | config
    model = BloomModel(BloomConfig(**settings_)).eval()
    for parameter in model.parameters():  # stock initialisation leaves biases 0 and layer norms 1
        parameter.data.normal_(0, 0.15 if parameter.dim() > 1 else 0.3)
    return model


def fast(**kwargs):
    return accelerate_(stock(**kwargs))


def batch(lengths, width=None, side="right", seed=0):
    generator = torch.Generator().manual_seed(seed)
    width = width or max(lengths)
    ids, mask = (
        torch.zeros(len(lengths), width, dtype=torch.long),
        torch.zeros(len(lengths), width, dtype=torch.long),
    )
    for row, length in enumerate(lengths):
        place = slice(0, length) if side == "right" else slice(width - length, width)
        ids[row, place] = torch.randint(1, VOCAB, (length,), generator=generator)
        mask[row, place] = 1
    return ids, mask


def flatten(ids, mask):
    lengths = mask.sum(1)
    return ids[mask.bool()][None], torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("lengths", [[9], [5, 5, 5], [1, 7, 3, 12, 12], [200, 3, 180, 131]])
@pytest.mark.parametrize("causal", [True, False])
def test_equals_transformers(lengths, side, causal):
    ids, mask = batch(lengths, side=side)
    reference = stock(is_causal=causal)
    with torch.no_grad():
        expected = reference(ids, attention_mask=mask, output_hidden_states=True)
        result = fast(is_causal=causal)(ids, attention_mask=mask, output_hidden_states=True)
    real = mask.bool()
    assert len(result.hidden_states) == len(expected.hidden_states) == LAYERS + 1
    for ours, theirs in zip(result.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(ours[real], theirs[real], atol=1e-5, rtol=1e-5)
    assert result.last_hidden_state[~real].abs().sum() == 0


def test_flattened_equals_padded():
    ids, mask = batch([4, 150, 9, 9, 1])
    model = fast()
    flat, cu = flatten(ids, mask)
    with torch.no_grad():
        padded = model(ids, attention_mask=mask).last_hidden_state
        packed = model(flat, cu_seq_lens_q=cu, max_length_q=150).last_hidden_state
    assert packed.shape == (1, int(mask.sum()), HIDDEN)
    torch.testing.assert_close(packed[0], padded[mask.bool()], atol=1e-5, rtol=1e-5)


def test_empty_sequences_stay_finite():
    model = fast()
    ids, mask = batch([3, 0, 5])
    flat, cu = flatten(ids, mask)
    with torch.no_grad():
        padded = model(ids, attention_mask=mask).last_hidden_state
        packed = model(flat, cu_seq_lens_q=cu).last_hidden_state
        nothing = model(ids, attention_mask=torch.zeros_like(mask), output_hidden_states=True)
    assert padded.isfinite().all()
    torch.testing.assert_close(packed[0], padded[mask.bool()])
    assert nothing.last_hidden_state.shape == (3, 5, HIDDEN)
    assert all(state.isfinite().all() and state.shape == (3, 5, HIDDEN) for state in nothing.hidden_states)
    empty = model(torch.zeros(1, 0, dtype=torch.long), cu_seq_lens_q=torch.tensor([0, 0])).last_hidden_state
    assert empty.shape == (1, 0, HIDDEN)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=2, max_size=7),
    order=st.randoms(use_true_random=False),
    extra=st.integers(0, 9),
    side=st.sampled_from(["left", "right"]),
)
def test_invariant_to_mates_order_padding_and_packing(lengths, order, extra, side):
    model = fast()
    ids, mask = batch(lengths, width=max(lengths) + extra, side=side)
    rows = list(range(len(lengths)))
    order.shuffle(rows)
    with torch.no_grad():
        together = model(ids, attention_mask=mask).last_hidden_state
        shuffled = model(ids[rows], attention_mask=mask[rows]).last_hidden_state
        alone = model(ids[:1][mask[:1].bool()][None]).last_hidden_state
        flat, cu = flatten(ids[rows], mask[rows])
        packed = model(flat, cu_seq_lens_q=cu).last_hidden_state
    torch.testing.assert_close(shuffled, together[rows], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(alone[0], together[0][mask[0].bool()], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(packed[0], together[rows][mask[rows].bool()], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("lengths", [[7, 3, 12, 12, 9], [140, 20]])
def test_gradients_equal_transformers(lengths, checkpointing):
    """Every parameter's, as when a model is pretrained with this code."""
    ids, mask = batch(lengths)  # with left padding transformers' own result is NaN in fp64
    weight = torch.randn(*ids.shape, HIDDEN, dtype=torch.double) * mask[..., None]
    gradients = []
    for model in (stock().double(), fast().double()):
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        (model(ids, attention_mask=mask).last_hidden_state * weight).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, expected in gradients[0].items():
        # stock computes its ALiBi in fp32 even here
        torch.testing.assert_close(gradients[1][name], expected, atol=1e-4, rtol=1e-4, msg=name)


def test_checkpointing_recomputes_blocks():
    model = fast().train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    calls = []
    model.h[0].mlp.dense_h_to_4h.register_forward_hook(lambda *_: calls.append(1))
    ids, mask = batch([5, 4])
    model(ids, attention_mask=mask).last_hidden_state.sum().backward()
    assert len(calls) == 2


def test_symmetric_model_sees_both_sides_and_ignores_padding():
    model = accelerate_(stock(lacos_attention="symmetric"))
    ids, mask = batch([6, 9, 4])
    with torch.no_grad():
        first = model(ids, attention_mask=mask).last_hidden_state
        alone = model(ids[2:, :4]).last_hidden_state
        ids[0, 5] = ids[0, 5] % (VOCAB - 1) + 1
        changed = model(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(alone[0], first[2, :4], atol=1e-5, rtol=1e-5)
    assert (changed[0, 0] - first[0, 0]).abs().max() > 1e-4
    torch.testing.assert_close(changed[1:], first[1:])
    with pytest.raises(LacosError, match="'sideways': it is 'symmetric' or absent"):
        accelerate_(stock(lacos_attention="sideways"))


def test_attention_dropout_and_hidden_dropout_only_in_training():
    model = fast(attention_dropout=0.5, hidden_dropout=0.5)
    ids, _ = batch([9, 9])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).last_hidden_state, model(ids).last_hidden_state)
        model.train()
        assert (model(ids).last_hidden_state - model(ids).last_hidden_state).abs().max() > 0.01


def test_caches_and_attentions_go_through_transformers():
    ids, mask = batch([8, 8])
    model, reference = fast(), stock()
    with torch.no_grad():
        expected = reference(ids, attention_mask=mask, use_cache=True, output_attentions=True)
        result = model(ids, attention_mask=mask, use_cache=True, output_attentions=True)
    assert result.past_key_values.get_seq_length() == 8
    torch.testing.assert_close(result.attentions, expected.attentions)
    embedded = model(inputs_embeds=model.word_embeddings(ids), attention_mask=mask).last_hidden_state
    torch.testing.assert_close(embedded, expected.last_hidden_state, atol=1e-5, rtol=1e-5)


def test_input_errors():
    model = fast()
    ids, _ = batch([4])
    with pytest.raises(ValueError, match="cu_seq_lens_q ending at 9"):
        model(ids, cu_seq_lens_q=torch.tensor([0, 9]))
    with pytest.raises(ValueError, match="exactly one"):
        model()
    with pytest.raises(ValueError, match="attention_mask"):
        model(ids, attention_mask=torch.ones(1, 1, 4, 4))
    with pytest.raises(LacosError, match="Linear"):
        accelerate_(torch.nn.Linear(2, 2))


def test_from_pretrained_and_back(tmp_path):
    reference = stock()
    reference.save_pretrained(tmp_path / "stock")
    model = LacosBloomModel.from_pretrained(tmp_path / "stock").eval()
    model.save_pretrained(tmp_path / "ours")
    again = AutoModel.from_pretrained(tmp_path / "ours").eval()
    assert type(again) is BloomModel
    ids, mask = batch([5, 8])
    with torch.no_grad():
        expected = reference(ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(again(ids, attention_mask=mask).last_hidden_state, expected)
        ours = model(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(ours[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=1e-5)


@pytest.fixture
def int8_model(tmp_path):
    stock().save_pretrained(tmp_path)
    return lambda: AutoModel.from_pretrained(
        tmp_path, quantization_config=BitsAndBytesConfig(load_in_8bit=True), dtype=torch.float32
    ).eval()


@pytest.mark.parametrize("accelerate_first", [False, True])
@pytest.mark.parametrize("form", ["w8a8", "w8a16", "bnb"])
def test_lora_over_int8_trains_with_the_right_gradients(int8_model, form, accelerate_first):
    """Against the same adapters over a full-precision copy of the same int8 weights."""
    torch.manual_seed(0)
    model = int8_model()
    adapter = LoraConfig(r=4, target_modules=["query_key_value", "dense_4h_to_h"], init_lora_weights=False)
    if accelerate_first:
        accelerate_(model, form, form)
    model.add_adapter(adapter)
    if not accelerate_first:
        accelerate_(model, form, form)
    reference = stock()
    state = {name.replace("base_layer.", ""): value for name, value in model.state_dict().items()}
    for name, value in list(state.items()):
        if f"{name.removesuffix('weight')}SCB" in state and name.endswith("weight"):
            state[name] = value * (state[f"{name.removesuffix('weight')}SCB"] / 127)[:, None]
    reference.load_state_dict({k: v for k, v in state.items() if k in reference.state_dict()})
    reference.add_adapter(adapter)
    reference.load_state_dict({k: v for k, v in model.state_dict().items() if "lora_" in k}, strict=False)
    ids, mask = batch([7, 30, 12])
    weight = torch.randn(*ids.shape, HIDDEN) * mask[..., None]
    gradients = []
    for each in (reference, model):
        each.train()
        (each(ids, attention_mask=mask).last_hidden_state * weight).sum().backward()
        found = {k: p.grad.flatten() for k, p in each.named_parameters() if p.requires_grad}
        assert found
        assert all("lora_" in name for name in found)
        gradients.append(torch.cat([found[k] for k in sorted(found)]))
    cosine = torch.cosine_similarity(*gradients, dim=0)
    error = (gradients[0] - gradients[1]).norm() / gradients[0].norm()
    assert cosine > (0.999 if form == "w8a8" else 0.99999)
    assert error < (3e-2 if form == "w8a8" else 1e-3)


@pytest.mark.parametrize(
    "targets", [[], ["query_key_value"], ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]]
)
def test_fused_encoding_equals_layer_by_layer(int8_model, targets, monkeypatch):
    """Also without a C compiler, and with adapters on, off and in another order of calls."""
    torch.manual_seed(0)
    model = accelerate_(int8_model(), "w8a8")
    if targets:
        model.add_adapter(LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    model.eval()
    ids, mask = batch([7, 30, 12, 12])
    real = mask.bool()

    def encode():
        return model(ids, attention_mask=mask).last_hidden_state[real].detach()

    layer_by_layer = encode()  # with gradients: every layer by itself
    with torch.no_grad():
        fused = encode()
        if targets:
            model.disable_adapters()
            assert (encode() - fused).abs().max() > 0.1
            model.enable_adapters()
            torch.testing.assert_close(encode(), fused)
        monkeypatch.setattr(kernels, "usable", lambda x: False)
        without_compiler = encode()
    for other in (layer_by_layer, without_compiler):
        cosine = torch.cosine_similarity(fused, other, dim=-1).min()
        assert cosine > 0.9999
        assert (fused - other).norm() / other.norm() < 1e-2  # where a value rounds to the neighbouring integer


def test_auto_avoids_w8a8_where_channels_stick_out(int8_model):
    forms = {"compute_form": "w8a8", "training_form": resolve_compute_form("auto", "cpu", training=True)}
    model = accelerate_(int8_model())
    for block in model.h:  # the random gains of this model are near 0 at times: their median is not
        block.input_layernorm.weight.data.fill_(1.0)
        block.post_attention_layernorm.weight.data.fill_(1.0)
    layer = accelerate_(model).h[0].mlp.dense_h_to_4h
    assert {"compute_form": layer.compute_form, "training_form": layer.training_form} == forms
    model.h[1].post_attention_layernorm.weight.data[7] = -20.0
    assert bloom.outlier_ratio(model) == 20
    accelerate_(model)
    assert (layer.compute_form, layer.training_form) == ("w8a16", "w8a16")
    accelerate_(model, "w8a8", "bnb")
    assert (layer.compute_form, layer.training_form) == ("w8a8", "bnb")


@pytest.mark.slow
def test_compiles_with_dynamic_shapes(int8_model):
    model = accelerate_(int8_model(), "w8a8")
    compiled = torch.compile(model, dynamic=True)
    with torch.no_grad():
        for lengths in ([5, 9, 9], [12, 3], [31]):
            ids, mask = batch(lengths)
            expected = model(ids, attention_mask=mask).last_hidden_state[mask.bool()]
            found = compiled(ids, attention_mask=mask).last_hidden_state[mask.bool()]
            assert torch.cosine_similarity(found, expected, dim=-1).min() > 0.9999
