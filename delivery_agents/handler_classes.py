"""Handler classes of others: found by name, and looked at before the server starts.

ValueError
  HandlerError    the class cannot be used; the text says why
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence


class HandlerError(ValueError):
    """A class that cannot take mail."""


def load_handler(name: str) -> type:
    """The class behind "package.module:Class"; HandlerError when it is none that has `handle_DATA`."""
    module, colon, path = name.partition(":")
    if not colon or not module or not path:
        raise HandlerError('must look like "package.module:Class"')
    try:
        found: object = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever a stranger's module raises while it is imported
        raise HandlerError(f"{name} cannot be imported: {type(error).__name__}: {error}") from error
    if not isinstance(found, type):
        raise HandlerError(f"{name} is no class")
    if not callable(getattr(found, "handle_DATA", None)):
        raise HandlerError(f"{name} has no handle_DATA, so it keeps no mail (to throw mail away there is `discard`)")
    if inspect.isabstract(found):
        missing = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
        raise HandlerError(f"{name} is not complete, it lacks {missing}")
    return found


def check_arguments(kind: type, arguments: Sequence[object]) -> None:
    """Whether the constructor takes so many arguments; HandlerError if not."""
    try:
        signature = inspect.signature(kind)
    except (TypeError, ValueError):
        return  # written in C: it will be seen when the object is made
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise HandlerError(f"the arguments do not fit {kind.__qualname__}{signature}: {error}") from error
