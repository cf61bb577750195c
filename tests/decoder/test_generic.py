"""Decoders of many families over packed tokens: what transformers' own forward pass gives, whatever the batch."""

import copy
import logging
import pickle

import families
import pytest
import torch
from transformers import AutoModel

from lacos_st.decoder.generic import can_pack, pack_

LENGTHS = [3, 17, 9, 17, 1, 12]
PACKED = sorted(families.CONFIGS.keys() - families.PADDED)


def batch(left=False):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, families.VOCABULARY, (len(LENGTHS), max(LENGTHS)), generator=generator)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(LENGTHS):
        place = slice(-length, None) if left else slice(length)
        mask[row, place] = 1
        if left:
            ids[row] = ids[row].roll(-length)
    return ids, mask


def states(model, ids, mask, **options):
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=mask, **options).last_hidden_state
    return [row[real.bool()] for row, real in zip(found, mask, strict=True)]


def reference(family, both_sides):
    """Each text by itself, through transformers' plainest attention."""
    model = families.make(family, both_sides)
    model.set_attn_implementation("eager")
    ids, mask = batch()
    return [states(model, ids[row : row + 1, :n], mask[row : row + 1, :n])[0] for row, n in enumerate(LENGTHS)]


@pytest.mark.parametrize("both_sides", [False, True], ids=["causal", "both"])
@pytest.mark.parametrize("family", sorted(families.CONFIGS))
def test_states_are_transformers_own(family, both_sides):
    expected = reference(family, both_sides)
    model = pack_(families.make(family, both_sides))
    for left in (False, True):
        for found, right in zip(states(model, *batch(left)), expected, strict=True):
            torch.testing.assert_close(found, right, atol=1e-5, rtol=1e-5)
    assert can_pack(model) == (family not in families.PADDED)


@pytest.mark.parametrize("family", ["gemma3", "opt"])
def test_a_flattened_batch_stays_flat(family):
    ids, mask = batch()
    model = pack_(families.make(family))
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0)
    with torch.no_grad():
        flat = model(input_ids=ids[mask.bool()][None], cu_seq_lens_q=bounds).last_hidden_state
    torch.testing.assert_close(flat[0], torch.cat(states(model, ids, mask)), atol=1e-5, rtol=1e-5)


def test_pads_are_zeros_and_hidden_states_have_the_batchs_shape():
    ids, mask = batch()
    model = pack_(families.make("llama"))
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    assert not found.last_hidden_state[mask == 0].any()
    assert len(found.hidden_states) == 5
    assert {tuple(x.shape) for x in found.hidden_states} == {(*ids.shape, 64)}


def test_a_batch_of_pads_gives_numbers():
    ids, mask = batch()
    with torch.no_grad():
        found = pack_(families.make("qwen3"))(input_ids=ids, attention_mask=torch.zeros_like(mask))
    assert found.last_hidden_state.isfinite().all()


@pytest.mark.parametrize("family", PACKED)
def test_gradients_are_transformers_own(family):
    ids, mask = batch()
    grads = []
    for prepare in (lambda model: model.set_attn_implementation("eager"), pack_):
        model = families.make(family)
        prepare(model)
        table = model.get_input_embeddings().weight
        (model(input_ids=ids, attention_mask=mask).last_hidden_state * mask[..., None]).square().sum().backward()
        grads.append(table.grad)
    torch.testing.assert_close(grads[1], grads[0], atol=1e-3, rtol=1e-3)


def test_recomputed_activations_know_the_layout():
    ids, mask = batch()
    grads = []
    for recompute in (False, True):
        model = pack_(families.make("mistral")).train()
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(input_ids=ids, attention_mask=mask).last_hidden_state.square().sum().backward()
        grads.append(model.get_input_embeddings().weight.grad)
    torch.testing.assert_close(grads[1], grads[0])


def test_what_cannot_be_packed_says_so_once(caplog):
    model = pack_(families.make("falcon"))
    with caplog.at_level(logging.WARNING):
        states(model, *batch())
        states(model, *batch())
    assert len([r for r in caplog.records if "computes padded batches through its own attention" in r.message]) == 1


def test_an_attention_that_asks_for_more_stays_padded(caplog):
    from transformers import GptOssConfig

    torch.manual_seed(0)
    size = {**families._GROUPED, "num_hidden_layers": 2, "head_dim": 16, "sliding_window": 4}
    stock = AutoModel.from_config(GptOssConfig(**size, num_local_experts=2, num_experts_per_tok=1)).float().eval()
    model = pack_(copy.deepcopy(stock))
    for found, right in zip(states(model, *batch()), states(stock, *batch()), strict=True):
        torch.testing.assert_close(found, right)
    assert not can_pack(model)
    assert "s_aux" in caplog.text


def test_caches_and_generation_are_transformers_own():
    ids, _ = batch()
    stock, model = families.make("llama"), pack_(families.make("llama"))
    with torch.no_grad():
        a, b = (m(input_ids=ids[:1], use_cache=True) for m in (stock, model))
        torch.testing.assert_close(b.last_hidden_state, a.last_hidden_state)
        more = [m(input_ids=ids[1:2, :2], past_key_values=o.past_key_values) for m, o in ((stock, a), (model, b))]
    torch.testing.assert_close(more[1].last_hidden_state, more[0].last_hidden_state)


def test_a_model_goes_to_another_process():
    model = pack_(families.make("phi"))
    before = states(model, *batch())
    for found, right in zip(states(pickle.loads(pickle.dumps(model)), *batch()), before, strict=True):
        torch.testing.assert_close(found, right)
