"""Wait in a test, with a deadline that a machine many times as slow still meets."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

# Of every wait and every command that tests start.
SECONDS = 1800


def wait_until(condition: Callable[[], Any], interval_s: float = 0.05) -> None:
    """Return as soon as `condition` is true."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, f"still not so after {SECONDS} s"
        time.sleep(interval_s)
