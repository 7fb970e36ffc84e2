"""What one listener offers under one configuration: made once, shared by its conversations, never changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from smtpd import replies, xclient
from smtpd.auth import Authenticator
from smtpd.config import Config, Listener, Switches
from smtpd.content import Budget, Content, Receiver
from smtpd.delivery import DeliveryAgent
from smtpd.journal import Journal
from smtpd.log import Log
from smtpd.metrics import Meters
from smtpd.model import IPAddress, Session
from smtpd.policy import Policy
from smtpd.replies import Reply
from smtpd.routing import Router

# RFC 3207 §4. BDAT is refused by itself: MAIL cannot have been, and its octets must be read (RFC 3030 §2).
_BEFORE_TLS = frozenset(("EHLO", "HELO", "LHLO", "NOOP", "RSET", "QUIT", "HELP", "STARTTLS", "BDAT", "XCLIENT"))
_BEFORE_AUTH = _BEFORE_TLS | {"AUTH"}  # RFC 6409 §4.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The surroundings of a conversation; `ehlo` and the tables of texts are worked out beforehand."""

    listener: str
    config: Config
    switches: Switches
    max_message_size: int
    policy: Policy
    router: Router
    agents: Mapping[str, DeliveryAgent]
    authenticator: Authenticator | None
    budget: Budget
    meters: Meters
    log: Log
    reachable: tuple[DeliveryAgent, ...]
    """The agents that mail coming in here can go to."""
    greet_delay: float
    gated: bool
    """Whether `gate` can ever say no."""
    journal: Journal
    is_cautious: bool
    """Whether no message may be delivered twice, so that a retry may have to be refused."""
    splits: bool
    """Whether one transaction goes to one agent only."""
    max_recipients: int
    max_transactions: int
    spawn: Callable[[Coroutine[Any, Any, None]], None]
    """Runs what nobody waits for, and sees to it that it ends before the server does."""
    can_start_tls: bool
    """STARTTLS is offered and there is a certificate."""
    extensions: frozenset[str]
    """EHLO keywords that allow parameters of MAIL; SMTPUTF8 only while `offers_utf8`."""
    texts: Mapping[str, str]
    greeting: bytes
    accepted_fields: str
    """What the log line of every accepted message says of the reply."""
    now: Callable[[], float] = time.time
    """The time of day, seconds since 1970."""
    ehlo_replies: dict[tuple[bool, bool, bool, bool], bytes] = field(default_factory=dict)
    """Replies to EHLO made so far: there are sixteen at most."""

    @property
    def authserv_id(self) -> str:
        """Who we are in Authentication-Results (RFC 8601 §2.5)."""
        return self.config.authserv_id or self.config.hostname

    @property
    def offers_utf8(self) -> bool:
        """SMTPUTF8, while every agent can carry it: what stands behind one may change."""
        for agent in self.reachable:
            if not agent.carries_utf8:
                return False
        return self.switches.smtputf8

    def ehlo(self, session: Session, *, may_xclient: bool = False) -> bytes:
        """The whole EHLO reply for the state the session is in (RFC 5321 §4.1.1.1)."""
        state = session.tls is None, session.login is None, self.offers_utf8, may_xclient
        reply = self.ehlo_replies.get(state)
        if reply is None:
            lines = "\n".join(_keywords(self.config, self.switches, self.max_message_size, utf8=state[2]))
            if self.can_start_tls and session.tls is None:
                lines += "\nSTARTTLS"  # RFC 3207 §4.2: not once it is active
            if session.login is None and (mechanisms := self.mechanisms(session)):
                lines += "\nAUTH " + " ".join(mechanisms)
            if may_xclient:
                lines += "\n" + xclient.KEYWORD
            reply = self.ehlo_replies[state] = replies.ehlo(lines)
        return reply

    def mechanisms(self, session: Session) -> tuple[str, ...]:
        """The SASL mechanisms offered now; none without TLS where they would give the password away."""
        return self.authenticator.mechanisms(session.tls is not None) if self.authenticator is not None else ()

    def gate(self, verb: str, session: Session) -> Reply | None:
        """What must come before this command: TLS, then a login, where the listener demands them."""
        switches = self.switches
        if switches.tls_required and session.tls is None and verb not in _BEFORE_TLS:
            return replies.TLS_REQUIRED
        if switches.auth == "required" and session.login is None and verb not in _BEFORE_AUTH:
            return replies.AUTH_REQUIRED
        return None

    def receiver[R: Receiver](self, kind: type[R]) -> R:
        """A receiver of content with the limits of this listener."""
        config = self.config
        content = Content(self.budget, config.limits.content_in_memory, config.spool)
        return kind(content, self.max_message_size, config.max_text_line, self.switches.bare_line_ends)

    def may_xclient(self, ip: IPAddress) -> bool:
        """Whether a connection from this address may say that it is somebody else's."""
        networks = self.config.listeners[self.listener].xclient
        return bool(networks) and any(ip in network for network in networks)

    def trusts(self, ip: IPAddress) -> bool:
        """Whether the address is in `[smtpd] trusted_networks`."""
        networks = self.config.trusted_networks
        return bool(networks) and any(ip in network for network in networks)


def make_service(
    name: str,
    listener: Listener,
    config: Config,
    *,
    policy: Policy,
    router: Router,
    agents: Mapping[str, DeliveryAgent],
    authenticator: Authenticator | None,
    has_certificate: bool,
    budget: Budget,
    meters: Meters,
    log: Log,
    spawn: Callable[[Coroutine[Any, Any, None]], None],
    journal: Journal,
    greet_delay: float = 0.0,
) -> Service:
    """Work out what the listener `name` offers."""
    switches = listener.switches()
    size = config.max_message_size if listener.max_message_size is None else listener.max_message_size
    offers_auth = switches.auth != "off" and authenticator is not None
    greeting = replies.LMTP_GREETING if switches.lmtp else replies.GREETING
    return Service(
        listener=name,
        config=config,
        switches=switches,
        max_message_size=size,
        policy=policy,
        router=router,
        agents=agents,
        authenticator=authenticator if offers_auth else None,
        budget=budget,
        meters=meters,
        log=log,
        reachable=_reachable(config, agents, relays=offers_auth),
        greet_delay=greet_delay,
        gated=switches.tls_required or switches.auth == "required",
        journal=journal,
        is_cautious=config.delivery.guarantee == "at-most-once",
        splits=config.delivery.mixed == "split",
        max_recipients=config.max_recipients,
        max_transactions=config.limits.messages_per_session,
        spawn=spawn,
        can_start_tls=switches.tls == "starttls" and has_certificate,
        extensions=_extensions(switches, offers_auth=offers_auth),
        texts=config.replies,
        greeting=greeting(hostname=config.hostname).encode("", config.replies),
        accepted_fields=log.bind(reply=str(replies.ACCEPTED), reason=replies.ACCEPTED.key),
    )


def _reachable(config: Config, agents: Mapping[str, DeliveryAgent], *, relays: bool) -> tuple[DeliveryAgent, ...]:
    names = {*config.domains.values(), *(target.agent for target in config.recipients.values())}
    if relays and config.relay is not None:
        names.add(config.relay.agent)
    return tuple(agent for name, agent in agents.items() if name in names)


def _extensions(switches: Switches, *, offers_auth: bool) -> frozenset[str]:
    names = {"SIZE", "8BITMIME", "SMTPUTF8"}
    if offers_auth:
        names.add("AUTH")
    if switches.prdr:
        names.add("PRDR")
    return frozenset(names)


def _keywords(config: Config, switches: Switches, size: int, *, utf8: bool) -> Iterable[str]:
    yield config.hostname
    if switches.pipelining:
        yield "PIPELINING"
    yield f"SIZE {size}"
    yield "8BITMIME"
    yield "ENHANCEDSTATUSCODES"
    if switches.chunking:
        yield "CHUNKING"
    if utf8:
        yield "SMTPUTF8"
    if switches.prdr:
        yield "PRDR"
    limits = [f"RCPTMAX={config.max_recipients}"]
    if config.limits.messages_per_session:
        limits.append(f"MAILMAX={config.limits.messages_per_session}")
    yield "LIMITS " + " ".join(limits)  # RFC 9422 §4
