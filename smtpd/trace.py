"""Trace fields: what we put on top of a message. Pure text; nothing of the client gets in unescaped."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from email.utils import formatdate
from functools import lru_cache

from smtpd.model import Session, Transaction

_DOMAIN_LIKE = re.compile(r"[A-Za-z0-9._:\[\]-]{1,255}")
_PATH = re.compile(r"[\x21-\x7e\x80-\U0010ffff ]+")
_UNSAFE_IN_FIELD = re.compile(r"[^ -~\u00a0-\U0010ffff]+")
_FOLD = re.compile(r"\r\n(?=[ \t]+[!-~])")  # RFC 5322 §2.2.3; a line of blanks alone is obsolete
_UNSAFE_IN_COMMENT = re.compile(r"[^\x21\x23-\x27\x2a-\x5b\x5d-\x7e ]")
_CLIENTS = 1000  # whose part of a Received field is kept for their next message


def received(session: Session, mail: Transaction, hostname: str, moment: float | None = None) -> bytes:
    """One complete Received field of this hop (RFC 5321 §4.4).

    `for` stands there only with a single recipient, so no blind copy is given away (§7.2). A HELO
    that is no domain or literal is left out in favour of the address; no login is ever named.
    `moment` is the time of day, seconds since 1970; None: now.
    """
    date = _date(int(time.time() if moment is None else moment))
    tls, recipients = session.tls, mail.recipients
    origin = _origin(
        session.helo, session.ip_text, hostname,
        mail.smtputf8, session.lmtp, session.esmtp, session.login is not None,
        (tls.version, tls.cipher) if tls is not None else None,
    )  # fmt: skip
    recipient = f"\r\n\tfor <{_path(recipients[0].address.text)}>" if len(recipients) == 1 else ""
    text = f"{origin} id {mail.id}{recipient};\r\n\t{date}\r\n"
    return text.encode("utf-8" if mail.smtputf8 else "ascii", "replace")


def return_path(mail: Transaction) -> bytes:
    """The Return-Path field that final delivery puts on top (RFC 5321 §4.4)."""
    return f"Return-Path: <{_path(mail.sender.text)}>\r\n".encode("utf-8", "replace")


def delivered_to(address: str) -> bytes:
    """The Delivered-To field of one mailbox (RFC 9228); only for a message with a single recipient."""
    return f"Delivered-To: {_path(address)}\r\n".encode("utf-8", "replace")


def field(name: str, value: str) -> bytes:
    """Any field a filter wants on top; line breaks that fold nothing and control characters become spaces."""
    lines = (_UNSAFE_IN_FIELD.sub(" ", line) for line in _FOLD.split(value))
    return f"{name}: {'\r\n'.join(lines)}\r\n".encode("utf-8", "replace")


def labels(labels: Iterable[str]) -> bytes:
    """Our one field that carries the labels of a message to whatever reads it later."""
    return field("X-Smtpd-Labels", ", ".join(sorted(labels)))


def comment(text: str) -> str:
    """Text that can stand inside parentheses (RFC 5322 §3.2.2)."""
    return _UNSAFE_IN_COMMENT.sub("?", text)


@lru_cache(1)
def _date(second: int) -> str:
    """An RFC 5322 date-time in local time, made once a second."""
    return formatdate(second, localtime=True)


@lru_cache(_CLIENTS)
def _origin(
    helo: str, ip: str, hostname: str, utf8: bool, lmtp: bool, esmtp: bool, login: bool, tls: tuple[str, str] | None
) -> str:
    """A Received field up to its "id": the same for all messages that a client sends with one EHLO."""
    literal = f"[IPv6:{ip}]" if ":" in ip else f"[{ip}]"  # RFC 5321 §4.1.3
    name = helo if _DOMAIN_LIKE.fullmatch(helo) else literal
    secured = ("S" if tls else "") + ("A" if login else "")
    used = f"\r\n\t({tls[0]} {comment(tls[1])})" if tls else ""
    return (
        f"Received: from {name} ({literal})\r\n"
        f"\tby {hostname} (smtpd) with {_protocol(secured, utf8=utf8, lmtp=lmtp, esmtp=esmtp)}{used}"
    )


def _protocol(secured: str, *, utf8: bool, lmtp: bool, esmtp: bool) -> str:
    """The word behind "with": RFC 3848 and RFC 6531 §3.7.3."""
    if utf8:
        return f"UTF8{'LMTP' if lmtp else 'SMTP'}{secured}"
    if lmtp:
        return f"LMTP{secured}"
    return f"ESMTP{secured}" if esmtp else "SMTP"


def _path(text: str) -> str:
    if text.isascii() and text.isprintable():
        return text
    return text if _PATH.fullmatch(text) else comment(text)
