"""A model with fixed options, and what is asked of both: the part of encoding that every engine shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from lacos_st.errors import LacosError, shortened, shown

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Precision = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]


def check_numbers(**values: float | None) -> None:
    """Refuse a number below 1; None is a number that was not given."""
    for name, value in values.items():
        if value is not None and value < 1:
            raise LacosError(f"{name}={value} must be at least 1.")


def check_precision(precision: str) -> None:
    """Refuse what is no `Precision`."""
    if precision not in get_args(Precision):
        raise LacosError(f"precision={precision!r} is not one of {', '.join(get_args(Precision))}.")


def check_prompt(model: SentenceTransformer, name: str | None) -> None:
    """Refuse a prompt that the model lacks."""
    if name is not None and name not in model.prompts:
        raise LacosError(f"The model has no prompt {shown(name)}, but {shortened(', '.join(model.prompts)) or 'none'}.")


class Encoder:
    """`model.encode` with fixed options, for one device or a pool of processes."""

    def __init__(
        self,
        model: SentenceTransformer,
        batch_size: int,
        normalize: bool,
        prompt_name: str | None,
        truncate_dim: int | None,
        devices: str | Sequence[str] | None,
    ) -> None:
        import torch

        self.model = model
        self.pool: Any = None
        self.devices = [devices] if isinstance(devices, str) else list(devices or [])
        self.options = {
            "batch_size": batch_size,
            "normalize_embeddings": normalize,
            "prompt_name": prompt_name,
            "truncate_dim": truncate_dim,
            "show_progress_bar": False,
        }
        first = self.devices[0] if self.devices else None
        self.dimension = int(model.encode(["a"], device=first, **self.options).shape[1])
        kinds = [torch.device(name).type for name in self.devices] or [model.device.type]
        self.kind = ",".join(kinds)
        self.prompt = model.prompts.get(prompt_name or model.default_prompt_name or "")
        self.torch_version = str(torch.__version__)
        if truncate_dim is not None and truncate_dim > self.dimension:
            raise LacosError(
                f"truncate_dim={truncate_dim} is more than the {self.dimension} dimensions of the embeddings: leave "
                "it out, or choose a smaller one."
            )

    def plan(self) -> dict[str, Any]:
        """What of a model and its options decides the numbers: a run goes on only where all of it is the same."""
        from lacos_st.model.fingerprint import fingerprint  # imports torch, which who only reads files needs not

        return {
            "model": fingerprint(self.model),
            "prompt": self.prompt,
            "batch_size": self.options["batch_size"],
            "normalize": self.options["normalize_embeddings"],
            "dimension": self.dimension,
            "devices": self.kind,
            "torch": self.torch_version,
        }

    def __enter__(self) -> Encoder:
        if len(self.devices) > 1:
            self.pool = self.model.start_multi_process_pool(self.devices)
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.model.stop_multi_process_pool(self.pool)

    def encode(self, texts: list[str]) -> np.ndarray:
        """(len(texts), dimension) float32; zeros for empty texts."""
        result = np.zeros((len(texts), self.dimension), np.float32)
        rows = [i for i, text in enumerate(texts) if text.strip()]
        if rows:
            where = {"pool": self.pool} if self.pool else {"device": self.devices[0] if self.devices else None}
            result[rows] = self.model.encode([texts[i] for i in rows], **where, **self.options)
        return result

    def encode_checked(self, texts: list[str], start: int, name: str) -> np.ndarray:
        """As `encode`; the texts are the rows from `start` of a file.

        Raises:
            LacosError: The model gave NaN.
        """
        result = self.encode(texts)
        bad = np.flatnonzero(~np.isfinite(result).all(axis=1))
        if len(bad):
            raise LacosError(
                f"The model gave NaN or infinity for row {start + int(bad[0])} (from 0) of {name}: "
                f"{texts[bad[0]][:60]!r}. Load it in bfloat16 or float32."
            )
        return result


def check_devices(names: Sequence[str]) -> None:
    """Refuse a device that is not there."""
    import torch

    for name in names:
        try:
            torch.zeros(1, device=name).cpu()  # which "meta" cannot
        except (RuntimeError, AssertionError) as error:
            raise LacosError(f"The device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
