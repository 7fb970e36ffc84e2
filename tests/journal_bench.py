"""A journal for tests: a clock, a log that keeps its lines, a store that can be told to fail, three recipients."""

from collections.abc import Mapping, Sized
from ipaddress import ip_address
from typing import Any

from log_lines import Lines
from manual_clock import ManualClock

from smtpd import replies
from smtpd.addresses import parse_address
from smtpd.config import LogOptions
from smtpd.journal import Guarantee, Journal
from smtpd.log import Log
from smtpd.model import Recipient, Session
from smtpd.replies import Reply
from smtpd.store import MemoryStore, Store, StoreError

HINT = "0123456789abcdef"
KEY = HINT * 5
PLACE = ("delivered/0123456789abcdef", HINT * 4)  # of the entry with that key in the store
FORMER_PLACE = ("delivered", HINT * 4)  # before keys had hints
SENDER = "joe@client.test"

TAKEN = replies.ACCEPTED
LATER = replies.BACKEND_DOWN
UNKNOWN = replies.OUTCOME_UNKNOWN
NOBODY = replies.NO_SUCH_USER(address="x@example.test")
FULL = replies.MAILBOX_FULL_PERMANENTLY(address="x@example.test")
SPAM = replies.DENIED_SENDER(address=SENDER)
EARLIER = replies.DELIVERED_EARLIER
MAYBE = replies.MAYBE_DELIVERED
ONCE: Guarantee = "at-most-once"
AGAIN: Guarantee = "at-least-once"


MIXED = replies.SOME_DEFERRED(reason="later")
PARTLY = replies.SOME_REFUSED(recipients="x", reason="no")


class Failing(MemoryStore):
    """Calls whose names are in `broken` fail; a put does so after it has kept the value when `late` is set."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.broken: set[str] = set()
        self.late = False
        self.calls: list[str] = []

    @property
    def entries(self) -> Sized:
        """Has a length while `is_empty` is broken, as if others could put something there."""
        return _Entries(self._entries, self.broken)

    def _check(self, call: str) -> None:
        self.calls.append(call)
        if call in self.broken:
            raise StoreError("the disk is full")

    async def get(self, space: str, key: str) -> bytes | None:
        self._check("get")
        return await super().get(space, key)

    async def put(self, space: str, key: str, value: bytes, seconds: float) -> None:
        if self.late:
            await super().put(space, key, value, seconds)
        self._check("put")
        await super().put(space, key, value, seconds)

    async def delete(self, space: str, key: str) -> None:
        self._check("delete")
        await super().delete(space, key)

    def is_empty(self, *spaces: str) -> bool:
        return "is_empty" not in self.broken and super().is_empty(*spaces)


class _Entries:
    def __init__(self, entries: Sized, broken: set[str]) -> None:
        self._entries = entries
        self._broken = broken

    def __len__(self) -> int:
        return len(self._entries) or "is_empty" in self._broken


class Bench:
    """A journal, the clock it lives by, its log, and three recipients."""

    def __init__(self, guarantee: Guarantee = AGAIN, store: Store | None = None, **options: Any) -> None:
        self.clock = ManualClock()
        self.store = Failing(self.clock)
        self._lines = Lines()
        self._log = Log(LogOptions(), sink=self._lines)
        self.guarantee = guarantee
        self.journal = Journal(
            store or self.store,
            guarantee=guarantee,
            log=self._log,
            clock=self.clock,
            **options,
        )
        self.ann, self.bob, self.eve = (recipient(name) for name in ("ann", "bob", "eve"))

    @property
    def complaints(self) -> list[tuple[str, str, int]]:
        """The log: event, problem and number of failures of each line."""
        self._log.flush()
        return [(line["event"], line["problem"], line["failures"]) for line in self._lines.entries]

    async def attempt(
        self, outcomes: Mapping[Recipient, Reply], *, told: Reply | None, key: str | None = KEY, ip: str = "192.0.2.1"
    ) -> None:
        """What the conversation does once it has looked who is settled."""
        await self.journal.begin(key, list(outcomes))
        await self.journal.record(key, session(ip), SENDER, outcomes, told=told)

    async def known(self, *recipients: Recipient) -> list[Reply | None]:
        """What is settled, as a later transaction with recipients of its own sees it."""
        again = [Recipient(one.address, one.agent, one.mailbox) for one in recipients]
        found = await self.journal.settled(KEY, again)
        return [found.get(one) for one in again]

    def may_refuse(self, who: Recipient, sender: str = SENDER) -> bool:
        return self.journal.may_refuse(sender, who)

    async def heard(self, who: Recipient, *, ip: str = "192.0.2.1", sender: str = SENDER) -> Reply | None:
        return await self.journal.refusal(session(ip), sender, Recipient(who.address, who.agent, who.mailbox))


def recipient(local: str, agent: str = "store", mailbox: str = "") -> Recipient:
    return Recipient(parse_address(f"{local}@example.test"), agent, parse_address(mailbox) if mailbox else None)


def session(ip: str = "192.0.2.1") -> Session:
    return Session("s", "smtp", ip_address(ip))
