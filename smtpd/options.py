"""The kinds of value an option can have, and the base classes of all option tables.

Every table is a frozen pydantic model whose attribute docstrings are the manual: `config.toml`,
the pages below `docs/` and the JSON Schema are generated from them.
"""

import re
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0}
_SIZE = re.compile(r"(\d+)\s*([KMGT])?i?B?", re.IGNORECASE)
_BYTES = {None: 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_seconds(value: object) -> float:
    """Turn 30, 1.5, "30s", "5m", "1h", "250ms" or "2d" into seconds; ValueError for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return float(value)
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError('must be a duration such as 30, "30s", "5m", "1h" or "250ms"')
    return float(match[1]) * _SECONDS[match[2]]


def parse_bytes(value: object) -> int:
    """Turn 26214400, "25M", "256K" or "1G" (powers of 1024) into bytes; ValueError for anything else."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError('must be a size such as 26214400, "25M", "256K" or "1G"')
    return int(match[1]) * _BYTES[match[2].upper() if match[2] else None]


def parse_network(value: object) -> IPv4Network | IPv6Network:
    """Turn "192.0.2.0/24", "2001:db8::/32" or a single address into a network; host bits must be zero."""
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    if not isinstance(value, str):
        raise ValueError('must be a network such as "192.0.2.0/24" or "2001:db8::/32"')
    return ip_network(value.strip())


def as_tuple(value: object) -> object:
    """A list, as files hold them, as the tuple that options hold; anything else as it is."""
    return tuple(value) if isinstance(value, list) else value


Seconds = Annotated[
    float,
    BeforeValidator(parse_seconds),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0}, {"type": "string"}], "title": "duration"}),
]
Bytes = Annotated[
    int,
    BeforeValidator(parse_bytes),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string"}], "title": "size"}),
]
IPNetwork = Annotated[
    IPv4Network | IPv6Network,
    BeforeValidator(parse_network),
    PlainSerializer(str),
    WithJsonSchema({"type": "string", "title": "network"}),
]
Networks = Annotated[tuple[IPNetwork, ...], BeforeValidator(as_tuple)]
Strings = Annotated[tuple[str, ...], BeforeValidator(as_tuple)]


class ExistingFile:
    """Marks an option that names a file somebody else has to make: `smtpd check` says when it is not there."""


class WrittenFile:
    """Marks an option that names a file we make: `smtpd check` says when there is no directory for it."""


InputFile = Annotated[str, ExistingFile()]
OutputFile = Annotated[str, WrittenFile()]
StageName = Literal["connect", "helo", "mail", "rcpt", "message"]


class Options(BaseModel):
    """One table of the configuration: strict, frozen, and every key explained by its docstring."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, hide_input_in_errors=True
    )

    def obstacles(self) -> Iterable[tuple[str, str]]:
        """Options, and what is wrong with the files and programs that they name: `smtpd check` asks, with the rights
        that the server will have. Nothing is made, changed or asked of others."""
        return ()


class FilterOptions(Options):
    """What every filter can be told; its own options come on top."""

    type: str = ""
    """Entry-point name of the filter; empty: the table's own name."""
    mode: Literal["enforce", "observe", "off"] = "enforce"
    """"observe" computes everything and only counts what would have been refused; "off" switches it off."""
    on_error: Literal["pass", "defer"] = "pass"
    """What a crash, a timeout or a broken backend means: go on without it, or 451. Never a refusal."""
    timeout: Seconds = 30.0
    """Longest time one question to the filter may take."""
    act_at: StageName | None = None
    """Earliest command at which a refusal is spoken; unset: RCPT for what was decided before it."""
    unless: Strings = ()
    """Conditions that silence a refusal: "authenticated", "trusted", "tls", or a label another filter gives."""
    listeners: Strings = ()
    """Listeners the filter works on; empty: all."""

    def recipient_domains(self) -> Iterable[tuple[tuple[str | int, ...], str]]:
        """Domains of recipients that options name, behind the keys that lead there; each of them must be ours."""
        return ()


class AgentOptions(Options):
    """What every delivery agent can be told; its own options come on top."""

    type: str
    """Entry-point name of the agent."""
    remember_known: Annotated[Seconds, Field(le=60.0)] = 0.0
    """How long a recipient the agent has taken is not asked for again, seconds, at most 60; 0: ask every time."""
    remember_unknown: Annotated[Seconds, Field(le=300.0)] = 0.0
    """How long a recipient refused with 5.1.1 is refused unasked, seconds, at most 300; 0: ask every time."""

    def next_hop(self) -> str:
        """The server that gets the mail, "host:port" or "unix:PATH"; "": none, or none that could be ourselves."""
        return ""


Json = dict[str, Any]
