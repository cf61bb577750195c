"""A training run's state in one safetensors file: weights, the optimiser's moments, the step.

`model.<parameter>`, `optimizer.<number>.<moment>` and, as metadata, `step`. The file replaces the last one whole, so a
run killed at any moment goes on from the newest state that is there.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lacos_st.files import atomic


def save_state(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for number, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in moments.items()}
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata={"step": str(step)})


def load_state(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Put the state into `model` and `optimizer`, and return the step."""
    weights: dict[str, torch.Tensor] = {}
    moments: dict[int, dict[str, torch.Tensor]] = defaultdict(dict)
    for key, tensor in load_file(path).items():
        kind, _, name = key.partition(".")
        if kind == "model":
            weights[name] = tensor
        else:
            number, _, moment = name.partition(".")
            moments[int(number)][moment] = tensor
    model.load_state_dict(weights)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": dict(moments)})
    with safe_open(path, "pt") as file:
        return int(file.metadata()["step"])
