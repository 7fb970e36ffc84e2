"""Whether the filters fit together on every listener: what they need of each other, and when they may speak."""

from collections.abc import Iterator, Mapping
from typing import Any

from smtpd import plugins
from smtpd.config.models import Config, LogOptions
from smtpd.config.problems import Finding
from smtpd.log import Log
from smtpd.metrics import Metrics
from smtpd.policy import Filter, Policy, PolicyError, Rule
from smtpd.services import Services


class _Nowhere:
    """Nothing is written: the filters are made, but never asked."""

    def write(self, data: bytes) -> int:
        return len(data)

    def reopen(self) -> None: ...

    def close(self) -> None: ...


def find_misfits(config: Config) -> Iterator[Finding]:
    """What the policy of a listener finds wrong with a configuration that is fine otherwise."""
    services = Services(hostname=config.hostname, log=Log(LogOptions(), sink=_Nowhere()), metrics=Metrics())
    entries: list[tuple[Filter, Rule]] = []
    for name, options in config.filters.items():
        if options.mode == "off":
            continue
        try:
            made = plugins.find(plugins.FILTERS, options.type or name)(name, options, services)
        except (Exception, SystemExit) as error:  # whatever a stranger's filter raises
            yield Finding(("filters", name), f"cannot be made: {type(error).__name__}: {error}")
            return
        assert isinstance(made, Filter)
        entries.append((made, Rule.from_options(name, options)))
    for listener in config.listeners:
        try:
            Policy(entries, services=services, listener=listener)
        except PolicyError as error:
            for problem in error.problems:
                key, _, message = problem.partition(": ")
                yield Finding(tuple(key.split(".")[1:]), message)


def find_loopholes(config: Config) -> Iterator[Finding]:
    """Refusals that a forger can silence, as `unless` has a label that he can get; it works, but is seldom meant."""
    running = {name: options for name, options in config.filters.items() if options.mode != "off"}
    kinds = [plugins.find(plugins.FILTERS, options.type or name) for name, options in running.items()]
    at_will = frozenset[str]().union(*(kind.labels_at_will for kind in kinds if issubclass(kind, Filter)))
    for name, options in running.items():
        for word in options.unless:
            if word in at_will:
                message = f'whoever sends can have the label "{word}", so forgers are not refused either'
                yield Finding(("filters", name, "unless"), message)


def find_slips(config: Config) -> Iterator[Finding]:
    """Methods of plug-ins that look as if their author had meant another name, or other arguments."""
    parts = [(plugins.FILTERS, ("filters", name), it.type or name) for name, it in config.filters.items()]
    parts += [(plugins.AGENTS, ("agents", name), it.type) for name, it in config.agents.items()]
    tables: Mapping[str, Any] = config.auth.tables
    parts += [(plugins.PROVIDERS, ("auth", name), tables[name].type) for name in config.auth.providers]
    for group, path, kind in parts:
        for oddity in plugins.oddities(group, kind):
            yield Finding(path, oddity)
