"""Plays a mail or a dialog under the rules of one listener, and writes down what happens at each command."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from smtpd import plugins
from smtpd.auth import Authenticator, ProviderOptions
from smtpd.config import AuthOptions, Config, LogOptions
from smtpd.config.models import StateOptions
from smtpd.dns import Resolver
from smtpd.findings import results_field
from smtpd.generation import Generation
from smtpd.log import Log
from smtpd.memory import LogEntries, MemoryTransport, Talk
from smtpd.model import Session, TlsInfo, Transaction
from smtpd.policy import NEVER_REJECT, WOULD_REJECT, Decision, Filter
from smtpd.rehearsal.questions import Question, WatchedResolver
from smtpd.rehearsal.script import Client, Envelope, Line
from smtpd.rehearsal.stand_ins import Believer, Collected, agent_maker
from smtpd.rehearsal.watching import Opinion, Watch
from smtpd.server import Server
from smtpd.service import Service

Moment = Literal["connect", "helo", "mail", "rcpt", "data", "message", "other"]
Ending = Literal["accepted", "partly accepted", "deferred", "refused", "nothing sent"]

ENCRYPTED = TlsInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384", 256)
MAX_SAID = 600  # octets of a command that are shown; our own choice, above the longest command line

_VERBS: dict[str, Moment] = {"EHLO": "helo", "HELO": "helo", "LHLO": "helo", "MAIL": "mail", "RCPT": "rcpt",
                             "DATA": "data", "BDAT": "message"}  # fmt: skip
_LAST_LINE = re.compile(r"[2-5]\d\d(?: |$)")


class RehearsalError(Exception):
    """The configuration cannot be put to work; the text says why."""


@dataclass(slots=True)
class Step:
    """What the client said, what filters thought of it, and what the server answered."""

    moment: Moment
    said: str
    heard: tuple[str, ...] = ()
    """The lines of all replies."""
    opinions: Sequence[Opinion] = ()
    """Filters asked here, in that order; their answers may have come later."""
    decisions: list[Decision] = field(default_factory=list)
    """What became of verdicts here, those of earlier stages included."""
    shared: Sequence[Question] = ()
    """Lookups here that belong to no single filter."""

    @property
    def replies(self) -> list[str]:
        """The last line of every reply."""
        return [line for line in self.heard if _LAST_LINE.match(line)]

    @property
    def code(self) -> str:
        """The code of the last reply, "" without one."""
        return self.replies[-1][:3] if self.replies else ""


@dataclass(slots=True)
class Letter:
    """One transaction, as it was when all was over."""

    mail: Transaction
    authentication_results: str
    """The field that stands, or would have stood, on top of the message, unfolded; "" when no filter gives evidence."""
    collected: list[Collected]
    """What agents would have been given; empty: nothing was accepted."""
    left_out: list[str] = field(default_factory=list)
    """Header fields of the sender's that pretend to be ours and so are not passed on, unfolded."""

    @property
    def labels(self) -> frozenset[str]:
        """All labels of the message and of its recipients."""
        mail = self.mail
        return mail.all_labels.union(*(one.labels for one in mail.recipients), *(one.labels for one in self.collected))


@dataclass(slots=True)
class Performance:
    """Everything that happened."""

    listener: str
    client: Client
    session: Session
    time: float
    """What filters took for the time of day, seconds since 1970."""
    modes: Mapping[str, str]
    """The mode of every filter."""
    steps: list[Step]
    letters: list[Letter]
    complaints: list[dict[str, object]]
    """Warnings and errors of the log."""
    filter_labels: frozenset[str]
    """Every label that filters of the configuration say they can give, in whatever mode they are."""

    @property
    def labels(self) -> frozenset[str]:
        """Labels of the last message and of its recipients; without any message those of the session."""
        return self.letters[-1].labels if self.letters else self.session.labels

    @property
    def known_labels(self) -> frozenset[str]:
        """Labels that are no mistake to ask for; a filter of somebody else's may give some it says nothing of."""
        return self.filter_labels | self.labels

    @property
    def ending(self) -> Ending:
        """What became of it all; of several messages the worst counts."""
        codes = [step.code for step in self.steps if step.moment != "other"]
        refused, deferred = any(code >= "5" for code in codes), any("4" <= code < "5" for code in codes)
        if any(letter.collected for letter in self.letters):
            return "partly accepted" if refused or deferred else "accepted"
        return "refused" if refused else "deferred" if deferred else "nothing sent"


async def rehearse(
    config: Config,
    client: Client,
    script: Envelope | Iterable[Line],
    *,
    resolver: Resolver,
    now: Callable[[], float],
    listener: str = "",
    ask_agents: bool = False,
    filters: dict[str, type[Filter]] | None = None,
) -> Performance:
    """Play it. `listener` "" is the first one; `filters` are classes without an entry point, by table.

    Nothing is delivered, stored or remembered. With `ask_agents` the real agents are started and asked at RCPT.
    RehearsalError when the configuration cannot be put to work.
    """
    name = listener or next(iter(config.listeners), "")
    if name not in config.listeners:
        known = ", ".join(config.listeners)
        raise RehearsalError(f"there is no listener {name!r}; there is {known}" if known else "there is no listener")
    stage = _Stage(config, resolver, now, ask_agents=ask_agents, filters=filters or {})
    try:
        service = await stage.open(name)
        play = _Play(service, client, stage)
        await play.greet()
        if isinstance(script, Envelope):
            await play.send(script)
        else:
            await play.follow(script)
        await play.talk.hang_up()
    finally:
        await stage.close()
    authserv_id = service.authserv_id if service.policy.gives_evidence else ""
    letters = [_letter(mail, stage, authserv_id) for mail in stage.watch.mails]
    modes = {name: options.mode for name, options in config.filters.items()}
    return Performance(
        name, client, play.talk.session, now(), modes, play.steps, letters, stage.lines.entries, stage.labels
    )


def unfolded(field: bytes) -> str:
    """A header field on one line (RFC 5322 §2.2.3)."""
    return field.decode("utf-8", "backslashreplace").replace("\r\n", "").replace("\t", " ").strip()


def _letter(mail: Transaction, stage: _Stage, authserv_id: str) -> Letter:
    results = unfolded(results_field(authserv_id, mail)) if authserv_id else ""
    left_out = [unfolded(one) for one in stage.watch.left_out.get(mail.id, ())]
    return Letter(mail, results, [one for one in stage.collected if one.trace == mail.id], left_out)


class _Stage:
    """A server whose filters and resolver are watched and whose agents keep nothing."""

    def __init__(
        self,
        config: Config,
        resolver: Resolver,
        now: Callable[[], float],
        *,
        ask_agents: bool,
        filters: dict[str, type[Filter]],
    ) -> None:
        self.watch = Watch()
        self.collected: list[Collected] = []
        self.lines = LogEntries()
        self.resolver = WatchedResolver(resolver)
        self._now = now
        self._config = config
        try:
            agents = {
                name: agent_maker(options.type, self.collected.append, ask=ask_agents)
                for name, options in config.agents.items()
            }
            kinds: dict[str, type[Filter]] = {
                name: filters.get(name) or plugins.find(plugins.FILTERS, options.type or name)
                for name, options in config.filters.items()
            }
        except plugins.PluginError as error:
            raise RehearsalError(str(error)) from None
        labels = frozenset[str]().union(*(kind.labels for kind in kinds.values()))
        self.labels = labels | {WOULD_REJECT} if NEVER_REJECT in labels else labels
        self.bystander = next(name for name in _free_names() if name not in kinds)
        self._log = Log(LogOptions(level="warning"), sink=self.lines)
        self._server = Server(
            config.model_copy(update={"state": StateOptions(), "spool": None, "auth": AuthOptions()}),
            agents=agents,
            filters={
                **{name: self.watch.maker(kind, now) for name, kind in kinds.items()},
                self.bystander: self.watch.bystander(),
            },
            log=self._log,
            resolver=self.resolver,
        )

    async def open(self, listener: str) -> Service:
        """The service of a listener, as it would be with certificates and logins."""
        try:
            generation = await self._server.start_quietly()
        except Exception as error:  # whatever keeps an agent or a filter of somebody else from starting
            raise RehearsalError(f"cannot start: {plugins.describe(error)}") from error
        service, tls = generation.services[listener], self._config.tls
        has_certificate = tls is not None and bool(tls.cert_file)
        service = replace(
            service,
            greet_delay=0.0,  # this client waits for its turn anyway
            can_start_tls=service.switches.tls == "starttls" and has_certificate,
            now=self._now,
        )
        if service.switches.auth == "off" or not self._config.auth.providers:
            return service
        return replace(
            service,
            authenticator=self._believer(generation),
            extensions=service.extensions | {"AUTH"},
        )

    async def close(self) -> None:
        """Stop everything."""
        await self._server.stop()
        self._log.close()

    def _believer(self, generation: Generation) -> Authenticator:
        services = generation.filters[self.bystander].services
        return Authenticator([Believer("believer", ProviderOptions(type="believer"), services)], log=self._log)


class _Play:
    """One client in front of the stage."""

    def __init__(self, service: Service, client: Client, stage: _Stage) -> None:
        self._service = service
        self._client = client
        self._stage = stage
        self._opinions = 0
        self._shared = 0
        self._decisions: dict[str, int] = {}
        self.steps: list[Step] = []
        tls = ENCRYPTED if client.tls else None
        self.talk = Talk(service, ip=str(client.ip), tls=tls, transport=_Transport())

    async def greet(self) -> None:
        """Hear the banner."""
        step = Step("connect", "")
        self._note(step, await self.talk.hear())
        self.talk.session.login = self._client.login

    async def send(self, envelope: Envelope) -> None:
        """Send one message, as far as the server lets us."""
        verb = b"LHLO" if self._service.switches.lmtp else b"EHLO"
        if self.steps[-1].code != "220" or not await self._agrees("helo", verb + b" " + self._client.helo.encode()):
            return
        if not await self._agrees("mail", envelope.mail_command()):
            return
        taken = [await self._agrees("rcpt", command) for command in envelope.recipient_commands()]
        if any(taken) and await self._agrees("data", b"DATA"):
            await self._say("message", f"({len(envelope.content)} octets)", envelope.dotted())

    async def follow(self, script: Iterable[Line]) -> None:
        """Say line after line of a dialog."""
        said, moment = bytearray(), None
        for line in script:
            if line.hangs_up:
                break
            if moment is None:
                after_go_ahead = self.steps[-1].moment == "data" and self.steps[-1].code < "4"
                verb = line.octets.strip()[:4].decode("ascii", "replace").upper()
                moment = "message" if after_go_ahead else _VERBS.get(verb, "other")
            said += line.octets
            heard = await self.talk.say(line.octets)
            if heard:
                self._note(Step(moment, self._shown(moment, bytes(said))[:MAX_SAID]), heard)
                said, moment = bytearray(), None

    def _shown(self, moment: Moment, said: bytes) -> str:
        """What the client said, without its password."""
        if moment == "message":
            return f"({len(said)} octets)"
        if self.steps[-1].code == "334":
            return "***"
        text = said.decode("utf-8", "backslashreplace").rstrip("\r\n")
        words = text.split(maxsplit=2)
        return " ".join((*words[:2], "***")) if len(words) > 2 and words[0].upper() == "AUTH" else text

    async def _agrees(self, moment: Moment, command: bytes) -> bool:
        step = await self._say(moment, command.decode("utf-8", "backslashreplace"), command + b"\r\n")
        return "2" <= step.code < "4" and not self.talk.is_over

    async def _say(self, moment: Moment, shown: str, octets: bytes) -> Step:
        return self._note(Step(moment, shown[:MAX_SAID]), await self.talk.say(octets))

    def _note(self, step: Step, heard: bytes) -> Step:
        opinions, shared = self._stage.watch.opinions, list(self._stage.resolver.shared.values())
        step.heard = tuple(heard.decode("ascii", "replace").split("\r\n")[:-1])
        step.opinions, self._opinions = opinions[self._opinions :], len(opinions)
        step.shared, self._shared = shared[self._shared :], len(shared)
        self.steps.append(step)
        self._place_decisions()
        return step

    def _place_decisions(self) -> None:
        """Put new decisions to the command they belong to: a lookup may go on while the client does."""
        for decision in self._new_decisions():
            if decision.filter != self._stage.bystander:
                fitting = (step for step in reversed(self.steps) if step.moment == decision.stage)
                next(fitting, self.steps[-1]).decisions.append(decision)

    def _new_decisions(self) -> Iterable[Decision]:
        mails = self._stage.watch.mails
        # XCLIENT begins another session, so there may be several.
        sessions = {mail.session.id: mail.session for mail in mails} | {self.talk.session.id: self.talk.session}
        owners: list[Session | Transaction] = [*sessions.values(), *mails]
        for owner in owners:
            trace = owner.trace or []
            yield from trace[self._decisions.get(owner.id, 0) :]
            self._decisions[owner.id] = len(trace)


class _Transport(MemoryTransport):
    async def start_tls(self) -> TlsInfo:
        return ENCRYPTED


def _free_names() -> Iterable[str]:
    yield "bystander"
    yield from (f"bystander-{number}" for number in range(1000))
