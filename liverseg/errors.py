"""The one exception for input that the user can fix, and the message behind any other."""

from __future__ import annotations

# Parts of other libraries' messages, and what is wrong in words that help.
FOREIGN = {
    "gloo/transport": (
        "the connection to another process of this training is lost, expected all to run to the "
        "end: see the other processes' output for the first error, and go on with --resume true."
    ),
    "the dataset length is less than the number of participating ranks": (
        "validation: found fewer scans than processes, expected at least one for each: start fewer "
        "processes, or hold out more scans."
    ),
}


class InputError(ValueError):
    """A file, key or value that the user gave is wrong.

    One sentence: the file or key, what was found, what was expected, what to do.
    """


def message(error: BaseException | None) -> str | None:
    """Return the message for what is wrong outside the code behind `error`, or None."""
    while error is not None:
        if isinstance(error, InputError):
            return str(error)
        foreign = next((text for part, text in FOREIGN.items() if part in str(error)), None)
        if foreign:
            return foreign
        error = error.__cause__ or error.__context__
    return None
