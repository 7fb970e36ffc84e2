"""What earlier attempts of the same message have settled, so that a retry delivers to the rest and to nobody twice.

A client that gives a message to several recipients hears one reply, also when they fared differently (the table
above `delivery.combine`). It tries again as a whole; what is kept here tells who has the message already, and which
recipients were refused without the client hearing it. Nothing else is kept: no entry for a message that everybody
has and whose client knows it. Entries hold digests, no addresses.

A store that fails costs duplicates, never mail: unreadable means "nothing known", and what cannot be written stays
in this process (`notebook.py`). Only the promise "at most once" needs a store that works.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Literal
from weakref import WeakValueDictionary
from zlib import crc32

from smtpd import replies
from smtpd.journal_entry import MAX_RECIPIENTS, Entry, decode_refusal, encode_refusal
from smtpd.log import Log
from smtpd.message_key import HINT
from smtpd.model import IPAddress, Recipient, Session, plain_ip
from smtpd.notebook import Notebook
from smtpd.replies import Reply
from smtpd.store import Store, StoreError

Guarantee = Literal["at-least-once", "at-most-once"]
type _Place = tuple[str, str]  # space and key in the store

DELIVERED = "delivered"  # space of entries by message; each hint has one of its own behind it
REFUSED = "refused"  # of refusals by client network, sender and recipient; a space for each sender and recipient

_PART = 8  # octets of a length in front of each part of a digest
_REMEMBERED_STATUS = ("5.1.", "5.2.")  # as in `delivery.combine`


class Journal:
    """Decides what is remembered, and remembers it in `store`, which the caller starts and stops.

    `keep` and `remember_refusals` are seconds (0: never); `clock` gives seconds and only spaces out complaints and
    bounds what could not be written. A key of None is a message that is not remembered.
    """

    def __init__(
        self,
        store: Store,
        *,
        guarantee: Guarantee = "at-least-once",
        keep: float = 5 * 86400.0,  # Postfix and Exim give up after 5 and 4 days (RFC 5321 §4.5.4.1: at least 4-5)
        remember_refusals: float = 4 * 3600.0,
        log: Log,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._notes = Notebook(store, log, clock)
        self._at_most_once = guarantee == "at-most-once"
        self._keep = keep
        self._remember_refusals = remember_refusals
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._under_way: dict[str, list[_Attempt]] = {}  # by hint
        self._begun: dict[str, Entry] = {}  # at-most-once: what `begin` wrote, should it not be readable later
        self._stirring = (self._under_way, *self._notes.pages)
        """While each has the length 0 there is nothing to look up."""

    def renewed(self, *, guarantee: Guarantee, keep: float, remember_refusals: float) -> Journal:
        """The same memory under other rules; what is under way goes on under its own."""
        journal = copy(self)
        journal._at_most_once = guarantee == "at-most-once"
        journal._keep, journal._remember_refusals = keep, remember_refusals
        return journal

    @property
    def idle(self) -> bool:
        """Nothing can be remembered at all, so nothing need be asked; never with at-most-once."""
        return not self._at_most_once and not any(self._stirring)

    def may_refuse(self, sender: str, recipient: Recipient) -> bool:
        """Whether `refusal` can have an answer, to whichever client; False is certain, and cheap to find out."""
        return any(self._notes.pages) and not self._notes.is_empty(_refusal_room(sender, recipient))

    def may_know(self, hint: str | None) -> bool:
        """Whether a message with this hint can be remembered or under way; False is certain, and cheap to find out.

        Always with at-most-once. For the key and the rest a message need be asked about only then.
        """
        if self._at_most_once or hint is None:
            return self._at_most_once
        return hint in self._under_way or not self._notes.is_empty(DELIVERED, _room(hint))

    async def refusal(self, session: Session, sender: str, recipient: Recipient) -> Reply | None:
        """At RCPT: what was said about this recipient to the last attempt from this network with this sender."""
        if not self.may_refuse(sender, recipient):
            return None
        try:
            value = await self._notes.read(*_refusal_place(session, sender, recipient))
            return decode_refusal(value) if value else None
        except OSError as error:
            self._notes.complain(error)
            return None

    async def forget_refusals(self, session: Session, sender: str, recipients: Iterable[Recipient]) -> None:
        """The client has heard them, and its message has come to an end: the next one is for the agents to judge."""
        for recipient in recipients:
            await self._notes.write_or_spare(*_refusal_place(session, sender, recipient), b"", 0.0)

    async def settled(self, key: str | None, recipients: Sequence[Recipient]) -> dict[Recipient, Reply]:
        """Before hand-over: who needs no delivery, because they have the message, or (at-most-once) may have it."""
        if key is None or self._is_unknown(key):
            return {}
        try:
            entry, _ = await self._read(key)
        except OSError as error:
            self._notes.complain(error)
            return {}
        answers: dict[Recipient, Reply] = {}
        for recipient in recipients:
            identity = _identity(recipient)
            if identity in entry.delivered:
                answers[recipient] = replies.DELIVERED_EARLIER
            elif self._at_most_once and identity in entry.maybe:
                answers[recipient] = replies.MAYBE_DELIVERED
        return answers

    async def begin(self, key: str | None, recipients: Iterable[Recipient]) -> None:
        """At-most-once: note durably that these recipients, of whom `settled` knew nothing, may have the message.

        Raises StoreError when that cannot be noted, or when somebody noted it meanwhile; then nothing may be
        handed over. With at-least-once nothing happens.
        """
        if key is None or not self._at_most_once:
            return
        async with self._lock(key):
            entry, place = await self._read(key)
            before = entry.encode()
            marks = dict.fromkeys(map(_identity, recipients))
            if marks.keys() & (entry.delivered.keys() | entry.maybe.keys()):
                raise StoreError("another attempt of the same message is under way")
            entry.maybe.update(marks)
            if len(entry.maybe) + len(entry.delivered) > MAX_RECIPIENTS:
                raise StoreError("too many recipients to promise that nobody gets the message twice")
            try:
                await self._notes.write(*place, entry.encode(), self._keep)
            except (OSError, asyncio.CancelledError):
                # The marks may stand there all the same, but nobody will get the message now.
                await self._notes.spare(*place, before, self._keep)
                raise
            self._begun[key] = entry

    async def record(
        self,
        key: str | None,
        session: Session,
        sender: str,
        outcomes: Mapping[Recipient, Reply],
        *,
        told: Reply | None,
        heard: bool = True,
    ) -> None:
        """After the outcomes are known, and before the client hears of them; never raises StoreError.

        Not `heard`: until the client has shown that it has read a 2xx, whoever has the message is remembered.

        `told` is the one reply the client hears for all of them; None: each recipient hears its own (PRDR, LMTP).

            told     outcome of a recipient            what becomes of it
            ------   -------------------------------   --------------------------------------------------------
            4xx      2xx                               remembered as delivered
            5xx      2xx                               remembered: the same octets may come again
            4xx      5.1.x, 5.2.x, others have it      the refusal is remembered for the client's network
            any      unknown                           at-least-once: nothing; at-most-once: stays "may have it"
            any      was "may have it" before          stays
            other    any                               the client knows: forgotten

        A recipient that was named twice counts as delivered only if it was delivered both times.
        """
        mixed = any(reply.is_positive for reply in outcomes.values())
        if key is not None:
            grouped = _by_identity(outcomes)
            complete = heard and (told is None or told.is_positive or (told.is_permanent and not mixed))
            before = await self._update(key, lambda entry: self._settle(entry, grouped, complete))
            self._begun.pop(key, None)
            mixed = mixed or bool(before.delivered)
        if told is not None and told.is_temporary and mixed and self._remember_refusals > 0:
            await self._remember(session, sender, outcomes)

    async def unconfirmed(self, key: str | None, outcomes: Mapping[Recipient, Reply]) -> None:
        """The client was lost before it can have read our 2xx: whoever has the message is remembered."""
        if key is not None:
            grouped = _by_identity(outcomes)
            await self._update(key, lambda entry: self._settle(entry, grouped, complete=False))

    def under_way(self, key: str | None, recipients: Iterable[Recipient]) -> asyncio.Future[None] | None:
        """A future that is done when an attempt for one of the recipients has ended that is under way in this process.

        None when there is none. Afterwards ask again: of several who waited, the first is under way then. Each
        caller has its own future.
        """
        attempt = self._attempt(key, recipients)
        if attempt is None:
            return None
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        attempt.waiting[future] = None
        future.add_done_callback(attempt.waiting.pop)
        return future

    def is_under_way(self, key: str, recipients: Iterable[Recipient]) -> bool:
        """Whether `under_way` would have something to wait for."""
        return self._attempt(key, recipients) is not None

    def is_awaited(self, key: str | None, recipients: Iterable[Recipient]) -> bool:
        """Whether others wait for the attempt that is under way."""
        return bool((attempt := self._attempt(key, recipients)) and attempt.waiting)

    @contextmanager
    def claim(self, key: str | None, recipients: Iterable[Recipient]) -> Iterator[None]:
        """Have others wait: the message is under way to these recipients, from before `settled` until after `record`.

        RuntimeError when it is already, to one of them: wait for `under_way` first.
        """
        if key is None:
            yield
            return
        attempt = _Attempt(key, frozenset((one.agent, one.address.text) for one in recipients))
        if self._attempt(key, recipients) is not None:
            raise RuntimeError("the message is under way already")
        attempts = self._under_way.setdefault(key[:HINT], [])
        attempts.append(attempt)
        try:
            yield
        finally:
            attempts.remove(attempt)
            if not any(other.key == key for other in attempts):
                self._begun.pop(key, None)
            if not attempts:
                del self._under_way[key[:HINT]]
            for future in list(attempt.waiting):
                if not future.done():
                    future.set_result(None)

    def _attempt(self, key: str | None, recipients: Iterable[Recipient]) -> _Attempt | None:
        attempts = self._under_way.get(key[:HINT]) if key is not None else None
        if attempts is None:
            return None
        names = {(one.agent, one.address.text) for one in recipients}
        same = (attempt for attempt in attempts if attempt.key == key)
        return next((attempt for attempt in same if not names.isdisjoint(attempt.recipients)), None)

    def _settle(self, entry: Entry, outcomes: Mapping[str, Sequence[Reply]], complete: bool) -> None:
        for identity, answers in outcomes.items():
            keys = {reply.key for reply in answers}
            if replies.MAYBE_DELIVERED.key in keys:
                # The client may lose this reply, too, and try again: still nobody gets the message twice.
                continue
            if replies.OUTCOME_UNKNOWN.key in keys:
                if self._at_most_once:
                    entry.maybe[identity] = None
                continue
            entry.maybe.pop(identity, None)
            if not complete and all(reply.is_positive for reply in answers):
                entry.delivered[identity] = None
            elif complete:
                entry.delivered.pop(identity, None)

    async def _update(self, key: str, change: Callable[[Entry], None]) -> Entry:
        """Change the entry of a message; what it was before. A store that fails is logged."""
        async with self._lock(key):
            try:
                before, place = (Entry(), _places(key)[0]) if self._is_unknown(key) else await self._read(key)
            except OSError as error:
                self._notes.complain(error)
                before, place = self._begun.get(key, Entry()), _places(key)[0]
                if self._at_most_once and key not in self._begun:
                    return before  # it may hold marks that must not be lost
            entry = Entry(dict(before.delivered), dict(before.maybe))
            change(entry)
            if entry != before:
                await self._notes.write_or_spare(*place, entry.encode(), self._keep)
            return before

    async def _remember(self, session: Session, sender: str, outcomes: Mapping[Recipient, Reply]) -> None:
        refused = [
            self._notes.write_or_spare(
                *_refusal_place(session, sender, recipient),
                encode_refusal(reply),
                self._remember_refusals,
            )
            for recipient, reply in outcomes.items()
            if reply.status.startswith(_REMEMBERED_STATUS)
        ]
        await asyncio.gather(*refused)

    def _is_unknown(self, key: str) -> bool:
        return self._notes.is_empty(DELIVERED, _room(key))

    async def _read(self, key: str) -> tuple[Entry, _Place]:
        """The entry of a message, and where it is to be written."""
        for place in _places(key):
            value = await self._notes.read(*place)
            if value is not None:
                return Entry.decode(value) if value else Entry(), place
        return Entry(), _places(key)[0]

    def _lock(self, key: str) -> asyncio.Lock:
        return self._locks.setdefault(key, asyncio.Lock())


@dataclass(frozen=True, slots=True, eq=False)
class _Attempt:
    """One that is under way: key, agents and addresses of its recipients, and who waits for its end."""

    key: str
    recipients: frozenset[tuple[str, str]]
    waiting: dict[asyncio.Future[None], None] = field(default_factory=dict)


def _room(key: str) -> str:
    """The space of all entries with the same hint: whether there are any is a cheap question, to every store."""
    return f"{DELIVERED}/{key[:HINT]}"


def _places(key: str) -> tuple[_Place, _Place]:
    """Where an entry is kept, and where it was before keys had hints: what is there may be about any message."""
    return (_room(key), key[HINT:]), (DELIVERED, key[HINT:])


def _identity(recipient: Recipient) -> str:
    # As the client wrote it: of two names for one mailbox, or two of its folders, each gets its own copy.
    return _digest(recipient.agent, recipient.address.text)


def _refusal_room(sender: str, recipient: Recipient) -> str:
    """The space of a refusal: nobody else's mail need be asked about more than whether there is one."""
    return f"{REFUSED}/{crc32(f'{sender}>{recipient.address.text}'.encode()):08x}"


def _refusal_place(session: Session, sender: str, recipient: Recipient) -> _Place:
    digest = _digest(_network(session.ip), sender, recipient.agent, recipient.address.text)
    return _refusal_room(sender, recipient), digest


def _network(address: IPAddress) -> str:
    """The /24 or /64 of a client: large senders try again from a neighbour."""
    packed = plain_ip(address).packed
    return packed[: 3 if len(packed) == 4 else 8].hex()


def _digest(*parts: str) -> str:
    digest = blake2b(digest_size=16, person=b"smtpd journal 1")
    for part in parts:
        octets = part.encode()
        digest.update(len(octets).to_bytes(_PART) + octets)
    return digest.hexdigest()


def _by_identity(outcomes: Mapping[Recipient, Reply]) -> dict[str, list[Reply]]:
    grouped: dict[str, list[Reply]] = {}
    for recipient, reply in outcomes.items():
        grouped.setdefault(_identity(recipient), []).append(reply)
    return grouped
