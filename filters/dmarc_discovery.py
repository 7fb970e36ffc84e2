"""Which record speaks for a domain, and which organisation a domain belongs to.

Two ways lead there: the tree walk of RFC 9989 §4.10, which asks DNS at most `MAX_QUESTIONS` times for one domain,
and the public suffix list of RFC 7489 §3.2, which asks twice. Everything found is remembered for one message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from filters.dmarc_record import Record, find_record
from smtpd.dns import Answer, Resolver
from smtpd.dns.answer import Type

MAX_QUESTIONS = 8  # RFC 9989 §4.10


class Undecided(Exception):  # noqa: N818 - it is no error of ours: DNS cannot say now what has to be known
    """Nobody answers a question that DMARC depends on; the text says which."""


class Suffixes(Protocol):
    """A public suffix list."""

    def privatesuffix(self, domain: str) -> str | None:
        """The part of a domain that somebody registered, None for a public suffix itself."""


@dataclass(frozen=True, slots=True)
class Published:
    """A record and the domain it was found at."""

    domain: str
    record: Record


class Records:
    """The records of DMARC in DNS, as far as one message needs them.

    `resolver` is asked about authors. About others `limited` is, whose questions the sender of a message can use
    up with records of its own: the policy of somebody else must be found nevertheless.
    """

    def __init__(self, resolver: Resolver, limited: Resolver | None = None) -> None:
        self._resolver = resolver
        self._limited = limited or resolver
        self._found: dict[str, Record | None] = {}
        self.doubled: set[str] = set()
        """Domains with more than one record."""

    async def at(self, domain: str, *, is_author: bool = True) -> Record | None:
        """The record of this very domain; Undecided when nobody answers."""
        if domain not in self._found:
            answer = await self._ask(f"_dmarc.{domain}", "TXT", is_author)
            self._found[domain], number = find_record(answer.txt)
            if number > 1:
                self.doubled.add(domain)
        return self._found[domain]

    def known(self, domain: str) -> Record | None:
        """What `at` has found already."""
        return self._found.get(domain)

    async def exists(self, domain: str) -> bool:
        """Whether there is such a name (RFC 9989 §3.2.13, RFC 8020); Undecided when nobody answers."""
        # Any type would do. MX is what checks of senders ask for, too.
        return (await self._ask(domain, "MX", True)).status != "nxdomain"

    async def _ask(self, name: str, kind: Type, is_author: bool) -> Answer:
        resolver = self._resolver if is_author else self._limited
        answer = resolver.peek(name, kind) or await resolver.resolve(name, kind)
        if answer.failed:
            raise Undecided(f"no answer about {name}: {answer.reason}")
        return answer


class Discovery(Protocol):
    """A way to find policies and organisations."""

    method: Literal["treewalk", "psl"]
    records: Records

    async def policy_of(self, author: str) -> Published | None:
        """The record that speaks for an author's domain; Undecided when nobody answers."""

    async def organization_of(self, domain: str, *, is_author: bool = False) -> str:
        """The organisational domain, the domain itself when there is no other; Undecided likewise."""

    def known_organization(self, author: str) -> str:
        """The organisational domain of an author whose policy was asked for, "" when that takes another question."""


class TreeWalk:
    """RFC 9989 §4.10."""

    method: Literal["treewalk", "psl"] = "treewalk"

    def __init__(self, records: Records) -> None:
        self.records = records
        self._walked: dict[str, list[Published]] = {}

    async def policy_of(self, author: str) -> Published | None:
        """See Discovery; RFC 9989 §4.10.1: the author's own record, its organisation's, its public suffix's."""
        own = await self.records.at(author)
        if own is not None:
            return Published(author, own)
        found = await self._walk(author, True)
        organization = select_organization(author, found)
        for published in found:
            if published.domain == organization:
                return published
        return found[-1] if found and found[-1].record.psd == "y" else None

    async def organization_of(self, domain: str, *, is_author: bool = False) -> str:
        """See Discovery; RFC 9989 §4.10.2."""
        return select_organization(domain, await self._walk(domain, is_author))

    def known_organization(self, author: str) -> str:
        """See Discovery."""
        own = self.records.known(author)
        if own is not None and own.psd != "u":
            return author
        return select_organization(author, self._walked[author]) if author in self._walked else ""

    async def _walk(self, start: str, is_author: bool) -> list[Published]:
        """The records from a domain up to the root or to the first one that knows whether it is a public suffix."""
        if start in self._walked:
            return self._walked[start]
        found: list[Published] = []
        for domain in steps(start):
            record = await self.records.at(domain, is_author=is_author)
            if record is not None:
                found.append(Published(domain, record))
                if record.psd != "u":
                    break
        self._walked[start] = found
        return found


class SuffixList:
    """RFC 7489 §3.2 and §6.6.3."""

    method: Literal["treewalk", "psl"] = "psl"

    def __init__(self, records: Records, suffixes: Suffixes) -> None:
        self.records = records
        self._suffixes = suffixes

    async def policy_of(self, author: str) -> Published | None:
        """See Discovery; an author with several records of its own has none, whatever its organisation says."""
        for domain in dict.fromkeys((author, self._organization(author))):
            record = await self.records.at(domain)
            if record is not None:
                return Published(domain, record)
            if domain in self.records.doubled:
                break
        return None

    async def organization_of(self, domain: str, *, is_author: bool = False) -> str:
        """See Discovery. Never waits."""
        return self._organization(domain)

    def known_organization(self, author: str) -> str:
        """See Discovery."""
        return self._organization(author)

    def _organization(self, domain: str) -> str:
        return self._suffixes.privatesuffix(domain) or domain


def steps(domain: str) -> list[str]:
    """The domains whose records a tree walk asks for, in its order: itself, then its last seven labels and up."""
    labels = domain.split(".")
    above = labels[1:][-(MAX_QUESTIONS - 1) :]
    return [domain, *(".".join(above[start:]) for start in range(len(above)))]


def select_organization(start: str, found: list[Published]) -> str:
    """RFC 9989 §4.10.2: the organisational domain by the records of a walk, the longest name first."""
    for published in found:
        if published.record.psd == "n":
            return published.domain
        if published.record.psd == "y" and published.domain != start:
            labels = published.domain.count(".") + 2
            return ".".join(start.split(".")[-labels:])
    return found[-1].domain if found else start
