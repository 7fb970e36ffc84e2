"""The test suite of RFC 7208 (tests/vectors/spf): its zones, for `Zone` and for a real nameserver, and its cases."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dnslib
from dns_server import Nameserver

from smtpd.zone import Zone

SUITE = Path(__file__).parent / "vectors" / "spf" / "rfc7208-tests.json"
DEFAULT_EXPLANATION = "DEFAULT"


@dataclass(frozen=True)
class Case:
    """One check: `results` are those that are right, the preferred one first."""

    name: str
    helo: str
    host: str
    mailfrom: str
    results: tuple[str, ...]
    explanation: str | None

    @property
    def identity(self) -> tuple[str, str]:
        """What is checked: local part and domain (RFC 7208 §2.4 and §4.3 for what is missing)."""
        local, _, domain = self.mailfrom.rpartition("@")
        return local or "postmaster", domain or self.helo


@dataclass
class Scenario:
    """Some cases, and the DNS they are for."""

    name: str
    cases: list[Case]
    records: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    failing: set[str] = field(default_factory=set)
    """Names that are not answered for, unless the record that is asked for is here."""

    def zone(self) -> Zone:
        """The DNS in memory."""
        zone = Zone()
        for name, types in self.records.items():
            table: dict[str, object] = {kind: [_text(value) for value in values] for kind, values in types.items()}
            if name in self.failing:
                table["tempfail"] = True
            zone.put(name, **table)
        return zone

    def publish(self, nameserver: Nameserver) -> None:
        """Put it in place of what a nameserver knew."""
        nameserver.clear()
        for name, types in self.records.items():
            if name in self.failing and not types:
                nameserver.fail(name, "SERVFAIL")
            for kind, values in types.items():
                for value in values:
                    nameserver.add_record(name, kind, _data(kind, value))


def scenarios() -> list[Scenario]:
    """All of them, in the order of the file."""
    return [_scenario(document) for document in json.loads(SUITE.read_text(encoding="utf-8"))]


def _scenario(document: dict[str, Any]) -> Scenario:
    scenario = Scenario(document["description"], [_case(name, test) for name, test in document["tests"].items()])
    for name, items in document["zonedata"].items():
        types = scenario.records.setdefault(name.lower(), {})
        # Type SPF is gone (RFC 7208 §3.1); what has it stands for TXT, unless there is TXT, even none ("NONE").
        own_text = any("TXT" in item for item in items if isinstance(item, dict))
        for kind, value in _pairs(items):
            if kind == "TIMEOUT":
                scenario.failing.add(name.lower())
            elif value != "NONE" and not (kind == "SPF" and own_text):
                types.setdefault("TXT" if kind == "SPF" else kind, []).append(value)
    return scenario


def _pairs(items: list[Any]) -> Iterator[tuple[str, Any]]:
    for item in items:
        if isinstance(item, str):
            yield item, None
        else:
            yield from item.items()


def _case(name: str, test: dict[str, Any]) -> Case:
    results = test["result"]
    return Case(
        name, test["helo"], test["host"], test["mailfrom"],
        tuple(results) if isinstance(results, list) else (results,), test.get("explanation"),
    )  # fmt: skip


def _text(value: Any) -> Any:
    """As Zone has it: MX is a list of a number and a name, TXT may be a list of strings."""
    if isinstance(value, list) and value and isinstance(value[0], int):
        return f"{value[0]} {value[1] or '.'}"
    return value


def _data(kind: str, value: Any) -> dnslib.RD:
    match kind:
        case "MX":
            return dnslib.MX(value[1], value[0])
        case "TXT":
            strings = value if isinstance(value, list) else [value]
            # Not a single string cannot be sent, RFC 1035 §3.3.14: one of no octets is as near as it gets.
            return dnslib.TXT([part.encode() for part in strings] or [b""])
        case "A":
            return dnslib.A(value)
        case "AAAA":
            return dnslib.AAAA(value)
        case "PTR":
            return dnslib.PTR(value)
        case "CNAME":
            return dnslib.CNAME(value)
    raise ValueError(kind)
