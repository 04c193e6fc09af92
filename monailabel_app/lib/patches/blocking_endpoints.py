"""One inference holds up everyone: endpoints are coroutines that block.

https://github.com/Project-MONAI/MONAILabel/blob/0.8.5/monailabel/endpoints/infer.py#L192-L204 and
all others; a client that sends a file slowly holds up nobody there, but an endpoint's thread here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import anyio
from fastapi import FastAPI, HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# A client that sends nothing for so long is refused.
IDLE_SECONDS = 60
# Of a body in memory; the rest is on the disk.
CHUNK_BYTES = 2**20


def fix(server: FastAPI, inferences: int) -> None:
    """Answer in threads."""
    server.add_middleware(Threads, inferences=inferences)


# Starlette's run_in_threadpool is for functions; these are coroutines, and more may wait than run.
class Threads:
    """Answer each request, when all of it is there, in a thread with an event loop of its own.

    Clients that send slowly hold no thread.

    Args:
        app: what answers.
        inferences: how many run at once; others wait for their turn.
    """

    def __init__(self, app: ASGIApp, inferences: int) -> None:
        self.app = app
        self.inferences = anyio.CapacityLimiter(inferences)
        self.others = anyio.CapacityLimiter(40)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        server_loop = asyncio.get_running_loop()

        def there(function: Callable) -> Callable:
            async def call(*args: Any) -> Any:
                return await asyncio.wrap_future(
                    asyncio.run_coroutine_threadsafe(function(*args), server_loop)
                )

            return call

        async with anyio.SpooledTemporaryFile(max_size=CHUNK_BYTES) as body:
            refusal = None
            try:
                if not await _receive_body(receive, body):
                    return
            except HTTPException as error:
                refusal = error
            await body.seek(0)
            ended = False

            async def receive_again() -> Message:
                nonlocal ended
                # Where endpoints ask for the body, so that the answer is made like all others.
                if refusal is not None:
                    raise refusal
                if ended:
                    return await there(receive)()
                chunk = await body.read(CHUNK_BYTES)
                ended = len(chunk) < CHUNK_BYTES
                return {"type": "http.request", "body": chunk, "more_body": not ended}

            infers = (
                "/infer/" in scope["path"] and "/batch/" not in scope["path"] and refusal is None
            )
            answer: Any = self.app(scope, receive_again, there(send))
            await anyio.to_thread.run_sync(
                asyncio.run, answer, limiter=self.inferences if infers else self.others
            )


async def _receive_body(receive: Receive, body: anyio.SpooledTemporaryFile[bytes]) -> bool:
    """Write the body of a request into a file; False where its client has gone."""
    more = True
    while more:
        try:
            with anyio.fail_after(IDLE_SECONDS):
                message = await receive()
        except TimeoutError as error:
            raise HTTPException(
                408,
                f"upload: found nothing for {IDLE_SECONDS} s, expected the rest of the request: "
                "send it again.",
            ) from error
        if message["type"] == "http.disconnect":
            return False
        await body.write(message.get("body", b""))
        more = message.get("more_body", False)
    return True
