"""Whom the server answers: programs, and the pages that it serves itself."""

from __future__ import annotations

import ipaddress
import logging
import re
import socket
from collections.abc import Callable, Collection, MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

from liverseg.errors import InputError

logger = logging.getLogger(__name__)

# Anyone may link to them: without a request of their own they show nothing of the studies.
PAGES = ("/", "/docs", "/ohif", "/ohif/")
# No other page may draw an answer into itself: not as a frame, to have its buttons pressed unseen, nor as a picture.
PROTECTION = {
    "Content-Security-Policy": "frame-ancestors 'self'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


class OwnPages:
    """Refuse with 403 what a browser asks for other pages than the server's own.

    A browser sends what any page that it shows asks for, also to a server that only this machine reaches, and deletes a
    scan for it. It says for which page, though, in headers that no page can change: `Origin` with whatever may change
    something, `Sec-Fetch-Site` if the address is a safe one (https or this machine's own), and `Referer` if nothing
    forbids it. Programs such as 3D Slicer send none of them. A page whose name its owner lets point to this machine
    (DNS rebinding) is one of the server's own for the browser; it is found out by `Host`, which then is that name.

    Args:
        app: what answers the rest.
        hosts: names, in lower case, that the server is reached by, beside addresses of the Internet Protocol.
        origins: of other pages that may ask it, such as `https://viewer.example.org`.
    """

    def __init__(self, app: Callable, hosts: Collection[str], origins: Collection[str]) -> None:
        self.app, self.hosts, self.origins = app, hosts, origins

    async def __call__(
        self, scope: MutableMapping[str, Any], receive: Callable, send: Callable
    ) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_protected(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(PROTECTION)
            await send(message)

        said = self._refusal(scope)
        if said is None:
            await self.app(scope, receive, send_protected)
        else:
            logger.warning("%s %s: 403 %s", scope["method"], scope["path"], said)
            await JSONResponse({"detail": said}, 403)(scope, receive, send_protected)

    def _refusal(self, scope: MutableMapping[str, Any]) -> str | None:
        headers = Headers(scope=scope)
        names = headers.getlist("host")
        host = names[0].lower() if len(names) == 1 else ""
        if not self._is_ours(host):
            return (
                f"Host: found {', '.join(names)!r:.100}, expected an address like 127.0.0.1 or one of the names "
                f"{', '.join(self.hosts)}: use one, or start the server with --conf hosts and its name."
            )
        if scope["method"] in ("GET", "HEAD") and (
            scope["path"] in PAGES or scope["path"].startswith("/ohif/")
        ):
            return None
        page = headers.get("origin") or _origin(headers.get("referer", ""))
        if page in self.origins:
            return None
        site = headers.get("sec-fetch-site", "none")
        if page.lower() in ("", f"http://{host}", f"https://{host}") and site in (
            "none",
            "same-origin",
        ):
            return None
        return (
            f"Origin: found the page {page or site!r:.100}, expected a program or one of the server's own pages: open "
            "the address by hand, or name the page in --conf origins if it is yours."
        )

    def _is_ours(self, host: str) -> bool:
        found = re.fullmatch(r"(?:\[([\da-f:.]+)\]|([\w.-]+?)\.?)(?::\d+)?", host, re.ASCII)
        if found is None:
            return False
        name = found[1] or found[2]
        try:
            # No name, so nobody can let it point to another machine.
            ipaddress.ip_address(name)
        except ValueError:
            return name in self.hosts
        return True


def own_hosts(more: str, host: str) -> list[str]:
    """The names that the server is reached by.

    Args:
        more: names, separated by commas.
        host: what it listens on.

    Raises:
        InputError: for what is no name.
    """
    names = [name.strip().lower() for name in more.split(",") if name.strip()]
    for name in names:
        if not re.fullmatch(r"[\w.-]+", name, re.ASCII):
            raise InputError(
                f"hosts: found {name!r}, expected names like label.example.org without port, separated by commas: fix "
                "--conf hosts."
            )
    return sorted({"localhost", socket.gethostname().lower(), host.lower(), *names})


def _origin(address: str) -> str:
    return address and "/".join(address.split("/")[:3])
