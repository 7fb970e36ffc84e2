"""Filters, delivery agents and auth providers are found by entry point, ours and third parties' alike.

PluginError
+-- UnknownPlugin    nothing of this name is installed
+-- BrokenPlugin     it is installed, but cannot be imported or is not what it should be
"""

import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from smtpd.auth import CredentialProvider, ProviderOptions
from smtpd.delivery import DeliveryAgent
from smtpd.options import AgentOptions, FilterOptions, Options
from smtpd.plugin_shape import oddities as _oddities
from smtpd.policy import Filter

FILTERS = "smtpd.filters"
AGENTS = "smtpd.delivery_agents"
PROVIDERS = "smtpd.auth_providers"

_BASES: dict[str, tuple[type, type[Options]]] = {
    FILTERS: (Filter, FilterOptions),
    AGENTS: (DeliveryAgent, AgentOptions),
    PROVIDERS: (CredentialProvider, ProviderOptions),
}


class PluginError(Exception):
    """A plug-in cannot be used; the text says why."""


class UnknownPlugin(PluginError):  # noqa: N818 - reads as the finding it is
    """Nothing of this name is installed."""


class BrokenPlugin(PluginError):  # noqa: N818
    """It is installed, but cannot be imported or is not what it should be."""


def names(group: str) -> tuple[str, ...]:
    """Names of everything installed in one entry-point group, sorted."""
    return tuple(sorted({point.name for point in _points(group, tuple(sys.path))}))


def find(group: str, name: str) -> type:
    """The class behind an entry point; UnknownPlugin or BrokenPlugin when there is none that works."""
    points = {point.value: point for point in _points(group, tuple(sys.path)) if point.name == name}
    if not points:
        raise UnknownPlugin(f"nothing of type {name!r} is installed{_elsewhere(group, name)}")
    if len(points) > 1:
        raise BrokenPlugin(f"{name!r} is offered twice: {' and '.join(sorted(points))}")
    return _load(group, points.popitem()[1])


def options_class(group: str, name: str) -> type[Options]:
    """The option table of a plug-in; errors as in `find`."""
    found: type[Options] = find(group, name).Options  # type: ignore[attr-defined]  # `find` looked
    return found


def oddities(group: str, name: str) -> tuple[str, ...]:
    """What looks like a slip in the class behind an entry point; errors as in `find`."""
    found = find(group, name)
    return (*_left_out(found), *_oddities(found, _BASES[group][0]))


def describe(error: BaseException) -> str:
    """What went wrong in words, behind the part of the server that it is about."""
    text = str(error) or type(error).__name__
    return ": ".join([*(note for note in getattr(error, "__notes__", ()) if not text.startswith(note)), text])


def _left_out(found: type) -> Iterator[str]:
    """What a class has to define for itself, unless another method does it in its place."""
    if issubclass(found, DeliveryAgent) and not found.opens and found.deliver is DeliveryAgent.deliver:
        yield "deliver is not defined, so all mail will be put off"
    if issubclass(found, CredentialProvider) and found.check_password is CredentialProvider.check_password:
        yield "check_password is not defined, so nobody can log in"


def _elsewhere(group: str, name: str) -> str:
    """A group whose name is not quite right, or that of other plug-ins."""
    groups = sorted({point.group for point in entry_points(name=name) if point.group.startswith("smtpd")} - {group})
    return f" as {group}, but there is one in the entry-point group {' and '.join(groups)}" if groups else ""


@cache
def _points(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    # `path` is what the answer depends on: reading the metadata of every distribution takes milliseconds.
    return tuple(entry_points(group=group))


def _load(group: str, point: EntryPoint) -> type:
    base, options = _BASES[group]
    try:
        found = point.load()
    except (Exception, SystemExit) as error:  # whatever a stranger's module raises while it is imported
        raise BrokenPlugin(f"{point.value} cannot be imported: {type(error).__name__}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise BrokenPlugin(f"{point.value} is no subclass of {base.__name__}")
    table = getattr(found, "Options", None)
    if not (isinstance(table, type) and issubclass(table, options)):
        raise BrokenPlugin(f"{point.value} has no Options that derive from {options.__name__}")
    return found
