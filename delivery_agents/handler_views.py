"""What an aiosmtpd handler sees of us: session and envelope in aiosmtpd's own classes, and a small server."""

from __future__ import annotations

import asyncio
from ipaddress import IPv6Address

from aiosmtpd.smtp import Envelope, LoginPassword
from aiosmtpd.smtp import Session as HandlerSession

from smtpd.model import Transaction

NULL_SENDER = "<>"  # as aiosmtpd has it in `mail_from`


class ServerView:
    """Stands for aiosmtpd's SMTP object, with what handlers read of it."""

    transport = None

    def __init__(self, hostname: str, handler: object, session: HandlerSession, envelope: Envelope) -> None:
        self.hostname = hostname
        self.event_handler = handler
        self.session = session
        self.envelope = envelope

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that the handler runs in."""
        return asyncio.get_running_loop()

    def __getattr__(self, name: str) -> object:
        raise AttributeError(f"the server that the agent `handler` shows to a handler has no {name!r}")


def make_session(mail: Transaction, loop: asyncio.AbstractEventLoop) -> HandlerSession:
    """Our session in aiosmtpd's words."""
    ours = mail.session
    session = HandlerSession(loop)
    address = (ours.ip_text, ours.port)
    # aiosmtpd's annotations say less than it puts there.
    session.peer = (*address, 0, 0) if isinstance(ours.ip, IPv6Address) else address  # type: ignore[assignment]
    session.host_name = ours.helo
    session.extended_smtp = ours.esmtp
    session.authenticated = ours.authenticated
    if ours.login is not None:
        session.auth_data = LoginPassword(ours.login.encode("utf-8"), b"")  # type: ignore[assignment]
    if ours.tls is not None:
        session.ssl = {"cipher": (ours.tls.cipher, ours.tls.version, ours.tls.bits)}
    return session


def make_envelope(mail: Transaction) -> Envelope:
    """The envelope before the first recipient."""
    envelope = Envelope()
    envelope.mail_from = mail.sender.text or NULL_SENDER
    envelope.smtp_utf8 = mail.smtputf8
    if mail.size is not None:
        envelope.mail_options.append(f"SIZE={mail.size}")
    if mail.body != "7BIT":
        envelope.mail_options.append(f"BODY={mail.body}")
    if mail.smtputf8:
        envelope.mail_options.append("SMTPUTF8")
    return envelope
