"""Refuse or mark mail by lists of client addresses."""

from __future__ import annotations

from smtpd import replies
from smtpd.model import Session
from smtpd.options import FilterOptions, Networks
from smtpd.policy import PASS, Filter, Verdict
from smtpd.services import Services


class AccessOptions(FilterOptions):
    """Options of `access`."""

    deny_clients: Networks = ()
    """Networks whose mail is refused."""


class Access(Filter):
    """Looks into the operator's lists."""

    name = "access"
    Options = AccessOptions
    early = True

    def __init__(self, name: str, options: AccessOptions, services: Services) -> None:
        super().__init__(name, options, services)
        self._denied = options.deny_clients

    async def on_connect(self, session: Session) -> Verdict:
        """Look for the client's address."""
        if any(session.ip in network for network in self._denied):
            return Verdict(replies.DENIED_CLIENT(ip=session.ip))
        return PASS
