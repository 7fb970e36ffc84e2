"""The recipient map: what `[smtpd.recipients]` says about an address, and how it was found."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import translate

from smtpd.addresses import Address, normalise_domain, parse_address
from smtpd.backtracking import compile_bounded
from smtpd.rewriting import PARTS, Rewriting, Target

_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a look-up, for people: what was looked at, and what came of it."""

    looked_for: str
    """Such as "as it stands bob@example.com"."""
    found: str


@dataclass(frozen=True, slots=True)
class Hit:
    """What was found for an address."""

    rewriting: Rewriting
    groups: Mapping[str, str] = field(default_factory=dict)
    """What the named groups of a regular expression have captured; "" for a group that took no part."""
    is_whole: bool = False
    """The map names the address as it stands."""


@dataclass(frozen=True, slots=True)
class _Pattern:
    text: str
    compiled: re.Pattern[str]
    rewriting: Rewriting


def is_expression(key: str) -> bool:
    """Whether a key of the map is a regular expression: it stands between slashes, where no address can."""
    return len(key) > 1 and key.startswith("/") and key.endswith("/")


def compile_expression(key: str, *, case_sensitive: bool = False) -> re.Pattern[str]:
    """Compile the expression between the slashes; ValueError for one that is none or could take too long."""
    compiled = compile_bounded(key[1:-1], re.DOTALL if case_sensitive else re.DOTALL | re.IGNORECASE)
    if "domain" in compiled.groupindex:
        # In a mailbox it would let the sender pick the domain.
        raise ValueError('may not name a group "domain": {domain} is the domain of the recipient')
    return compiled


def domain_key(text: str) -> str:
    """A key of `[smtpd.domains]` as it is compared; AddressError for what is none."""
    if text == "*":
        return text
    return f"*.{normalise_domain(text[2:])}" if text.startswith("*.") else normalise_domain(text)


class RecipientMap:
    """Targets by address, found in this order: the address as it stands, without subaddress, patterns, "@domain"."""

    def __init__(
        self, targets: Mapping[str, Target | str], *, separator: str = "+", case_sensitive: bool = False
    ) -> None:
        """Take the table as configured; ValueError for a key that makes no sense."""
        self._separator = separator
        self._case_sensitive = case_sensitive
        self._exact: dict[str, Rewriting] = {}
        self._patterns: list[_Pattern] = []
        self._catch_alls: dict[str, Rewriting] = {}
        self.targets = {key: Target.read(value) for key, value in targets.items()}
        for key, target in self.targets.items():
            self._add(key, Rewriting(target))

    def named(self, address: Address) -> Target | None:
        """What is said about the address as it stands."""
        found = self._exact.get(self.key_of(address))
        return found.target if found is not None else None

    def find_named(self, address: Address) -> Hit | None:
        """The same, ready to be applied."""
        found = self._exact.get(self.key_of(address))
        return Hit(found, is_whole=True) if found is not None else None

    def find(self, address: Address, covering: str, steps: list[Step] | None = None) -> Hit | None:
        """The first hit; `covering` is the key of `[smtpd.domains]` that takes the address."""
        key = self.key_of(address)
        rewriting = self._exact.get(key)
        if steps is not None:
            steps.append(Step(f"as it stands {key}", _found(rewriting)))
        if rewriting is not None:
            return Hit(rewriting, is_whole=True)
        if self._separator and self._separator in address.local:
            rewriting = self._without_subaddress(address, steps)
            if rewriting is not None:
                return Hit(rewriting)
        for pattern in self._patterns:
            match = pattern.compiled.fullmatch(key)
            if steps is not None:
                steps.append(Step(f"pattern {pattern.text}", _matched(pattern, match)))
            if match is not None:
                return Hit(pattern.rewriting, match.groupdict(""))
        return self._catch_all((address.domain, covering), steps) if self._catch_alls else None

    def split(self, local: str) -> tuple[str, str | None]:
        """User and detail of a local part; the detail is None when there is none."""
        user, found, detail = local.partition(self._separator) if self._separator else (local, "", "")
        return (user, detail) if found and user else (local, None)

    def key_of(self, address: Address) -> str:
        """An address as it is compared."""
        return self.key(address.local, address.domain) if self._case_sensitive else address.key

    def key(self, local: str, domain: str) -> str:
        """The same for an address in two parts."""
        if self._case_sensitive:
            return f"{unicodedata.normalize('NFC', local)}@{domain}"
        return Address(local, domain, "").key

    def unknown_parts(self) -> Iterator[tuple[str, str, frozenset[str]]]:
        """(key, name, known names) for every name in braces that nothing stands for."""
        for key, target in self.targets.items():
            groups = compile_expression(key).groupindex if is_expression(key) else ()
            known = PARTS | frozenset(groups)
            for name in sorted(target.parts - known):
                yield key, name, known

    def _without_subaddress(self, address: Address, steps: list[Step] | None) -> Rewriting | None:
        user, detail = self.split(address.local)
        if detail is None:
            return None
        key = self.key(user, address.domain)
        found = self._exact.get(key)
        if steps is not None:
            steps.append(Step(f"without subaddress {key}", _found(found)))
        return found

    def _catch_all(self, domains: tuple[str, str], steps: list[Step] | None) -> Hit | None:
        for domain in dict.fromkeys(domains):
            found = self._catch_alls.get(domain)
            if steps is not None:
                steps.append(Step(f"catch-all @{domain}", _found(found)))
            if found is not None:
                return Hit(found)
        return None

    def _add(self, key: str, rewriting: Rewriting) -> None:
        if is_expression(key):
            compiled = compile_expression(key, case_sensitive=self._case_sensitive)
            self._patterns.append(_Pattern(key, compiled, rewriting))
            return
        local, _, domain = key.rpartition("@")
        domain = domain_key(domain)
        # A pattern for everybody is a catch-all: a "deny" further down still counts.
        if local in ("", "*"):
            self._catch_alls[domain] = rewriting
        elif _WILD.search(local) or domain.startswith("*"):
            compiled = re.compile(translate(self.key(local, domain)), re.DOTALL)
            self._patterns.append(_Pattern(key, compiled, rewriting))
        else:
            self._exact[self.key(parse_address(f"{local}@{domain}").local, domain)] = rewriting


def _found(rewriting: Rewriting | None) -> str:
    if rewriting is None:
        return "not in the map"
    target = rewriting.target
    if target.deny:
        return "deny"
    said = {"agent": target.agent, "mailbox": target.mailbox, "folder": target.folder}
    words = [f'{name} "{text}"' for name, text in said.items() if text]
    return ", ".join(words if target.folder != "" else [*words, "inbox"])


def _matched(pattern: _Pattern, match: re.Match[str] | None) -> str:
    if match is None:
        return "does not match"
    captured = [f"{name}={value!r}" for name, value in match.groupdict("").items()]
    return ", ".join([_found(pattern.rewriting), *captured])
