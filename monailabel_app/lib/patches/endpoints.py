"""How this app answers where MONAI Label does: by routes of its own before those of MONAI Label."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection
from typing import Any

from fastapi import FastAPI
from monailabel.config import settings

Endpoint = Callable[..., Any]


def answer_first(
    server: FastAPI,
    path: str,
    endpoint: Endpoint,
    methods: Collection[str] = ("GET",),
    response_model: Any = None,
) -> None:
    """Let `endpoint` answer a path, whatever did before."""
    server.add_api_route(
        settings.MONAI_LABEL_API_STR + path,
        endpoint,
        methods=list(methods),
        response_model=response_model,
        include_in_schema=False,
    )
    server.router.routes.insert(0, server.router.routes.pop())


def wrap(server: FastAPI, endpoint: Endpoint, wrapper: Callable[[Endpoint], Endpoint]) -> None:
    """Let `wrapper(endpoint)` answer where an endpoint of MONAI Label does.

    Where it is wrapped already, what wraps it is wrapped. The routes of MONAI Label stay as they
    are, so that its page shows them.
    """
    module: Any = inspect.getmodule(endpoint)
    for route in module.router.routes:
        if route.endpoint is endpoint:
            path = settings.MONAI_LABEL_API_STR + route.path
            ours: Any = [one for one in server.router.routes if getattr(one, "path", None) == path]
            first = next((one for one in ours if one.methods == route.methods), route).endpoint
            answer = functools.wraps(first)(wrapper(first))
            answer_first(server, route.path, answer, route.methods, route.response_model)


def replace(server: FastAPI, endpoint: Endpoint, answer: Endpoint) -> None:
    """Let `answer` take the place of an endpoint of MONAI Label, which it gets the arguments of."""

    def wrapper(_: Endpoint) -> Endpoint:
        async def replaced(**given: Any) -> Any:
            found = answer(**given)
            return await found if inspect.isawaitable(found) else found

        return replaced

    wrap(server, endpoint, wrapper)


def check(server: FastAPI, endpoint: Endpoint, look: Callable[..., dict[str, Any] | None]) -> None:
    """Let `look` see the arguments of an endpoint first; what it returns takes their place."""

    def wrapper(answer: Endpoint) -> Endpoint:
        async def checked(**given: Any) -> Any:
            return await answer(**{**given, **(look(**given) or {})})

        return checked

    wrap(server, endpoint, wrapper)
