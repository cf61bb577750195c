"""A reload takes the trained part of a state dict and leaves the frozen base alone, whatever stands around it."""

import pickle

import torch
from torch import nn

from lacos_st.model.frozen import is_trained, keep_frozen_


class Adapted(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3), requires_grad=False)
        self.lora_A = nn.Parameter(torch.ones(3))


def test_the_base_is_neither_loaded_nor_missed():
    outer = nn.ModuleDict({"first": Adapted(), "head": nn.Linear(2, 2)})
    keep_frozen_(outer["first"])
    state = {key: torch.full_like(tensor, 2.0) for key, tensor in outer.state_dict().items()}
    outer.load_state_dict(state)
    assert (outer["first"].weight == 1).all()
    assert (outer["first"].lora_A == 2).all()
    assert (outer["head"].weight == 2).all()
    trained_only = {key: tensor for key, tensor in state.items() if "first" not in key or is_trained(key)}
    outer.load_state_dict(trained_only)


def test_a_missing_adapter_or_a_missing_neighbour_is_still_told():
    outer = nn.ModuleDict({"first": Adapted(), "head": nn.Linear(2, 2)})
    keep_frozen_(outer["first"])
    result = outer.load_state_dict({}, strict=False)
    assert sorted(result.missing_keys) == ["first.lora_A", "head.bias", "head.weight"]


def test_the_hooks_go_to_other_processes():
    module = Adapted()
    keep_frozen_(module)
    copied = pickle.loads(pickle.dumps(module))
    copied.load_state_dict({"weight": torch.zeros(3), "lora_A": torch.zeros(3)})
    assert (copied.weight == 1).all()
    assert (copied.lora_A == 0).all()
