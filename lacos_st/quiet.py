"""Messages of host libraries that are untrue here, or of no use, left out: all of it is in this file."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without(logger: str, phrase: str) -> Iterator[None]:
    """Leave out what a logger says with a phrase in it.

    Args:
        logger: Its name.
        phrase: Part of the message.
    """

    def keep(record: logging.LogRecord) -> bool:
        return phrase not in record.getMessage()

    logging.getLogger(logger).addFilter(keep)
    try:
        yield
    finally:
        logging.getLogger(logger).removeFilter(keep)


def of_no_kernels() -> None:
    """Leave out that bitsandbytes wants a package for 4-bit layers, on a CPU with AVX-512 bf16; there are none here."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_no_4_bits)


def _no_4_bits(record: logging.LogRecord) -> bool:
    return "gemm_4bit_forward" not in record.getMessage()


def is_first() -> bool:
    """Whether this is the first of several processes, which speaks for all, or the only one."""
    return os.environ.get("RANK", "0") == "0"  # launchers set it


def for_command_line() -> None:
    """Leave the terminal to our own progress, and that to the first process; host libraries tell errors only."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in ("sentence_transformers", "bitsandbytes", "mteb", "datasets", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    warnings.filterwarnings("ignore", "torch.distributed.nn.functional.all_gather is deprecated", FutureWarning)
    logging.getLogger("lacos_st").setLevel(logging.INFO if is_first() else logging.ERROR)
    if not is_first():
        warnings.simplefilter("ignore")


@contextmanager
def errors_only(logger: str) -> Iterator[None]:
    """Keep back what a library warns of; its errors still come.

    Args:
        logger: The library's.
    """
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


@contextmanager
def without_bars_of_datasets() -> Iterator[None]:
    """Keep back progress bars of `datasets`, of which MTEB fills one for each column that it renames."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()


@contextmanager
def of_ray() -> Iterator[None]:
    """Keep Ray from the terminal: what goes wrong is raised, and its own logs are in its session folder.

    To be entered before Ray is imported and started: its C++ side reads the environment once, and would write to the
    terminal that an actor's restart needs arguments, which Ray itself holds.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would send usage to its makers
    import ray.data  # noqa: F401 - it sets these loggers up

    loggers = [logging.getLogger(name) for name in ("ray", "ray.data")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def without_stderr() -> Iterator[None]:
    """Leave out what C++ code writes to the terminal past Python."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
