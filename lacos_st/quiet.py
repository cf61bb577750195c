"""Messages of host libraries that are untrue here, left out."""

import logging
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
