"""`export`: a model in a format of other software; what a format cannot hold is an error, and nothing is written then.

- `hf`: `layout.py`. All that stock sentence-transformers computes.
- `gguf`: `gguf_file.py`. What llama.cpp computes of that.
- `onnx`, `openvino`: `hf`, and the commands that convert it. The converters ask for older versions of transformers than
  this package, so they run in an environment of their own.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal, get_args

from lacos_st.errors import LacosError
from lacos_st.files import check_new_directory, stage_for
from lacos_st.model.placing import disk_error, move_into

Format = Literal["hf", "gguf", "onnx", "openvino"]

# Of each converter: what is installed with it, as it ran here.
_CONVERTERS = {
    "onnx": '"sentence-transformers[onnx]==5.7.0" "transformers==4.57.6" "optimum-onnx==0.1.0"',
    "openvino": '"sentence-transformers==6.2.0" "optimum-intel[openvino]==2.2.0" "transformers==5.5.4"',
}


def export(model: str, output: str | Path, format: Format = "hf") -> str:
    """Write a model in a format of other software.

    Args:
        model: As `LacosSentenceTransformer` takes it; its active adapter is folded in.
        output: A new or empty directory; for "gguf" a new file whose name ends in .gguf.
        format: "hf", "gguf", "onnx" or "openvino".

    Returns:
        What was written and what is to be done with it, in words.

    Raises:
        LacosError: There is no such model, the format cannot hold it, the output is there already or cannot be written.
    """
    if format not in get_args(Format):
        raise LacosError(f"format={format!r} is not known: choose from {', '.join(get_args(Format))}.")
    target = Path(output)
    _check_target(target, format)
    from lacos_st.export.floating import load_floating  # what takes seconds comes after what a user can mistake

    if format == "gguf":
        from lacos_st.export.gguf_file import check_gguf, write_gguf

        check_gguf()
    loaded = load_floating(model)
    _check_converter(loaded.transformer, format)
    stage = None
    try:
        stage = stage_for(target)
        staged = stage / target.name
        if format == "gguf":
            told = f"Wrote {target}. {write_gguf(loaded, staged)}"
            staged.replace(target.resolve())
        else:
            from lacos_st.export.layout import write_layout

            write_layout(loaded, staged)
            told = (
                f"Wrote {target}, in 16 bits. {commands(format, target)}"
                if format in _CONVERTERS
                else f'Wrote {target}. Use it: SentenceTransformer("{target}")'
            )
            move_into(staged, target)
    except OSError as error:
        raise disk_error(error, target) from error
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)
    return told


def commands(format: str, directory: Path) -> str:
    """The commands that add an ONNX or OpenVINO model to an exported directory.

    Args:
        format: "onnx" or "openvino".
        directory: As `export` has written it.
    """
    code = (
        "from sentence_transformers import SentenceTransformer as S; "
        f"S({str(directory)!r}, backend={format!r}).save_pretrained({f'{directory}-{format}'!r})"
    )
    return (
        f"The converter needs versions that lacos-st cannot share; these commands make {directory}-{format} in an "
        f"environment of their own:\n"
        f"  python -m venv {format}-venv\n"
        f"  {format}-venv/bin/pip install {_CONVERTERS[format]}\n"
        f'  {format}-venv/bin/python -c "{code}"\n'
        "No embedding that a converter gave has been shown to be right yet (docs/export.md): compare some before use."
    )


def _check_converter(transformer: Any, format: str) -> None:
    """What `commands` would not convert, or would in silence convert into another model."""
    if format == "onnx" and transformer.attention != "causal":
        raise LacosError(
            "The model's tokens see both sides, which transformers computes from 5.2 on, and the ONNX converter works "
            "with older versions: the embeddings would be others. --format hf holds it."
        )
    if format == "openvino" and transformer.config.model_type == "bloom":
        raise LacosError("The OpenVINO converter fails on BLOOM without its head: take --format onnx or --format hf.")


def _check_target(target: Path, format: str) -> None:
    if format == "gguf":
        if target.suffix != ".gguf":
            raise LacosError(f"{str(target)!r} is to be a GGUF file: let its name end in .gguf.")
        if target.exists():
            raise LacosError(f"{str(target)!r} exists already: give another name.")
    elif target.suffix == ".gguf":
        raise LacosError(f"{str(target)!r} is named like a GGUF file, and format={format!r} writes a directory: give "
                         "another name, or --format gguf.")  # fmt: skip
    else:
        check_new_directory(target)
