"""The names and JSON objects that requests may carry, beside files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from liverseg.errors import InputError

LONGEST_NAME = 200
# What a request says outside its `params`: there, it could name any file of the server, and code to
# run.
RESERVED = {"bundle_path", "image", "images", "label", "model", "session"}
# What clients send beside the model's options, and all that begins with `result_`. The classes of
# `label_prompt` OHIF picks out of the mask itself.
GENERAL = (
    *("client_id", "label_info", "label_tag", "label_prompt", "logging", "restore_label_idx"),
    *("roi", "save_label", "selected_label_name", "timeout"),
)
# What the server itself writes of a scan, beside the scores, and says of the next one.
OF_THE_SERVER = {"id", "name", "path", "score", "served", "strategy", "ts", "warnings"}


def _is_name(name: Any) -> str:
    # Before its type is looked at, so that whatever it is gets the same answer.
    wrong = not isinstance(name, str) or not name or name.startswith(".") or set("/\\") & set(name)
    if wrong or not name.isprintable():
        raise InputError(f"found {name!r}, expected a name without slashes and leading dot")
    if len(name.encode()) > LONGEST_NAME:
        raise InputError(
            f"found a name of {len(name.encode())} bytes ({name[:20]}…), expected {LONGEST_NAME} "
            "at most"
        )
    return name


# What can be the name of one file in a folder.
Name = Annotated[str, BeforeValidator(_is_name)]


class Sent(BaseModel):
    """An object that clients send: the declared fields and any others."""

    model_config = ConfigDict(extra="allow", strict=True)


class Kept(Sent):
    """An object that the server keeps, and answers with."""

    @model_validator(mode="after")
    def _is_json(self) -> Self:
        # Python reads more from JSON than it can answer with: NaN, infinite numbers, half
        # characters.
        try:
            json.dumps(self.model_dump(), allow_nan=False, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise InputError(f"found {error}, expected finite numbers and Unicode text") from error
        return self


class ImageInfo(Kept):
    """Info of a scan from a client; the validation's context holds the names of the scores."""

    @model_validator(mode="after")
    def _is_not_of_the_server(self, info: ValidationInfo) -> Self:
        if own := sorted({*OF_THE_SERVER, *(info.context or ())} & self.model_fields_set):
            raise InputError(f"found {', '.join(own)}, expected keys that are not the server's own")
        return self


class Segment(Sent):
    """The name of a value in a label: `name`, and the value as `idx`."""

    name: str = ""
    idx: NonNegativeInt = 0


class Result(Sent):
    """The result of a model beside its mask."""

    label_names: dict[str, NonNegativeInt] = {}


class LabelInfo(Kept):
    """Info of a label from a client: which value is which segment."""

    label_info: list[Segment] = Field(
        [], description='a list of {"name": text, "idx": whole number} as 3D Slicer sends it'
    )
    params: Result = Field(
        Result(), description='{"label_names": {name: value}} as a model gives it'
    )


class Params(Sent):
    """Options of a request beside its address; the validation's context holds reserved names."""

    label_tag: Name = ""

    @model_validator(mode="after")
    def _are_options(self, info: ValidationInfo) -> Self:
        sent = self.model_dump(exclude_unset=True)
        # Those of all models, or of all methods, are given by name.
        for keys in (sent, *(value for value in sent.values() if isinstance(value, dict))):
            if reserved := sorted({*RESERVED, *(info.context or ())} & keys.keys()):
                raise InputError(
                    f"found {', '.join(reserved)}, expected options, and these in the address"
                )
        return self


class TaskParams(Params, Kept):
    """Those of a task in another process, whose status shows them."""


class BatchParams(TaskParams):
    """Those of a batch."""

    max_batch_size: NonNegativeInt = Field(0, description="a whole number from 0")
    max_workers: NonNegativeInt = Field(0, description="a whole number from 0")
    gpus: str = Field("all", description='text like "0,1" or "all"')


def read(
    what: str, schema: type[Sent], sent: str | Mapping[str, Any] | None, context: Any = None
) -> dict[str, Any]:
    """Read an object in a field of a request, or in its text.

    Args:
        what: the field of the request.
        schema: of the object.
        sent: what the client sent; nothing is an empty object.
        context: of the schema.

    Raises:
        InputError: for anything that the schema does not allow.
    """
    try:
        if isinstance(sent, str):
            found = schema.model_validate_json(sent or "{}", context=context)
        else:
            found = schema.model_validate(sent or {}, context=context)
    except ValidationError as error:
        raise _refusal(what, error, schema) from error
    return found.model_dump(exclude_unset=True)


def check_name(what: str, name: Any) -> None:
    """Refuse what cannot be the name of one file in a folder.

    Raises:
        InputError: for it.
    """
    try:
        _is_name(name)
    except InputError as error:
        raise InputError(f"{what}: {error}: rename it.") from error


def _refusal(what: str, error: ValidationError, schema: type[Sent]) -> InputError:
    first = error.errors()[0]
    place, cause = first["loc"], first.get("ctx", {}).get("error")
    if place:
        what = f"{what}, {'#'.join(map(str, place))}"
    if isinstance(cause, InputError):
        return InputError(f"{what}: {cause}: fix it.")
    if first["type"] == "json_invalid":
        return InputError(
            f"{what}: found no JSON ({cause}), expected an object of options: fix it."
        )
    expected = schema.model_fields[str(place[0])].description if place else "an object of options"
    return InputError(f"{what}: found {first['input']!r:.100}, expected {expected}: fix it.")
