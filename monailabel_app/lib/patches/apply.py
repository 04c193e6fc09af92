"""Put all patches into MONAI Label's server."""

from __future__ import annotations

from fastapi import FastAPI

from lib.conf import Conf
from lib.patches import (
    any_web_page,
    bare_errors,
    blocking_endpoints,
    damaged_models,
    dicomweb_proxy,
    leftover_files,
    logs,
    ohif,
    reload,
    tokens,
    unchecked_sessions,
    unchecked_studies,
    unchecked_tasks,
    unlimited_uploads,
    whole_slides,
)


def apply(server: FastAPI, options: Conf) -> None:
    """Change the server when it has started and before its first request.

    Args:
        server: `monailabel.app.app`.
        options: of the app.

    Raises:
        InputError: for what is no name in `hosts`.
    """
    for patch in (unchecked_tasks, unchecked_studies, unchecked_sessions, damaged_models):
        patch.fix(server)
    # Over the checks, for what they refuse leaves files too.
    leftover_files.fix(server)
    for patch in (dicomweb_proxy, logs, ohif, reload, tokens, whole_slides, bare_errors):
        patch.fix(server)
    # Starlette has put its middleware together for the start itself, and does so anew for the next
    # request. What is added last sees a request first.
    server.middleware_stack = None
    blocking_endpoints.fix(server, options.inferences)
    unlimited_uploads.fix(server, options.max_upload_mb)
    any_web_page.fix(server, options.hosts, options.origins)
