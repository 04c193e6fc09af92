"""How MONAI Label's functions are replaced, and in which version of it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI

from liverseg.errors import InputError

# All that this app replaces was read in this one.
VERSION = "0.8.5"


def check_version() -> None:
    """Refuse any other version of MONAI Label.

    Raises:
        InputError: for it.
    """
    found = version("monailabel")
    if found != VERSION:
        raise InputError(
            f"found monailabel {found}, expected {VERSION}, parts of which this app replaces: pip install "
            f"monailabel=={VERSION}."
        )


def before(module: Any, name: str, check: Callable[..., dict[str, Any] | None]) -> None:
    """Let `check` see all arguments of a function first; what it returns takes the place of those given."""
    original = getattr(module, name)
    signature = inspect.signature(original)

    @functools.wraps(original)
    def checked(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        given.arguments.update(check(**given.arguments) or {})
        return original(*given.args, **given.kwargs)

    setattr(module, name, checked)


def answer_first(server: FastAPI, path: str, endpoint: Callable[..., Any], *methods: str) -> None:
    """Let `endpoint` answer where MONAI Label does."""
    server.add_api_route(path, endpoint, methods=list(methods), include_in_schema=False)
    server.router.routes.insert(0, server.router.routes.pop())
