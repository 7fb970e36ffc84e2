"""Trace fields: what we put on top of a message. Pure text; nothing of the client gets in unescaped."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from email.utils import formatdate
from ipaddress import IPv6Address

from smtpd.model import Session, Transaction

_DOMAIN_LIKE = re.compile(r"[A-Za-z0-9._:\[\]-]{1,255}")
_PATH = re.compile(r"[\x21-\x7e\x80-\U0010ffff ]+")
_UNSAFE_IN_FIELD = re.compile(r"[^ -~\u00a0-\U0010ffff]+")
_FOLD = re.compile(r"\r\n(?=[ \t]+[!-~])")  # RFC 5322 §2.2.3; a line of blanks alone is obsolete
_UNSAFE_IN_COMMENT = re.compile(r"[^\x21\x23-\x27\x2a-\x5b\x5d-\x7e ]")


class _Clock:
    """RFC 5322 date-times in local time, made once a second."""

    __slots__ = ("_second", "_text")

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def __call__(self, moment: float) -> str:
        second = int(moment)
        if second != self._second:
            self._second, self._text = second, formatdate(second, localtime=True)
        return self._text


_date = _Clock()


def protocol(session: Session, mail: Transaction) -> str:
    """The word behind "with": RFC 3848 and RFC 6531 §3.7.3."""
    secured = ("S" if session.tls else "") + ("A" if session.login is not None else "")
    if mail.smtputf8:
        return f"UTF8{'LMTP' if session.lmtp else 'SMTP'}{secured}"
    if session.lmtp:
        return f"LMTP{secured}"
    return f"ESMTP{secured}" if session.esmtp else "SMTP"


def address_literal(session: Session) -> str:
    """The client's address in RFC 5321 §4.1.3 form."""
    return f"[IPv6:{session.ip_text}]" if isinstance(session.ip, IPv6Address) else f"[{session.ip_text}]"


def received(session: Session, mail: Transaction, hostname: str, moment: float | None = None) -> bytes:
    """One complete Received field of this hop (RFC 5321 §4.4).

    `for` stands there only with a single recipient, so no blind copy is given away (§7.2). A HELO
    that is no domain or literal is left out in favour of the address; no login is ever named.
    `moment` is the time of day, seconds since 1970; None: now.
    """
    date = _date(time.time() if moment is None else moment)
    literal = address_literal(session)
    helo = session.helo if _DOMAIN_LIKE.fullmatch(session.helo) else literal
    tls = f"\r\n\t({session.tls.version} {comment(session.tls.cipher)})" if session.tls else ""
    recipient = f"\r\n\tfor <{_path(mail.recipients[0].address.text)}>" if len(mail.recipients) == 1 else ""
    return (
        f"Received: from {helo} ({literal})\r\n\tby {hostname} (smtpd) with {protocol(session, mail)}{tls}"
        f" id {mail.id}{recipient};\r\n\t{date}\r\n"
    ).encode("utf-8" if mail.smtputf8 else "ascii", "replace")


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


def _path(text: str) -> str:
    return text if _PATH.fullmatch(text) or not text else comment(text)
