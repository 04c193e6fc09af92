"""The options that `--conf NAME VALUE` sets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, ValidationError

from liverseg.errors import InputError


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _split_origins(text: str) -> list[str]:
    origins = [origin.rstrip("/") for origin in _split(text)]
    for origin in origins:
        if not re.fullmatch(r"https?://[^/\s]+", origin):
            raise InputError(
                f"origins: found {origin!r}, expected addresses of web pages without a path, as "
                "https://viewer.example.org: fix --conf origins."
            )
    return origins


Number = Annotated[PositiveInt, Field(description="a whole number above 0")]


class Conf(BaseModel):
    """The options of the app, which MONAI Label gives as text.

    Attributes:
        models: names of the bundles to take; none takes all.
        inferences: how many run at once.
        max_upload_mb: the largest request in 10⁶ bytes.
        score_model: the bundle that chooses the next scan.
        hold_minutes: for which a scan is one annotator's.
        hosts: names that the server is reached by, separated by commas.
        origins: of other web pages that may ask it.
        server_mode: MONAI Label's own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: Annotated[list[str], BeforeValidator(_split)] = []
    inferences: Number = 2
    max_upload_mb: Number = 4096
    score_model: str = ""
    hold_minutes: Number = 60
    hosts: str = ""
    origins: Annotated[list[str], BeforeValidator(_split_origins)] = []
    server_mode: str = "false"


def read_conf(conf: Mapping[str, str]) -> Conf:
    """Read the options that are given, with the defaults of the others.

    Raises:
        InputError: for a name that is none, and a value that is none.
    """
    if unknown := sorted(conf.keys() - Conf.model_fields.keys()):
        raise InputError(
            f"--conf: found {', '.join(unknown)}, expected names among "
            f"{', '.join(sorted(Conf.model_fields))}: fix them."
        )
    try:
        return Conf(**conf)  # type: ignore[arg-type]
    except ValidationError as error:
        first: Any = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, InputError):
            raise cause from error
        key = first["loc"][0]
        raise InputError(
            f"{key}: found {first['input']!r}, expected {Conf.model_fields[key].description}: fix "
            f"--conf {key}."
        ) from error
