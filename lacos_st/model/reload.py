"""What a Trainer's checkpoint gives back: the state of all that trained, and never a second base.

The Trainer loads a checkpoint as a model and takes that model's state dict, for the best step and to resume. ST loads
it here too, whatever modules it has, with `SavedTransformer` in the place of the transformer. That one reads files and
builds nothing: adapters always, the base only if it is in full precision, for an 8-bit one never trains.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Self

from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from lacos_st.errors import LacosError
from lacos_st.model.artifact import RECORD
from lacos_st.model.transformer import LacosTransformer

_MATRIX = re.compile(r"\.lora_(embedding_)?[AB](?=\.weight$|$)")  # of an embedding table it is a bare parameter


class SavedTransformer(nn.Module):
    """Stands for a saved `LacosTransformer` with its tensors alone, under the names of `LacosTransformer.state_dict`.

    Args:
        tensors: Name -> tensor.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.tensors = tensors

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> Self:
        """Read what lies in a saved directory; as ST's modules."""
        directory = Path(model_name_or_path, subfolder)
        record = json.loads((directory / RECORD).read_text(encoding="utf-8"))
        by_reference = (directory / "adapter_config.json").is_file()
        folder = directory if by_reference else directory / "adapter"
        tensors: dict[str, Tensor] = {}
        for position, name in enumerate(record["adapters"]):
            tensors |= read_adapter(folder if position == 0 else folder / name, name)
        if not by_reference and record["quantization"] == "none":
            adapted = {key.partition(".lora_")[0] for key in tensors}
            for shard in sorted(directory.glob("model*.safetensors")):
                for key, tensor in load_file(shard).items():
                    layer, _, leaf = f"model.{key}".rpartition(".")
                    tensors[f"{layer}.base_layer.{leaf}" if layer in adapted else f"{layer}.{leaf}"] = tensor
        return cls(tensors)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination.update({f"{prefix}{key}": tensor for key, tensor in self.tensors.items()})


def read_adapter(directory: Path, name: str) -> dict[str, Tensor]:
    """Read a saved adapter's tensors under the names they have in `LacosTransformer.state_dict()`."""
    return {
        "model." + _MATRIX.sub(lambda found: f"{found[0]}.{name}", key.removeprefix("base_model.model.")): tensor
        for key, tensor in load_file(str(directory / "adapter_model.safetensors")).items()
    }


def read_checkpoint(
    directory: str, module_classes: dict[str, type[nn.Module]], trust_remote_code: bool = False
) -> SentenceTransformer:
    """Read a checkpoint as a model that has a state dict and no base.

    Args:
        directory: The checkpoint.
        module_classes: Name in `modules.json` -> class.
        trust_remote_code: As for ST.

    Returns:
        What `SentenceTransformer` makes of it, with a `SavedTransformer`.

    Raises:
        LacosError: A file is missing or damaged.
    """
    classes = {
        name: SavedTransformer if issubclass(cls, LacosTransformer) else cls for name, cls in module_classes.items()
    }
    try:
        return SentenceTransformer._load_with_module_classes(
            directory,
            classes,
            trust_remote_code=trust_remote_code,
            device="cpu",
            local_files_only=True,
        )
    except Exception as error:  # safetensors' own error type is private
        raise LacosError(f"The checkpoint {str(directory)!r} cannot be read: {error}") from error
