"""What a plug-in's class looks like beside the one it derives from: methods that nobody will call, or not in that way.

Nothing here is certain, as Python lets a method be much: it is said by `smtpd check`, and nothing is refused for it.
"""

import inspect
from collections.abc import Iterator
from difflib import get_close_matches
from types import FunctionType

_HOOK = "on_"


def oddities(kind: type, base: type) -> Iterator[str]:
    """One sentence for each method of `kind` that does not look like what the server calls by the methods of `base`."""
    known = {name: method for name, method in vars(base).items() if isinstance(method, FunctionType)}
    called = [name for name in known if not name.startswith("_")]
    for name in dir(kind):
        method = inspect.getattr_static(kind, name)
        if name in called and method is not known[name]:
            yield from _compare(name, method, known[name])
        elif name.startswith(_HOOK) and name not in known and any(hook.startswith(_HOOK) for hook in called):
            guess = get_close_matches(name, called, 1, 0.75)
            yield f"{name} is called by nobody" + (f", did you mean {guess[0]}?" if guess else "")


def _compare(name: str, method: object, model: FunctionType) -> Iterator[str]:
    if not isinstance(method, FunctionType):
        return
    if inspect.iscoroutinefunction(model) and not inspect.iscoroutinefunction(inspect.unwrap(method)):
        yield f"{name} is no async def, and has to be awaited"
    count = len(inspect.signature(model).parameters)
    try:
        inspect.signature(method).bind(*range(count))
    except TypeError as error:
        names = ", ".join(inspect.signature(model).parameters)
        yield f"{name} cannot be called with ({names}): {error}"
