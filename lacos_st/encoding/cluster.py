"""Ray, for as long as a command runs: where it is, what an actor gets of it, what its errors mean.

Without an address a Ray of this machine is started and ended with the command, its processes included. A Ray that the
caller has started already is used and left running. Actors get whole processors: as many as each can have, since the
others would idle; or a GPU, or the part of one that is asked for.
"""

from __future__ import annotations

import gc
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lacos_st.errors import LacosError, shortened
from lacos_st.quiet import of_ray, without_stderr

_STORE = 512 * 2**20  # bytes of shared memory of a Ray that we start: texts on their way to actors
_ADVICE = "\nFailed to apply UDF transform after "  # Ray Data's settings, which it writes under any error's text
_ENDING = 20  # seconds that processes of Ray get to end by themselves


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Have Ray at hand, quietly.

    Args:
        address: Of a running cluster, `auto` for the one that this machine belongs to; None for a Ray of our own.

    Raises:
        LacosError: Ray is not installed, or nothing answers at the address; and what Ray raises inside the block.
    """
    import psutil

    try:
        with of_ray():
            import ray

            if ray.is_initialized():
                with _errors():
                    yield
                return
            before = set(psutil.Process().children(recursive=True))
            try:
                _start(address)
                with _errors():
                    yield
            finally:
                ours = set(psutil.Process().children(recursive=True)) - before
                ray.shutdown()
                for process in psutil.wait_procs(ours, timeout=_ENDING)[1]:
                    process.kill()
    except ModuleNotFoundError as error:
        if error.name != "ray" and not (error.name or "").startswith("ray."):
            raise
        raise LacosError("The engine 'ray' needs Ray: pip install 'lacos-st[ray]'") from error


def _start(address: str | None) -> None:
    import ray

    options: dict[str, Any] = {"logging_level": "CRITICAL", "log_to_driver": False}
    if address is None:
        options |= {"object_store_memory": _STORE, "include_dashboard": False}
    try:
        with without_stderr():  # that it will be quiet
            ray.init(address or "local", **options)
    except Exception as error:  # Ray raises a plain one where a process is slow to start
        if address is None:
            raise LacosError(f"Ray did not start on this machine: {shortened(str(error))} Try it again.") from error
        raise LacosError(
            f"No Ray answers at {address!r}: {shortened(str(error))} Start one with `ray start --head`, or leave the "
            "address out to use this machine alone."
        ) from error


@contextmanager
def _errors() -> Iterator[None]:
    """Turn what comes through Ray back into what was raised on the other side."""
    from ray.exceptions import OutOfMemoryError, RayActorError, RayError, WorkerCrashedError

    try:
        yield
    except KeyboardInterrupt as error:
        _let_go(error)
        raise
    except RayError as error:
        _let_go(error)
        own = _ours(error)
        if own is not None:
            own.args = tuple(arg.partition(_ADVICE)[0] if isinstance(arg, str) else arg for arg in own.args)
            raise own from None
        died = (RayActorError, WorkerCrashedError, OutOfMemoryError)
        if any(isinstance(link, died) for link in _chain(error)) and "creation task" not in str(error):
            raise LacosError(
                f"Ray's processes died again and again ({shortened(str(error).strip().splitlines()[0])}), mostly for "
                "want of memory. Use fewer actors, smaller batches or a larger machine, and run the same command again "
                "to go on: what was delivered is kept."
            ) from error
        raise


def _let_go(error: BaseException) -> None:
    """Clear the local variables in the tracebacks of an error and of those behind it, and drop the tracebacks.

    Ray Data drops the actors of a data set that fails, and they end when nobody refers to them. Those variables do: an
    error that is kept, by a notebook or an `except`, would keep the actors' processors, and the next call would wait
    for them for ever.
    """
    for link in _chain(error):
        traceback.clear_frames(link.__traceback__)
        link.__traceback__ = None  # what a thread of Ray is still in cannot be cleared
    gc.collect()  # Ray's objects refer to each other


def _ours(error: BaseException) -> BaseException | None:
    """What a user can mend, behind an error; Ray wraps it in an object of both classes, whose text is a traceback."""
    from ray.exceptions import RayError

    kinds = (LacosError, OSError)
    return next((link for link in _chain(error) if isinstance(link, kinds) and not isinstance(link, RayError)), None)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and all that are behind it: Ray's wrappers have a `cause` of their own beside Python's two."""
    seen: dict[int, BaseException] = {}
    left = [error]
    while left:
        link = left.pop(0)
        if id(link) not in seen:
            seen[id(link)] = link
            yield link
            behind = (getattr(link, "cause", None), link.__cause__, link.__context__)
            left += [other for other in behind if isinstance(other, BaseException)]


def share(actors: int | None, gpus: float | None) -> tuple[int, dict[str, float]]:
    """How many actors, and what each gets.

    Args:
        actors: None: one for each GPU (or part of one); without GPUs one for each machine.
        gpus: GPUs of an actor; None: 1 where there are any.

    Returns:
        The number, and arguments for Ray.

    Raises:
        LacosError: They do not fit.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]

    def fits(resource: str, each: float) -> int:
        return sum(int(node.get(resource, 0) / each + 1e-9) for node in nodes)

    gpus = float(bool(fits("GPU", 1))) if gpus is None else gpus
    room = fits("GPU", gpus) if gpus else fits("CPU", 1)
    actors = actors or (room if gpus else sum(1 for node in nodes if node.get("CPU", 0) >= 1))
    if not 0 < actors <= min(room, fits("CPU", 1)):
        each = f"{gpus:g} GPUs and a processor" if gpus else "a processor"
        raise LacosError(
            f"{max(actors, 1)} actors with {each} each do not fit: Ray has {fits('CPU', 1)} processors and "
            f"{fits('GPU', 1)} GPUs on {len(nodes)} machines. Change actors (--actors) or gpus_per_actor "
            "(--gpus-per-actor; half a GPU is 0.5)."
        )
    if gpus:
        return actors, {"num_cpus": 1, "num_gpus": gpus}
    most = max(int(node.get("CPU", 0)) for node in nodes)
    return actors, {"num_cpus": next(each for each in range(most, 0, -1) if fits("CPU", each) >= actors), "num_gpus": 0}


def processors() -> int:
    """Processors of the cluster."""
    import ray

    return int(ray.cluster_resources().get("CPU", os.cpu_count() or 1))
