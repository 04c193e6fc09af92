"""`POST /reload` throws away the app, with all that it knows of tasks and annotators, for anyone.

https://github.com/Project-MONAI/MONAILabel/blob/0.8.5/monailabel/app.py#L114-L117
"""

from __future__ import annotations

from fastapi import FastAPI


def fix(server: FastAPI) -> None:
    """Take the address away."""
    server.router.routes[:] = [
        route for route in server.router.routes if getattr(route, "path", "") != "/reload"
    ]
