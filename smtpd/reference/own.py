"""What belongs to this distribution: its plug-ins and its metrics. Third parties write their own pages."""

import pkgutil
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import distribution
from inspect import cleandoc
from types import ModuleType

import smtpd
from smtpd import plugins
from smtpd.series import Counter, Gauge, Histogram

Description = Counter | Gauge | Histogram


def own_plugins(group: str) -> dict[str, type]:
    """Our own plug-ins of one entry-point group by name, sorted."""
    points = distribution("smtpd").entry_points.select(group=group)
    return {name: plugins.find(group, name) for name in sorted({point.name for point in points})}


def manual(plugin: type) -> str:
    """The manual page of a plug-in: the docstring of its module."""
    return cleandoc(sys.modules[plugin.__module__].__doc__ or "")


def metrics_of_plugin(plugin: type) -> list[Description]:
    """Metrics that stand in a plug-in's module, or anywhere in its package when it has one of its own."""
    module = sys.modules[plugin.__module__]
    return _metrics([module, *_below(module)])


def all_metrics() -> list[Description]:
    """Metrics of the server and of our own plug-ins, sorted by name."""
    modules = list(_below(smtpd))
    for group in (plugins.FILTERS, plugins.AGENTS, plugins.PROVIDERS):
        for plugin in own_plugins(group).values():
            module = sys.modules[plugin.__module__]
            modules += [module, *_below(module)]
    return _metrics(modules)


def _metrics(modules: list[ModuleType]) -> list[Description]:
    found = {
        value.name: value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, Counter | Gauge | Histogram)
    }
    return [found[name] for name in sorted(found)]


def _below(package: ModuleType) -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(getattr(package, "__path__", ()), f"{package.__name__}."):
        if not found.name.endswith("__main__"):
            yield import_module(found.name)
