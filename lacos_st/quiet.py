"""Messages of host libraries that are untrue here, or of no use, left out."""

import logging
import re
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


@contextmanager
def without_warning(phrase: str) -> Iterator[None]:
    """Leave out warnings with a phrase in them; not for code that runs in several threads.

    Args:
        phrase: Part of the message.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", f".*{re.escape(phrase)}")
        yield
