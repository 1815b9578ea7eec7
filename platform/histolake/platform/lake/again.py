"""Reading again what could not be read: a store may fail, and files that were listed may be compacted and cleaned away
before they are opened. Whoever reads again starts from the newest version."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from deltalake.exceptions import DeltaError, TableNotFoundError

__all__ = ["FAILURES", "again", "pause"]

# What a store that fails and a race that was lost look like in Delta and Arrow. Lance has a class of its own for races.
FAILURES = (DeltaError, OSError)
READ_TRIES = 6

T = TypeVar("T")


def again(read: Callable[[], T], failures: tuple[type[Exception], ...] = FAILURES) -> T:
    """What `read` gives; it is called anew where it fails, the last time without a net. A table that is not there is
    not looked for again."""
    for attempt in range(READ_TRIES - 1):
        try:
            return read()
        except TableNotFoundError:
            raise
        except failures:
            pause(2**attempt)
    return read()


def pause(attempt: int) -> None:
    """Wait a moment, longer after more attempts, so that those who lost a race do not meet again."""
    time.sleep(random.uniform(0.01, 0.05) * min(attempt + 1, 20))
