"""pyspf with what it gets wrong put right; it is told about the DNS by `look_up`, and by nothing else.

What differs from the library:

- Records that are too long, or have too many macros, are not read: its regular expressions take time that grows with
  the square of a term. Within the limits the worst that was found takes 30 ms, and everything in use less than one.
- A name that a macro makes too long loses labels until it fits; the library takes away one and leaves it there.
- `ptr` and `%{p}` go on when the DNS fails or takes too long, instead of making an error of it.
- An explanation is looked up when it is needed: after a fail.
- Of the addresses of a host no more than `MAX_ADDRESSES` are looked at.
- A macro that does not follow the grammar is an error everywhere.
- A quoted local part may hold an "@".
- Terms made of a local part that is not ASCII match nothing (RFC 8616 §4), and nothing is looked up for them.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from socket import AF_INET, AF_INET6, inet_pton
from time import monotonic

from smtpd.dns.answer import MAX_NAME
from smtpd.replies import clean

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # SyntaxWarning and DeprecationWarning, where it is compiled or py3dns is missing
    import spf

MAX_RECORD = 8192  # octets; RFC 7208 §3.4 wants 512, the longest in use have some 4000
MAX_RECORDS = 16384  # octets of all records that one check reads
MAX_TERM = 512  # characters; a name has 253, and macros are shorter than what they stand for
MAX_MACROS = 50  # of one record
MAX_ADDRESSES = 100  # of one host that are looked at, and more than the ten names of ptr
MAX_HOSTS = 11  # of mx: one more than count, so that it is known that there are too many (RFC 7208 §4.6.4)
LONGEST_CHECK = 20.0  # seconds, RFC 7208 §4.6.4
NAMES_SHARE = 1 / 4  # of the time of a check, for names of the client; our own choice

# RFC 7208 §7.1; digits are not zero (§7.3)
_MACRO_STRING = re.compile(r"(?:[^%]|%[%_-]|%\{[slodipvhcrt](?!0+\D)\d*r?[.\-+,/_=]*\})*+", re.IGNORECASE)
_OF_LOCAL_PART = re.compile(r"%\{[ls]", re.IGNORECASE)
# Stands for a name that cannot be in the DNS. No text has half of a surrogate pair in it, so nobody can say this name,
# and the library neither asks for one with an empty label, nor counts it as a lookup that finds nothing.
_NOWHERE = "\ud800.."

LookUp = Callable[[str, str, float], list[object] | None]
"""Name, type and seconds it may take; the library's form of records, [] without any, or TempError.

None when somebody else asks.
"""

TempError: type[Exception] = spf.TempError


class Query(spf.query):  # type: ignore[misc]
    """One check of one identity (RFC 7208 §4.1); `domain` is a name of two labels or more."""

    def __init__(
        self,
        ip: IPv4Address | IPv6Address,
        local: str,
        domain: str,
        helo: str,
        receiver: str,
        longest: float = LONGEST_CHECK,
    ) -> None:
        super().__init__(i=str(ip), s=f"{local}@{domain}", h=helo, receiver=receiver, querytime=LONGEST_CHECK)
        self.l, self.o, self.d = local, domain, domain
        self.querytime: float = LONGEST_CHECK
        self.p: str | None = None
        self.prob = ""
        self._level = 0
        self._octets = 0
        self._names: list[str] | None = None
        self._time_for_names = longest * NAMES_SHARE
        self._explanation: tuple[str, str] | None = None
        self._names_of_people: dict[str, str] = {}

    def run(self) -> tuple[str, str]:
        """The result (RFC 7208 §2.6), and what the domain says to it; it looks things up while it runs."""
        result: str = self.check()[0]
        return result, self._explain() if result == "fail" else ""

    @property
    def problem(self) -> str:
        """What is wrong; names that were made of the local part are shown as they stand in the record."""
        text = str(self.prob)
        for name, term in self._names_of_people.items():
            text = term.join(re.split(re.escape(name), text, flags=re.IGNORECASE))
        return text

    def check1(self, record: str, domain: str, recursion: int) -> tuple[str, int, str]:
        """Evaluate a record; how deep it was included decides whether its explanation counts."""
        outer, self._level = self._level, recursion
        if not recursion:
            self._explanation = None  # RFC 7208 §6.2: that of the domain it is redirected to counts instead
        try:
            found: tuple[str, int, str] = super().check1(record, domain, recursion)
            return found
        finally:
            self._level = outer

    def validate_mechanism(self, term: str) -> tuple[str, str, str, int, str]:
        """The parts of a term: as it stands there, mechanism, domain or address, prefix length, result of a match."""
        parts: tuple[str, str, str, int, str] = super().validate_mechanism(term)
        if parts[2] != _NOWHERE:
            return parts
        # Whatever it was: it counts as a term that causes lookups (RFC 7208 §4.6.4), asks nothing and does not match.
        return parts[0], "exists", *parts[2:]

    def expand_domain(self, text: str) -> str:
        """The domain of a term, macros filled in; `_NOWHERE` when its term matches nothing. PermError for what is none.

        RFC 8616 §4: that goes for every term with `%{l}` or `%{s}`, also where they would leave only ASCII of it.
        """
        is_personal = _OF_LOCAL_PART.search(text.replace("%%", "")) is not None
        if self.l.isascii() or not is_personal:
            domain: str = super().expand_domain(text)
            if is_personal:
                self._names_of_people[domain] = text
            return domain
        name, self.p = self.p, "unknown"  # not looked up in vain when there is a %{p} as well
        try:
            super().expand_domain(text)  # an error is one for every sender
        finally:
            self.p = name
        return _NOWHERE

    def dns_spf(self, domain: str) -> str | None:
        """The record of a domain, None without one; PermError when it has several, or one that is too long."""
        if domain == _NOWHERE:
            return "v=spf1"  # of redirect=; one that says nothing is as good as no redirect=
        record: str | None = super().dns_spf(domain)
        if record is not None:
            self._octets += len(record)
            if len(record) > MAX_RECORD or self._octets > MAX_RECORDS or max(map(len, record.split(" "))) > MAX_TERM:
                raise spf.PermError("The record is too long")
            if record.count("%{") > MAX_MACROS:
                raise spf.PermError("The record has too many macros")
        return record

    def get_explanation(self, spec: str) -> None:
        """Remember where the explanation is; only that of the first record counts (RFC 7208 §6.2)."""
        if not self._level:
            self._explanation = spec, self.d

    def _explain(self) -> str:
        """The domain's words, printable ASCII; "" when there are none, or there is anything wrong with them."""
        if self._explanation is None:
            return ""
        spec, self.d = self._explanation
        try:
            texts = self.dns_txt(spec, ignore_void=True)
            if len(texts) != 1 or len(texts[0]) > MAX_TERM:
                return ""
            # The library would cut a long text as if it were a name, so it gets one word at a time.
            return clean(" ".join(self.expand(word, stripdot=False) for word in spf.to_ascii(texts[0]).split(" ")))
        except (spf.PermError, spf.TempError):
            return ""  # RFC 7208 §6.2: as if there were no exp=

    def expand(self, text: str, stripdot: bool = True) -> str:
        """Fill in macros (RFC 7208 §7); `stripdot` where a domain is wanted. PermError for what is none."""
        if not _MACRO_STRING.fullmatch(text):
            raise spf.PermError("Invalid macro", clean(text))
        expanded: str = super().expand(text, stripdot)
        if not stripdot or len(expanded) <= MAX_NAME:
            return expanded
        # RFC 7208 §7.3: labels go from the left until it fits
        _, dot, rest = expanded[-MAX_NAME - 1 :].partition(".")
        return rest if dot else expanded

    def cidrmatch(self, addresses: list[str], length: int) -> bool:
        """Whether the client is in the network of one of them, all of its own kind; much faster than the library's."""
        client = int(self.ipaddr)
        shift = self.ipaddr.max_prefixlen - length
        family = AF_INET if self.ipaddr.version == 4 else AF_INET6
        try:
            return any((int.from_bytes(inet_pton(family, address)) ^ client) >> shift == 0 for address in addresses)
        except (OSError, ValueError) as error:
            raise spf.PermError(f"Invalid address ({error})") from error

    def validated_ptrs(self) -> list[str]:
        """Names of the client that lead back to it; a name that cannot be looked up is none (RFC 7208 §5.5).

        The client decides how long its names take. If they could use up the time of the check, it would make a fail of
        any domain with `ptr` in its record a temperror.
        """
        if self._names is None:
            left, ends = self.querytime, monotonic() + self._time_for_names
            try:
                self._names = [name for name in self._names_in_dns(ends) if self._leads_here(name, ends)]
            finally:
                self.querytime = left
        return self._names

    def _names_in_dns(self, ends: float) -> list[str]:
        try:
            self._hurry(ends)
            names: list[str] = self.dns_ptr(self.i)[: spf.MAX_PTR]
        except spf.TempError:
            return []
        return names

    def _leads_here(self, name: str, ends: float) -> bool:
        try:
            self._hurry(ends)
            return bool(self.cidrmatch(self.dns_a(name, self.A), self.cidrmax))
        except spf.TempError:
            return False

    def _hurry(self, ends: float) -> None:
        """Let the next lookup take no longer than up to a moment (steady seconds); TempError when that is over."""
        self.querytime = ends - monotonic()
        if self.querytime <= 0:
            raise TempError("no time")


def use(look_up: LookUp) -> None:
    """Let the library ask `look_up` from now on; call it once, there is but one way for the whole process."""
    library = spf.DNSLookup

    def ask(name: str, kind: str, strict: bool = True, timeout: float = LONGEST_CHECK) -> object:
        found = look_up(name, kind, timeout)
        return library(name, kind, strict, timeout) if found is None else found

    spf.DNSLookup = ask
