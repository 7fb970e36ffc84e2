"""What is measured, and what has to come out: the kinds of work, the floors and the goals."""

from dataclasses import dataclass
from typing import Literal

from generator import Load
from servers import DOMAIN, MAILDIR_DOMAIN, STORE_DOMAIN

KIB, MIB = 1 << 10, 1 << 20

OURS, AIOSMTPD, SMTP_SINK, POSTFIX = "smtpd", "aiosmtpd", "smtp-sink", "postfix"
POSTFIX_LMTP = "postfix-lmtp"
POSTFIX_FILTERS = "postfix-filters"
OURS_FILTERED = "smtpd-filters"
"""Ours with SPF, DKIM and DMARC; where it is measured, it stands in our place."""
EMPTIED = f"{POSTFIX_LMTP}, all out"
"""The same as POSTFIX_LMTP, measured until its queue is empty; it is no server of its own."""


Letters = Literal["warm", "cold", "big"]
"""Signed messages: from domains that DNS was asked about before, from a new domain each, and of 10 MiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One kind of work, and the servers that do it beside us."""

    name: str
    title: str
    load: Load
    peers: tuple[str, ...] = (AIOSMTPD, SMTP_SINK)
    domain: str = DOMAIN
    ours: str = OURS
    letters: Letters | None = None
    """Which messages are sent, if not those that the generator makes up."""


_SINGLE = Load(sessions=50, messages=1)
_MANY = Load(sessions=20, messages=100)
_BIGGER = Load(sessions=20, messages=20, octets=50 * KIB)

WORKS = (
    Work(name="W1", title="one message of 4 KiB per connection, 50 at once", load=_SINGLE),
    Work(name="W2", title="100 messages of 4 KiB per connection, 20 at once", load=_MANY),
    Work(
        name="W2P",
        title="as W2, with MAIL, RCPT and DATA in one write",
        load=Load(sessions=20, messages=100, pipelined=True),
    ),
    Work(name="W3", title="20 messages of 50 KiB per connection, 20 at once", load=_BIGGER),
    Work(name="W4", title="10 MiB, 4 at once", load=Load(sessions=4, messages=4, octets=10 * MIB)),
    Work(name="D1", title="as W1, durably into Maildirs", load=_SINGLE, peers=(POSTFIX,), domain=MAILDIR_DOMAIN),
    Work(name="D2", title="as W2, durably into Maildirs", load=_MANY, peers=(POSTFIX,), domain=MAILDIR_DOMAIN),
    Work(name="D3", title="as W3, durably into Maildirs", load=_BIGGER, peers=(POSTFIX,), domain=MAILDIR_DOMAIN),
    Work(name="L1", title="as W1, handed to a store by LMTP", load=_SINGLE, peers=(POSTFIX_LMTP,), domain=STORE_DOMAIN),
    Work(name="L2", title="as W2, handed to a store by LMTP", load=_MANY, peers=(POSTFIX_LMTP,), domain=STORE_DOMAIN),
    Work(
        name="TLS",
        title="connect, EHLO, STARTTLS, EHLO, QUIT, 20 at once",
        load=Load(sessions=20, messages=0, starttls=True),
        peers=(POSTFIX,),
    ),
    Work(
        name="F2",
        title="as D2, signed messages, SPF, DKIM and DMARC checked, DNS cache warm",
        load=_MANY,
        peers=(POSTFIX_FILTERS,),
        domain=MAILDIR_DOMAIN,
        ours=OURS_FILTERED,
        letters="warm",
    ),
    Work(
        name="F2C",
        title="as F2, but each message from a domain that nobody has heard of",
        load=_MANY,
        peers=(POSTFIX_FILTERS,),
        domain=MAILDIR_DOMAIN,
        ours=OURS_FILTERED,
        letters="cold",
    ),
)

IDLE = "IDLE"
IDLE_SESSIONS = 2000
IDLE_FIGURES = {"plain": False, "TLS": True}
"""Names of the figures, and whether the sessions are encrypted."""

RCPT = "RCPT"
MEMORY = "MEM"
MEMORY_LOAD = Load(sessions=8, messages=2, octets=10 * MIB)
MEMORY_FIGURES = {"fast store": 0, "slow store": 1}
"""Names of the figures, and seconds that the store waits before it reads."""

COSTS, STALL, HOSTILE = "COSTS", "STALL", "HOSTILE"

NAMES = (*(work.name for work in WORKS), RCPT, MEMORY, IDLE, COSTS, STALL, HOSTILE)

Measure = Literal["rate", "p99", "cpu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """Our figure divided by a peer's (without a peer: itself) and what it has to be."""

    work: str
    measure: Measure
    peer: str
    floor: float | None
    goal: float | None

    @property
    def more_is_better(self) -> bool:
        """Whether floor and goal are the least or the most that is wanted."""
        return self.measure == "rate"

    def verdict(self, value: float) -> Literal["goal", "floor", "below floor", "below goal", ""]:
        """What the value reaches; "below goal" where there is no floor, "" where nothing is demanded."""
        reached = value.__ge__ if self.more_is_better else value.__le__
        if self.goal is None:
            return ""
        if reached(self.goal):
            return "goal"
        if self.floor is None:
            return "below goal"
        return "floor" if reached(self.floor) else "below floor"


def _rates(work: str, peer: str, floor: float | None, goal: float | None) -> Requirement:
    return Requirement(work=work, measure="rate", peer=peer, floor=floor, goal=goal)


REQUIREMENTS = (
    _rates("W1", AIOSMTPD, 6, 10),
    _rates("W1", SMTP_SINK, None, 0.9),
    _rates("W2", AIOSMTPD, 8, 12),
    _rates("W2", SMTP_SINK, None, 0.9),
    _rates("W2P", AIOSMTPD, 10, 16),
    _rates("W3", AIOSMTPD, 8, 11),
    _rates("W3", SMTP_SINK, None, 1.0),
    _rates("W4", AIOSMTPD, 8, 11),
    _rates("W4", SMTP_SINK, None, 1.0),
    _rates("D1", POSTFIX, 3, 5),
    _rates("D2", POSTFIX, 3, 4.5),
    _rates("D3", POSTFIX, 4, 7),
    _rates("L1", POSTFIX_LMTP, 2, 4),
    _rates("L1", EMPTIED, None, None),
    _rates("L2", POSTFIX_LMTP, 2, 4),
    _rates("L2", EMPTIED, None, None),
    _rates("F2", POSTFIX_FILTERS, 3, 5),
    _rates("F2C", POSTFIX_FILTERS, None, None),
    Requirement(work="D2", measure="p99", peer=POSTFIX, floor=1 / 2, goal=1 / 5),
    Requirement(work="TLS", measure="cpu", peer=POSTFIX, floor=0.5, goal=0.35),
)

IDLE_LIMITS = {"plain": (8.0, 4.0), "TLS": (40.0, 28.0)}
"""KiB per idle connection: floor and goal."""
MEMORY_LIMIT = 2048.0
"""KiB per session that hands big messages over."""
