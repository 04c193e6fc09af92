"""The one exception for input that the user can mend."""

from __future__ import annotations


class InputError(ValueError):
    """A file, key or value that the user gave is wrong.

    The message is one sentence: the file or key, what was found, what was expected, what to do.
    """
