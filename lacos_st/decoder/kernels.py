"""Fused row kernels for w8a8 on a CPU, and an int8 product for AVX2: `kernels.c`, compiled on first use.

Between two int8 products PyTorch makes about ten passes over memory (abs, max, divide, round, cast; cast,
scale, scale, bias, GELU), which together take as long as the products. The C code does each stretch in one
pass. It computes what the PyTorch code in `quantization.py` computes, which serves wherever there is no
compiler (or no fp32 activations); results differ by rounding only.

The int8 product itself is oneDNN's (`torch._int_mm`) where the CPU has VNNI. Without it PyTorch 2.13 falls back on
scalar code (4 Gop/s on two cores of a Zen 3, where fp32 does 165 GFLOP/s): there `multiply` serves, at 250 Gop/s.

The library is kept in the user's cache folder under a hash of source, flags and CPU and one of itself. Where no folder
is the user's alone, each process compiles its own. It links against the OpenMP runtime that PyTorch has loaded already,
so both share one pool of threads.

Arrays: n rows; activations fp32 (n, k), contiguous; ``q`` int8 (n, k) with row scales ``s`` fp32 (n,), so that
``x ~ q * s``; ``w`` fp32 (o,) the weight rows' absolute maxima, so that ``W ~ rows * w / 127``.
"""

import ctypes
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lacos_st.errors import LacosError
from lacos_st.files import cache_directory

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.c")
# No -ffast-math: linking with it switches the whole process to flush denormals.
FLAGS = [
    "-O3",
    "-march=native",
    "-mprefer-vector-width=512",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
]
FLAGS += ["-fopenmp", "-shared", "-fPIC"]
_POINTER, _INT, _FLOAT, _THREADS = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
_SIGNATURES: dict[str, list[Any]] = {
    "quantize": [_POINTER] * 2 + [_INT] * 2 + [_POINTER] * 2,
    "norm_quantize": [_POINTER] * 3 + [_FLOAT] + [_INT] * 2 + [_POINTER] * 3,
    "scale": [_POINTER] * 5 + [_INT] * 2 + [_POINTER],
    "scale_add_norm_quantize": [_POINTER] * 7 + [_FLOAT] + [_INT] * 2 + [_POINTER] * 4,
    "scale_gelu_quantize": [_POINTER] * 5 + [_INT] * 2 + [_POINTER] * 3,
    "rms_norm_quantize": [_POINTER] * 3 + [_FLOAT] + [_INT] * 2 + [_POINTER] * 3,
    "gate_quantize": [_POINTER] * 3 + [_INT] * 3 + [_POINTER] * 3,
    "attend": [_POINTER] * 2 + [_INT] * 3 + [_POINTER, _INT, _INT, _POINTER],
    "multiply": [_POINTER] * 2 + [_INT] * 4 + [_POINTER] * 3,
    "limit_threads": [],
}
_DTYPES = (torch.float32, torch.int8, torch.int16, torch.int32, torch.int64)
_COLUMNS, _STEP = 16, 16  # of `multiply`: columns of a panel, what k is rounded up to
# Below this many elements one thread is done before a second has started.
_PARALLEL_FROM = 1 << 14


def _compiler() -> list[str]:
    """The compiler's command, `CC` first; empty where there is none."""
    found = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    return shlex.split(found or "")


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """Return the compiled kernels, or None where they cannot be had. The first call compiles: a second or so."""
    try:
        return _cached() or _built()
    except (OSError, subprocess.SubprocessError) as error:
        features = torch.cpu.get_capabilities()
        said = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip()
        logger.log(
            logging.WARNING if features.get("avx2") else logging.INFO,  # without AVX2 they would not serve
            "8-bit layers run without their C kernels, which makes them slower: %s. Install a C compiler, or name one "
            "in CC.",
            said[:200] or error,
        )
        return None


def _folder() -> Path | None:
    """Where libraries are kept, or None where no folder can be had that is the user's and that nobody else may write.

    Whoever could write there could put code of theirs into this process.
    """
    try:
        folder = cache_directory() / "kernels"
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        state = folder.stat()
    except (OSError, LacosError):
        return None
    ours = hasattr(os, "geteuid") and state.st_uid == os.geteuid() and not state.st_mode & 0o022
    return folder if ours else None


def _key() -> str:
    # -march=native: a cache folder that machines share needs one library for each kind of them
    content = repr((SOURCE.read_bytes(), FLAGS, sorted(torch.cpu.get_capabilities().items())))
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _cached() -> ctypes.CDLL | None:
    """The library from the user's cache; its name says what it holds, so that a damaged one is known and removed."""
    folder = _folder()
    for path in [] if folder is None else sorted(folder.glob(f"{_key()}-*.so")):
        try:
            if path.stem == f"{_key()}-{_digest(path)}":
                return _loaded(path)
        except OSError:  # another process was faster, or it does not load
            pass
        path.unlink(missing_ok=True)
    return None


def _built() -> ctypes.CDLL:
    """Compile the library, load it and, if it loads, keep it."""
    compiler = _compiler()
    if not compiler:
        raise FileNotFoundError("there is no C compiler")
    folder = _folder()
    if folder is not None and not os.access(folder, os.W_OK):
        folder = None
    with tempfile.TemporaryDirectory(dir=folder) as directory:
        built = Path(directory) / "kernels.so"
        command = [*compiler, *FLAGS, str(SOURCE), "-o", str(built), "-lm"]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        loaded = _loaded(built)
        if folder is not None:
            built.replace(folder / f"{_key()}-{_digest(built)}.so")  # atomic: of two processes, either result serves
    return loaded


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _loaded(path: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(path))
    for name, types in _SIGNATURES.items():
        function = getattr(loaded, name, None)  # `multiply` is for AVX2 alone
        if function is not None:
            function.argtypes, function.restype = [*types, _THREADS], None
    loaded.limit_threads.restype = _THREADS
    return loaded


def usable(x: Tensor) -> bool:
    """Whether the kernels serve for these activations: fp32 on a CPU, outside of autocast and torch.compile."""
    return (
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")  # a LoRA update would come in 16 bits
        and not torch.compiler.is_compiling()
        and library() is not None
    )


def _call(name: str, elements: int, *arguments: "Tensor | int | float | None") -> None:
    for a in arguments:  # C sees pointers only
        if isinstance(a, Tensor) and (a.device.type != "cpu" or a.dtype not in _DTYPES or not a.is_contiguous()):
            raise TypeError(
                f"{name} takes contiguous float32 and integer tensors on the CPU, not {a.dtype} on {a.device} with "
                f"strides {a.stride()}."
            )
    threads = torch.get_num_threads() if elements >= _PARALLEL_FROM else 1
    values = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
    getattr(library(), name)(*values, threads)


def _empty(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """What a kernel writes to: in memory and in a dtype of its own, whatever the process's defaults are."""
    return torch.empty(sizes, dtype=dtype, device="cpu")


@lru_cache(maxsize=1)
def _multiplies() -> bool:
    """Whether `multiply` is the faster product: AVX2 without VNNI, where `torch._int_mm` has no vector code."""
    features = torch.cpu.get_capabilities()
    return bool(features.get("avx2") and not features.get("avx512_vnni") and hasattr(library(), "multiply"))


def has_fast_int8() -> bool:
    """Whether int8 products are faster than fp32 ones on this CPU: with VNNI, or with AVX2 and a C compiler."""
    return bool(torch.cpu.get_capabilities().get("avx512_vnni")) or _multiplies()


def multiply(q: Tensor, weight: Tensor) -> Tensor:
    """Return the int32 product of int8 rows ``q`` (n, k) and ``weight`` (k, o), contiguous or the transpose of such."""
    if torch.compiler.is_compiling() or q.device.type != "cpu" or not _multiplies():
        return torch._int_mm(q, weight)
    transposed = not weight.is_contiguous()
    stored = weight.t() if transposed else weight
    (n, k), o = q.shape, weight.shape[1]
    depth = -(-k // _STEP) * _STEP
    y, wide = _empty(n, o, dtype=torch.int32), _empty(n, depth, dtype=torch.int16)
    panels = _empty(torch.get_num_threads(), depth, _COLUMNS, dtype=torch.int16)
    _call("multiply", n * k * o, q, stored, n, k, o, int(transposed), wide, panels, y)
    return y


def quantize(x: Tensor, w: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Round the rows of ``x`` (times ``w`` (k,)) to int8: returns q and s."""
    n, k = x.shape
    q, s = _empty(n, k, dtype=torch.int8), _empty(n)
    _call("quantize", n * k, x, w, n, k, q, s)
    return q, s


def norm_quantize(
    x: Tensor, gain: Tensor, shift: Tensor, eps: float, keep: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Layer-norm the rows of ``x`` and round them: returns q, s and, if to ``keep``, the normed rows."""
    n, k = x.shape
    q, s = _empty(n, k, dtype=torch.int8), _empty(n)
    y = torch.empty_like(x) if keep else None
    _call("norm_quantize", n * k, x, gain, shift, eps, n, k, y, q, s)
    return q, s, y


def scale(acc: Tensor, s: Tensor, w: Tensor | None, bias: Tensor | None = None, more: Tensor | None = None) -> Tensor:
    """Return ``acc * s * w / 127 + bias + more`` for the int32 product ``acc`` (n, o), in fp32."""
    n, o = acc.shape
    y = _empty(n, o)
    _call("scale", n * o, acc, s, w, bias, more, n, o, y)
    return y


def scale_add_norm_quantize(
    acc: Tensor,
    s: Tensor,
    w: Tensor,
    bias: Tensor,
    residual: Tensor,
    gain: Tensor,
    shift: Tensor,
    eps: float,
    keep: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return ``h = acc * s * w / 127 + bias + residual``, its layer norm as q, s and, if to ``keep``, in fp32."""
    n, o = acc.shape
    h, q, t = _empty(n, o), _empty(n, o, dtype=torch.int8), _empty(n)
    y = _empty(n, o) if keep else None
    _call("scale_add_norm_quantize", n * o, acc, s, w, bias, residual, gain, shift, eps, n, o, h, y, q, t)
    return h, q, t, y


def scale_gelu_quantize(
    acc: Tensor, s: Tensor, w: Tensor, bias: Tensor, more: Tensor | None = None, keep: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return ``gelu(acc * s * w / 127 + bias + more)`` (tanh form) as q, s and, if to ``keep``, in fp32."""
    n, o = acc.shape
    q, t = _empty(n, o, dtype=torch.int8), _empty(n)
    y = _empty(n, o) if keep else None
    _call("scale_gelu_quantize", n * o, acc, s, w, bias, more, n, o, y, q, t)
    return q, t, y


def rms_norm_quantize(x: Tensor, gain: Tensor, mask: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Norm the rows of ``x`` by their root mean square, and round what ``mask`` (k,) leaves: returns y, q and s."""
    n, k = x.shape
    y, q, s = _empty(n, k), _empty(n, k, dtype=torch.int8), _empty(n)
    _call("rms_norm_quantize", n * k, x, gain, mask, eps, n, k, y, q, s)
    return y, q, s


def gate_quantize(gate: Tensor, up: Tensor, mask: Tensor | None, gelu: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``act(gate) * up``, act SiLU or GELU (tanh form), and what ``mask`` (k,) leaves of it as q and s."""
    n, k = gate.shape
    y, q, s = _empty(n, k), _empty(n, k, dtype=torch.int8), _empty(n)
    _call("gate_quantize", n * k, gate, up, mask, int(gelu), n, k, y, q, s)
    return y, q, s


def attend(qkv: Tensor, starts: Tensor, slopes: Tensor, mode: str) -> Tensor:
    """ALiBi attention over packed rows, for short sequences: no bias, no padding, no copy of queries and keys.

    Args:
        qkv: (n, heads * 3 * d): per head its query, key and value; d even.
        starts: (sequences + 1,) int32 first rows.
        slopes: (heads,) ALiBi's slopes.
        mode: "causal", "bidirectional" or "symmetric", as in `attention.py`.

    Returns:
        (n, heads * d)
    """
    n, heads = qkv.shape[0], len(slopes)
    y = _empty(n, qkv.shape[1] // 3)
    sizes = (len(starts) - 1, heads, y.shape[1] // heads)
    both_sides, symmetric = int(mode != "causal"), int(mode == "symmetric")
    _call("attend", qkv.numel(), qkv, starts, *sizes, slopes, both_sides, symmetric, y)
    return y


def limit_threads(threads: int) -> int:
    """Set how many threads the calling thread's operations are shared out among; returns the number before."""
    return int(library().limit_threads(threads))  # type: ignore[union-attr]
