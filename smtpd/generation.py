"""Everything made from one configuration: agents, filters, logins and one Service per listener.

A reload makes a new generation; the old one stops when its last conversation is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from smtpd import plugins
from smtpd.auth import Authenticator, CredentialProvider
from smtpd.config import Config, ConfigError, Listener
from smtpd.config.checks import find_mistakes
from smtpd.config.problems import Origins
from smtpd.config.validation import Draft
from smtpd.content import Budget
from smtpd.delivery import DeliveryAgent
from smtpd.dns import Resolver
from smtpd.journal import Journal
from smtpd.log import Log
from smtpd.metrics import Meters, Metrics, Slots
from smtpd.options import AgentOptions, FilterOptions
from smtpd.policy import Filter, Policy, Rule
from smtpd.routing import Router
from smtpd.service import Service, make_service
from smtpd.services import Services
from smtpd.store import Store

START_SECONDS = 60.0  # for everything in a configuration that is reloaded: the next reload waits for it
STOP_SECONDS = 30.0  # for all together, some may have to finish something; systemd waits 90 for the whole server
HEALTH_SECONDS = 4.0  # for all together, too; the exporter waits 5, and then cannot say who it was
_DEAF_SECONDS = 1.0  # more for those that go on although their time is up

Part = DeliveryAgent | Filter | CredentialProvider
Spawn = Callable[[Coroutine[Any, Any, None]], None]
AgentMaker = Callable[..., DeliveryAgent]
"""A class of agents, or anything else that makes one of (name, options, services)."""
FilterMaker = Callable[..., Filter]
"""The same for filters."""


@dataclass(frozen=True, slots=True)
class OwnParts:
    """Agents and filters that the surrounding program brings along, by the name of their table.

    Their options are those in the configuration, or the defaults of their class when it has no such table.
    """

    agents: Mapping[str, AgentMaker] = field(default_factory=dict)
    filters: Mapping[str, FilterMaker] = field(default_factory=dict)


_NOTHING = OwnParts()


class Generation:
    """One configuration at work. Making it can raise PluginError, PolicyError or ValueError, and changes nothing."""

    def __init__(
        self,
        config: Config,
        *,
        log: Log,
        metrics: Metrics,
        slots: Slots,
        budget: Budget,
        spawn: Spawn,
        has_tls: bool,
        journal: Journal,
        store: Store,
        resolver: Resolver,
        own: OwnParts = _NOTHING,
    ) -> None:
        self.config = config
        self._log = log
        self._started: list[tuple[str, Part]] = []
        self._store = store
        services = _services(config, log, metrics, store, resolver)
        self.agents = _agents(config, services, own.agents)
        self.filters, rules = _filters(config, services, own.filters)
        self.authenticator = _authenticator(config, services)
        router = Router.from_config(config)
        self.services: dict[str, Service] = {
            name: make_service(
                name,
                listener,
                config,
                policy=Policy(rules, services=services, listener=name),
                router=router,
                agents=self.agents,
                authenticator=self.authenticator,
                has_certificate=has_tls,
                budget=budget,
                meters=Meters(metrics, name, config.domains, slots),
                log=log,
                spawn=spawn,
                journal=journal,
                greet_delay=_greet_delay(rules, name, listener),
            )
            for name, listener in config.listeners.items()
        }

    async def start(self) -> None:
        """Start agents, filters and logins; when one cannot start, those that did are stopped again."""
        try:
            for name, part in self._parts():
                with _about(name):
                    await part.start()
                self._started.append((name, part))
        except BaseException:
            await self.stop()
            raise

    async def start_in_time(self) -> None:
        """As `start`, but TimeoutError after START_SECONDS."""
        try:
            async with asyncio.timeout(START_SECONDS) as limit:
                await self.start()
        except TimeoutError:
            if limit.expired():
                raise TimeoutError(f"not everything in it had started after {START_SECONDS:g} s") from None
            raise

    async def stop(self) -> None:
        """Stop what was started, all at once; one that fails or hangs does not keep the others running."""
        stopping = {asyncio.create_task(self._stop(*started)): started[0] for started in self._started}
        self._started.clear()
        if not stopping:
            return
        try:
            _, deaf = await asyncio.wait(stopping, timeout=STOP_SECONDS + _DEAF_SECONDS)
        except asyncio.CancelledError:
            for task in stopping:
                task.cancel()
            raise
        for task in deaf:
            self._log.error("stop-failed", part=stopping[task], problem="it goes on although its time is up")

    async def _stop(self, name: str, part: Part) -> None:
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await part.stop()
        except (GeneratorExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # a CancelledError, too, such as that of a task which it has cancelled itself
            self._log.error("stop-failed", part=name, exception=error)

    async def problems(self) -> list[str]:
        """One line for each part that cannot work now, or does not say in time whether it can."""
        parts: list[tuple[str, Part | Store]] = [*self._parts()]
        if self.config.delivery.guarantee == "at-most-once":  # then no mail is taken that it cannot note
            parts.append(("state", self._store))
        answers = await asyncio.gather(*(_complaint(part) for _, part in parts))
        return [f"{name}: {answer}" for (name, _), answer in zip(parts, answers, strict=True) if answer is not None]

    def _parts(self) -> Sequence[tuple[str, Part]]:
        parts: list[tuple[str, Part]] = [(f"agent {name}", agent) for name, agent in self.agents.items()]
        parts += [(f"filter {name}", filter) for name, filter in self.filters.items()]
        if self.authenticator is not None:
            parts += [(f"auth {provider.name}", provider) for provider in self.authenticator.providers]
        return parts


async def _complaint(part: Part | Store) -> str | None:
    try:
        async with asyncio.timeout(HEALTH_SECONDS) as limit:
            return await part.health()
    except (GeneratorExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        return f"no answer within {HEALTH_SECONDS:g} s" if limit.expired() else str(error) or type(error).__name__


def check(config: Config, own: OwnParts) -> None:
    """Raise ConfigError with everything the server must not start with; for a Config that was made in code."""
    names = {
        "agents": frozenset((*config.agents, *own.agents)),
        "filters": frozenset((*config.filters, *own.filters)),
        "listeners": frozenset(config.listeners),
        "auth": frozenset(config.auth.tables),
    }
    origins = Origins("configuration", {})
    findings = find_mistakes(config, Draft(config, [], names=names), files=True)
    if problems := [origins.problem(finding) for finding in findings]:
        raise ConfigError(problems)


def _services(config: Config, log: Log, metrics: Metrics, store: Store, resolver: Resolver) -> Services:
    return Services(
        hostname=config.hostname,
        log=log,
        metrics=metrics,
        store=store,
        resolver=resolver,
        lookups_per_message=config.dns.lookups_per_message,
        authserv_id=config.authserv_id,
        local_domains=tuple(config.domains),
        subaddress_separator=config.subaddress_separator,
    )


def _agents(config: Config, services: Services, own: Mapping[str, AgentMaker]) -> dict[str, DeliveryAgent]:
    made = {}
    for name in dict.fromkeys((*config.agents, *own)):
        maker = own.get(name)
        with _about(f"agent {name}"):
            options = config.agents.get(name) or _default_options(maker, AgentOptions, name)
            agent = (maker or plugins.find(plugins.AGENTS, options.type))(name, options, services)
            made[name] = _whole(agent, DeliveryAgent)
    return made


def _filters(
    config: Config, services: Services, own: Mapping[str, FilterMaker]
) -> tuple[dict[str, Filter], list[tuple[Filter, Rule]]]:
    made, rules = {}, []
    for name in dict.fromkeys((*config.filters, *own)):
        maker = own.get(name)
        with _about(f"filter {name}"):
            options = config.filters.get(name) or _default_options(maker, FilterOptions, name)
            if options.mode == "off":
                continue
            filter = (maker or plugins.find(plugins.FILTERS, options.type or name))(name, options, services)
            made[name] = _whole(filter, Filter)
            rules.append((filter, Rule.from_options(name, options)))
    return made, rules


@contextmanager
def _about(part: str) -> Iterator[None]:
    """Say whom an exception is about; sys.exit() in there, and the like, is no more than any other."""
    try:
        yield
    except Exception as error:
        error.add_note(part)
        raise
    except (GeneratorExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        broken = plugins.BrokenPlugin(f"{type(error).__name__}: {error}".removesuffix(": "))
        broken.add_note(part)
        raise broken from error


def _whole[Kind: Part](made: object, kind: type[Kind]) -> Kind:
    if not isinstance(made, kind):
        raise plugins.BrokenPlugin(f"{type(made).__name__} is no {kind.__name__}")
    if not hasattr(made, "services"):
        raise plugins.BrokenPlugin(f"{type(made).__name__}.__init__ does not call super().__init__")
    return made


def _default_options[Table: (AgentOptions, FilterOptions)](maker: object, base: type[Table], name: str) -> Table:
    table = getattr(getattr(maker, "func", maker), "Options", base)  # of a class, or of the class in a partial
    assert issubclass(table, base)
    return table.model_validate({"type": name})


def _authenticator(config: Config, services: Services) -> Authenticator | None:
    providers: list[CredentialProvider] = []
    tables: Mapping[str, Any] = config.auth.tables
    for name in config.auth.providers:
        with _about(f"auth {name}"):
            provider = plugins.find(plugins.PROVIDERS, tables[name].type)(name, tables[name], services)
            providers.append(_whole(provider, CredentialProvider))
    return Authenticator(providers, log=services.log) if providers else None


def _greet_delay(rules: Sequence[tuple[Filter, Rule]], name: str, listener: Listener) -> float:
    """Where everybody has to log in, a banner that waits only annoys."""
    if listener.switches().auth == "required":
        return 0.0
    return max((filter.greet_delay for filter, rule in rules if rule.holds_on(name)), default=0.0)
