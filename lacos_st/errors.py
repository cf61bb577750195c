"""`LacosError`: the one exception for what a user can mend, and the form in which values stand in its message.

Values of the data may have any length. A message shows them shortened: `shown` one, `listed` several. What a host
library said is shortened by the exception itself, which keeps the start and the end of a long message.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any

_MESSAGE = 3000  # characters of a message
_ITEMS = 12  # values that a message lists
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60
_short.maxlevel = 3


class LacosError(ValueError):
    """A mistake that the user can mend: the message says what, why and what to do. The CLI exits with 2."""

    def __str__(self) -> str:
        return shortened(super().__str__(), _MESSAGE)


class ToldByFirstError(LacosError):
    """A mistake that the first of several processes has met and tells its user of."""


def shortened(text: str, most: int = 200) -> str:
    """The start and the end of a text that is longer.

    Example:
        >>> shortened("short"), shortened("a" * 90 + "z" * 90, 12)
        ('short', 'aaaaaa ... zzzzzz')
    """
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"


def shown(value: Any) -> str:
    """A value as Python writes it, shortened.

    Example:
        >>> shown("é"), len(shown("x" * 1_000_000)), shown([0] * 9)
        ("'é'", 60, '[0, 0, 0, 0, 0, 0, ...]')
    """
    return _short.repr(value)


def listed(values: Sequence[Any]) -> str:
    """Values as `shown`, with commas; of many the first.

    Example:
        >>> listed(["a", "b"]), listed(range(100))
        ("'a', 'b'", '0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 88 more')
    """
    more = f" and {len(values) - _ITEMS:,} more" if len(values) > _ITEMS else ""
    return ", ".join(map(shown, values[:_ITEMS])) + more
