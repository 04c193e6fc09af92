"""A request of any size is taken, until the disk is full.

MONAI Label has no limit: it writes all that is sent,
https://github.com/Project-MONAI/MONAILabel/blob/0.8.5/monailabel/endpoints/datastore.py#L61-L83
"""

from __future__ import annotations

from fastapi import FastAPI, HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


def fix(server: FastAPI, max_mb: int) -> None:
    """Refuse more than `max_mb` · 10⁶ bytes."""
    server.add_middleware(UploadLimit, max_mb=max_mb)


# FastAPI's max_body_size is for who makes the app, as MONAI Label does, and knows no message of
# ours.
class UploadLimit:
    """Refuse requests of more than `max_mb` · 10⁶ bytes with 413, before they fill the disk."""

    def __init__(self, app: ASGIApp, max_mb: int) -> None:
        self.app = app
        self.max_mb = max_mb

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, as long as it is small enough."""
        length = dict(scope.get("headers", [])).get(b"content-length", b"0")
        announced = int(length) if length.isdigit() else 0
        received = 0

        async def receive_some() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if max(announced, received) > self.max_mb * 10**6:
                raise HTTPException(
                    413,
                    f"upload: found more than {max(announced, received) // 10**6} MB, expected at "
                    f"most {self.max_mb} MB: send a smaller file, or start the server with a "
                    "larger --conf max_upload_mb.",
                )
            return message

        await self.app(scope, receive_some, send)
