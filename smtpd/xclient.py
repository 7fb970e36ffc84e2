"""XCLIENT: a trusted program in front of us says whose connection this is (Postfix, XCLIENT_README). Pure.

What is believed: ADDR, PORT, DESTADDR, DESTPORT, HELO and PROTO. NAME is read and ignored, as names are
looked up here; so is LOGIN, as only AUTH earns a login.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from smtpd import replies
from smtpd.model import IPAddress, Session, new_id, plain_ip
from smtpd.replies import Refused

ATTRIBUTES = ("NAME", "ADDR", "PORT", "PROTO", "HELO", "LOGIN", "DESTADDR", "DESTPORT")
KEYWORD = " ".join(("XCLIENT", *ATTRIBUTES))
"""The line of the EHLO reply, for those who may use it."""

_SYNTAX = replies.BAD_ARGUMENT(syntax="XCLIENT attribute=value, known are " + " ".join(ATTRIBUTES))
_XTEXT = re.compile(rb"(?:[!-*,-<>-~]|\+[0-9A-Fa-f]{2})+")  # RFC 3461 §4
_HEXCHAR = re.compile(rb"\+([0-9A-Fa-f]{2})")
_WORD = re.compile(r"[!-~]{1,255}")
_PORT = re.compile(r"[0-9]{1,5}")
_IPV6 = re.compile(r"IPV6:([0-9A-F:.]+)", re.IGNORECASE)
_NOT_KNOWN = "[UNAVAILABLE]"
_NOT_KNOWN_NOW = "[TEMPUNAVAIL]"


@dataclass(frozen=True, slots=True)
class XclientCommand:
    """What was said; None for what was not said, or is not known there."""

    address: IPAddress | None = None
    port: int | None = None
    helo: str | None = None
    esmtp: bool | None = None
    destination: IPAddress | None = None
    destination_port: int | None = None


def parse_xclient(argument: bytes) -> XclientCommand:
    """Read b"ADDR=192.0.2.1 NAME=[UNAVAILABLE]"; Refused with 501 5.5.4 for anything the README does not know."""
    values: dict[str, str] = {}
    for word in filter(None, argument.split(b" ")):
        keyword, _, value = word.partition(b"=")
        name = keyword.decode("ascii", "replace").upper()
        if name not in ATTRIBUTES:
            raise Refused(_SYNTAX)
        if name in values:
            raise _bad(name)
        values[name] = _decode(name, value)
    if not values:
        raise Refused(_SYNTAX)
    known = {name: value for name, value in values.items() if not _is_not_known(name, value)}
    for name in ("NAME", "LOGIN"):
        if name in known and _WORD.fullmatch(known[name]) is None:
            raise _bad(name)
    return XclientCommand(
        address=_address("ADDR", known),
        port=_port("PORT", known),
        helo=_helo(known),
        esmtp=_esmtp(known),
        destination=_address("DESTADDR", known),
        destination_port=_port("DESTPORT", known),
    )


def successor(session: Session, command: XclientCommand, trusts: Callable[[IPAddress], bool]) -> Session:
    """The session of the client that was named: nothing of the old one is left but TLS, LMTP and what was not named.

    `trusts` says whether an address is trusted. The name in HELO= is in force at once, so filters that want
    to judge it have to be asked.
    """
    ip = command.address or session.ip
    return Session(
        id=new_id(),
        listener=session.listener,
        ip=ip,
        port=session.port if command.port is None else command.port,
        local_ip=session.local_ip if command.destination is None else str(command.destination),
        local_port=session.local_port if command.destination_port is None else command.destination_port,
        helo=command.helo or "",
        esmtp=bool(command.helo and command.esmtp),
        lmtp=session.lmtp,
        tls=session.tls,
        trusted=trusts(ip),
    )


def _bad(name: str) -> Refused:
    return Refused(replies.BAD_PARAMETER(parameter=name))


def _decode(name: str, value: bytes) -> str:
    if _XTEXT.fullmatch(value) is None:
        raise _bad(name)
    try:
        return _HEXCHAR.sub(lambda match: bytes.fromhex(match[1].decode("ascii")), value).decode("utf-8")
    except UnicodeDecodeError:
        raise _bad(name) from None


def _is_not_known(name: str, value: str) -> bool:
    word = value.upper()
    return (word == _NOT_KNOWN and name != "PROTO") or (word == _NOT_KNOWN_NOW and name == "NAME")


def _address(name: str, known: dict[str, str]) -> IPAddress | None:
    if name not in known:
        return None
    match = _IPV6.fullmatch(known[name])
    try:
        if match is None:
            return IPv4Address(known[name])
        address = IPv6Address(match[1])
    except ValueError:
        raise _bad(name) from None
    return plain_ip(address)


def _port(name: str, known: dict[str, str]) -> int | None:
    if name not in known:
        return None
    if _PORT.fullmatch(known[name]) is None or int(known[name]) > 65535:
        raise _bad(name)
    return int(known[name])


def _helo(known: dict[str, str]) -> str | None:
    if "HELO" in known and _WORD.fullmatch(known["HELO"]) is None:
        raise _bad("HELO")
    return known.get("HELO")


def _esmtp(known: dict[str, str]) -> bool | None:
    if "PROTO" not in known:
        return None
    protocol = known["PROTO"].upper()
    if protocol not in ("SMTP", "ESMTP"):
        raise _bad("PROTO")
    return protocol == "ESMTP"
