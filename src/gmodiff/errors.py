"""Every error a caller can act on.

    GMODiffError
    ├── InputError              what was given cannot be used (bad value, bad combination)
    │   └── FileFormatError     a file is unreadable, truncated, or not what it claims to be
    ├── OutputError             the result cannot be written where it was asked for
    └── MissingDependencyError  an optional part is not installed

The command line catches `GMODiffError`, prints the message on one line and exits with 2; nothing else is caught.
A message says what is wrong, with the value, what was expected, and how to go on.
"""

from __future__ import annotations


class GMODiffError(Exception):
    """Base class of every error raised on purpose by this package."""


class InputError(GMODiffError):
    """What the user gave cannot be used."""


class FileFormatError(InputError):
    """A file is unreadable, truncated, malformed, or of a kind that is not supported."""


class OutputError(GMODiffError):
    """The result cannot be written."""


class MissingDependencyError(GMODiffError):
    """An optional dependency is not installed; the message holds the pip line."""


def says_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice: torch and the engines raise their own kinds, of RuntimeError mostly."""
    return isinstance(error, MemoryError) or any(w in str(error).lower() for w in ("alloc", "out of memory", "not enough memory"))
