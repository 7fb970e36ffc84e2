"""One transaction at a smarthost: as at an LMTP server, but one answer stands for all recipients (RFC 5321 §4.1.1.4).

A server that offers PRDR may say 353 instead, then an answer for each recipient, and one for all at the end.
"""

from __future__ import annotations

from delivery_agents.answers import EACH, Answer
from delivery_agents.connection import Connection
from delivery_agents.lmtp_delivery import LmtpDelivery, Path, check_outcome
from smtpd import replies
from smtpd.replies import Reply


class RelayDelivery(LmtpDelivery):
    """Our half of the transaction."""

    def _parameters(self, connection: Connection, has_utf8: bool, size: int | None) -> str:
        offers = connection.extensions
        parameters = super()._parameters(connection, has_utf8, size)
        if "PRDR" in offers:
            parameters += " PRDR"
        if self._terms.has_login and "AUTH" in offers:
            parameters += " AUTH=<>"  # RFC 4954 §5: whose mail it is stays with us
        return parameters

    def _send_last(self, connection: Connection, octets: bytes, recipients: int) -> None:
        connection.send(octets, 1, more=recipients + 1, last=True)

    async def _hear(self, connection: Connection, paths: list[Path], said: dict[Path, Answer]) -> None:
        first = await connection.answer()
        if first.code != EACH or "PRDR" not in connection.extensions:
            said.update(dict.fromkeys(paths, check_outcome(first)))
            return
        taken: dict[Path, Answer] = {}
        for path in paths:
            answer = check_outcome(await connection.answer())
            (taken if answer.is_positive else said)[path] = answer
        # Like Exim: until the last answer nobody has the message, and a refusal there is one for everybody.
        last = check_outcome(await connection.answer())
        said.update(taken if last.is_positive else dict.fromkeys(taken, last))

    def _named(self, reply: Reply) -> Reply:
        return reply(**replies.NEXT_SERVER)
