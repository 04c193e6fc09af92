"""Any web page that a browser shows reads and deletes scans: all origins are let in.

MONAI Label lets them in with credentials, and does not start with MONAI_LABEL_CORS_ORIGINS:
https://github.com/Project-MONAI/MONAILabel/blob/0.8.5/monailabel/app.py#L42-L72
"""

from __future__ import annotations

import argparse
import ipaddress
import logging
import re
import socket
from collections.abc import Collection, Sequence

from fastapi import FastAPI
from monailabel.config import settings
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from liverseg.errors import InputError

logger = logging.getLogger(__name__)

# Anyone may link to them: without a request of their own they show nothing of the studies.
PAGES = ("/", "/docs", "/ohif", "/ohif/")
# No other page may draw an answer into itself: not as a frame, to have its buttons pressed unseen,
# nor as a picture.
PROTECTION = {
    "Content-Security-Policy": "frame-ancestors 'self'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


def fix(server: FastAPI, hosts: str, origins: Sequence[str]) -> None:
    """Let in programs, the server's own pages and those of `origins`, and log who is let in.

    Raises:
        InputError: for what is no name in `hosts`.
    """
    host = listens_on()
    names = own_hosts(hosts, host)
    log_who_is_answered(host, names, origins)
    server.user_middleware = [
        one for one in server.user_middleware if one.cls is not CORSMiddleware
    ]
    if origins:
        server.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_credentials=True,
            allow_methods=["*"],
            allow_headers=["*"],
        )
    server.add_middleware(OwnPages, hosts=names, origins=origins)


class OwnPages:
    """Refuse with 403 what a browser asks for other pages than the server's own.

    A browser sends what any page that it shows asks for, also to a server that only this machine
    reaches, and deletes a scan for it. It says for which page, though, in headers that no page can
    change: `Origin` with whatever may change something, `Sec-Fetch-Site` if the address is a safe
    one (https or this machine's own), and `Referer` if nothing forbids it. Programs such as 3D
    Slicer send none of them. A page whose name its owner lets point to this machine (DNS rebinding)
    is one of the server's own for the browser; it is found out by `Host`, which then is that name.

    Args:
        app: what answers the rest.
        hosts: names, in lower case, that the server is reached by, beside addresses of the Internet
            Protocol.
        origins: of other pages that may ask it, such as `https://viewer.example.org`.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], origins: Collection[str]) -> None:
        self.app, self.hosts, self.origins = app, hosts, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(PROTECTION)
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            await self.app(scope, receive, send_protected)
        else:
            logger.warning("%s %s: 403 %s", scope["method"], scope["path"], refusal)
            await JSONResponse({"detail": refusal}, 403)(scope, receive, send_protected)

    def _refusal(self, scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        names = headers.getlist("host")
        host = names[0].lower() if len(names) == 1 else ""
        if not self._is_ours(host):
            return (
                f"Host: found {', '.join(names)!r:.100}, expected an address like 127.0.0.1 or "
                f"one of the names {', '.join(self.hosts)}: use one, or start the server with "
                "--conf hosts and its name."
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
            f"Origin: found the page {page or site!r:.100}, expected a program or one of the "
            "server's own pages: open the address by hand, or name the page in --conf origins if "
            "it is yours."
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
                f"hosts: found {name!r}, expected names like label.example.org without port, "
                "separated by commas: fix --conf hosts."
            )
    return sorted({"localhost", socket.gethostname().lower(), host.lower(), *names})


def listens_on() -> str:
    """The address that MONAI Label's server was started with, which it tells nobody."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-i", "--host", default="0.0.0.0")
    return parser.parse_known_args()[0].host


def log_who_is_answered(host: str, names: Sequence[str], origins: Sequence[str]) -> None:
    """Log whom a server that listens on `host` answers, with a warning where that is anybody."""
    logger.info(
        "Answered are programs and this server's own pages, at its addresses and the names %s; "
        "other pages: %s.",
        ", ".join(names),
        ", ".join(origins) or "none",
    )
    try:
        alone = ipaddress.ip_address(host).is_loopback
    except ValueError:
        alone = host == "localhost"
    if not alone and not settings.MONAI_LABEL_AUTH_ENABLE:
        logger.warning(
            "%s: whoever reaches this machine over a network can read and delete scans, labels "
            "and models, as nobody is asked for a password: start the server with --host "
            "127.0.0.1, close the port in the firewall, or set MONAI_LABEL_AUTH_ENABLE.",
            host,
        )


def _origin(address: str) -> str:
    return address and "/".join(address.split("/")[:3])
