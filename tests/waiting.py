"""Wait in a test, with a deadline that a machine many times as slow still meets."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

SECONDS = 900


def wait_until(condition: Callable[[], Any], check: Callable[[], Any] = lambda: None) -> Any:
    """What `condition` gives as soon as it is true; `check` asserts each time that it may still become so."""
    end = time.monotonic() + SECONDS
    while not (found := condition()):
        check()
        assert time.monotonic() < end, f"still not so after {SECONDS} s"
        time.sleep(0.05)
    return found
