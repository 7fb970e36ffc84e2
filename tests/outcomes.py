"""What a sender may expect of every mix of outcomes: the table of design and manual as a model, and a sender to try it.

The model is written down from the table in docs/operating.md, and knows nothing of `delivery.combine` and the journal.
A case is one message from a sender of its own; its recipients fare by a script.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from stage import Stage

from smtpd import replies
from smtpd.model import Message, Recipient, Transaction
from smtpd.replies import Reply

Fate = Literal["taken", "later", "nobody", "full", "spam", "kept", "lost"]
Protocol = Literal["smtp", "prdr", "lmtp"]
Guarantee = Literal["at-least-once", "at-most-once"]

FATES: tuple[Fate, ...] = ("taken", "later", "nobody", "full", "spam", "kept", "lost")
ROUNDS = 4

# What becomes of a recipient when an agent gets the message: its answer, and whether there is a copy.
# "kept" and "lost": the answer of the mailstore never came, and it had stored the message, or not.
_ANSWERS: Mapping[Fate, tuple[Reply, bool]] = {
    "taken": (replies.ACCEPTED, True),
    "later": (replies.MAILBOX_FULL(address="x@example.test"), False),
    "nobody": (replies.NO_SUCH_USER(address="x@example.test"), False),
    "full": (replies.MAILBOX_FULL_PERMANENTLY(address="x@example.test"), False),
    "spam": (replies.Reply("spam", 550, "5.7.1", "No"), False),
    "kept": (replies.OUTCOME_UNKNOWN, True),
    "lost": (replies.OUTCOME_UNKNOWN, False),
}
_FOR_GOOD = ("nobody", "full", "spam")


def names(fates: Sequence[Fate]) -> tuple[str, ...]:
    """Recipients, one for each fate."""
    return ("ann@example.test", "bob@example.test", "eve@example.test")[: len(fates)]


@dataclass
class Mailstore:
    """The scripted agent: what is temporary or unknown at the first attempt succeeds at the next one."""

    fates: dict[str, Fate] = field(default_factory=dict)
    copies: dict[str, int] = field(default_factory=dict)
    _asked: set[str] = field(default_factory=set)

    def open(self, fates: Sequence[Fate]) -> None:
        """Begin with another case."""
        self.fates = dict(zip(names(fates), fates, strict=True))
        self.copies = dict.fromkeys(self.fates, 0)
        self._asked.clear()

    async def answer(self, mail: Transaction, message: Message) -> Reply | Mapping[Recipient, Reply]:
        answers = {recipient: self._deliver(recipient.address.text) for recipient in mail.recipients}
        first, *rest = answers.values()
        return first if all(reply is first for reply in rest) else answers

    def _deliver(self, name: str) -> Reply:
        fate = now(self.fates[name], again=name in self._asked)
        self._asked.add(name)
        reply, has_copy = _ANSWERS[fate]
        self.copies[name] += has_copy
        return reply


def now(fate: Fate, *, again: bool) -> Fate:
    """The fate of a recipient at this attempt."""
    return "taken" if again and fate not in _FOR_GOOD else fate


@dataclass(frozen=True)
class Heard:
    """What an attempt was told: by recipient the first digit of its answer at RCPT, and of the one behind the data.

    `whole` is the first digit of the last reply in SMTP, "" when nobody was left or with LMTP; `refused` who is
    named in a 550 that names some.
    """

    at_rcpt: dict[str, str]
    each: dict[str, str]
    whole: str = ""
    refused: frozenset[str] = frozenset()

    def word(self, name: str) -> str:
        """The first digit of what holds for a recipient."""
        if self.at_rcpt[name] != "2":
            return self.at_rcpt[name]
        if name in self.each:
            return self.each[name]
        return "2" if self.refused and name not in self.refused else self.whole


@dataclass
class Model:
    """The table. `delivered` and `maybe` are what is remembered of this message, `refused` whom a network hears of."""

    protocol: Protocol
    guarantee: Guarantee
    fates: dict[str, Fate]
    asked: set[str] = field(default_factory=set)
    delivered: set[str] = field(default_factory=set)
    maybe: set[str] = field(default_factory=set)
    refused: set[tuple[str, str]] = field(default_factory=set)
    copies: dict[str, int] = field(default_factory=dict)

    def attempt(self, recipients: Sequence[str], network: str) -> Heard:
        """What one attempt from a network for these recipients hears, and what is remembered of it."""
        at_rcpt = {name: "5" if (network, name) in self.refused else "2" for name in recipients}
        accepted = [name for name in recipients if at_rcpt[name] == "2"]
        if not accepted:
            return Heard(at_rcpt, {})
        fates = {name: self._fare(name) for name in accepted}
        words = {name: {"taken": "2", "earlier": "2"}.get(fate) or _digit(fate) for name, fate in fates.items()}
        individually = self.protocol == "lmtp" or (self.protocol == "prdr" and len(accepted) > 1)
        whole, named = self._combine(fates, words, individually=individually)
        self._remember(fates, words, "" if individually else whole, network)
        if individually:
            return Heard(at_rcpt, words, "" if self.protocol == "lmtp" else whole)
        return Heard(at_rcpt, {}, whole, named)

    def other_message(self) -> None:
        """From here on it is another message, to the same recipients."""
        self.delivered.clear()
        self.maybe.clear()

    def _fare(self, name: str) -> str:
        if name in self.delivered:
            return "earlier"
        if name in self.maybe:
            return "maybe"
        fate = now(self.fates[name], again=name in self.asked)
        self.asked.add(name)
        self.copies[name] = self.copies.get(name, 0) + (fate in ("taken", "kept"))
        return fate

    def _combine(
        self, fates: Mapping[str, str], words: Mapping[str, str], *, individually: bool
    ) -> tuple[str, frozenset[str]]:
        classes = set(words.values())
        if len(classes) == 1:
            return classes.pop(), frozenset()
        if "2" not in classes:
            return "4", frozenset()
        if individually:
            return "2", frozenset()
        if "4" in classes or {"nobody", "full"} & set(fates.values()):
            return "4", frozenset()
        return "5", frozenset(name for name, word in words.items() if word == "5")

    def _remember(self, fates: Mapping[str, str], words: Mapping[str, str], told: str, network: str) -> None:
        someone_has_it = "2" in words.values()
        knows = told in ("", "2") or (told == "5" and not someone_has_it)
        for name, fate in fates.items():
            if fate in ("kept", "lost"):
                if self.guarantee == "at-most-once":
                    self.maybe.add(name)
            elif knows:
                self.delivered.discard(name)
            elif words[name] == "2":
                self.delivered.add(name)
            if told == "4" and someone_has_it and fate in ("nobody", "full"):
                self.refused.add((network, name))


def _digit(fate: str) -> str:
    return "5" if fate in (*_FOR_GOOD, "maybe") else "4"


@dataclass(frozen=True)
class Sender:
    """An MTA with one message in its queue. Each attempt is a connection of its own, ended in good order."""

    stage: Stage
    protocol: Protocol
    address: str

    async def attempt(self, recipients: Sequence[str], content: bytes, ip: str) -> Heard:
        """Try once, for these recipients."""
        talk = self.stage.talk(ip=ip)
        hello = "LHLO" if self.protocol == "lmtp" else "EHLO"
        prdr = " PRDR" if self.protocol == "prdr" else ""
        envelope = f"{hello} client.test\r\nMAIL FROM:<{self.address}>{prdr}\r\n"
        await talk.say(envelope.encode())
        said = await talk.say("".join(f"RCPT TO:<{name}>\r\n" for name in recipients).encode())
        at_rcpt = dict(zip(recipients, (line[:1] for line in said.decode().splitlines()), strict=True))
        accepted = [name for name in recipients if at_rcpt[name] == "2"]
        each: dict[str, str] = {}
        whole, refused = "", frozenset[str]()
        if accepted:
            await talk.say(b"DATA\r\n")
            lines = (await talk.say(content + b".\r\n")).decode().splitlines()
            if self.protocol == "lmtp" or lines[0].startswith("353 "):
                start = int(self.protocol != "lmtp")
                lines, answers = lines[start + len(accepted) :], lines[start : start + len(accepted)]
                each = dict(zip(accepted, (line[:1] for line in answers), strict=True))
            if self.protocol != "lmtp":
                (line,) = lines
                whole = line[:1]
                if "Delivered, but not to" in line:
                    refused = frozenset(re.findall(r"\w+@example\.test", line.partition(": ")[0]))
        await talk.say(b"QUIT\r\n")
        return Heard(at_rcpt, each, whole, refused)
