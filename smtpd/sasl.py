"""How a SASL mechanism talks to the client over SMTP (RFC 4954 §4)."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Coroutine
from typing import Any

from smtpd import auth, commands, replies
from smtpd.channel import Channel
from smtpd.replies import Refused


class Exchange:
    """The challenges and answers between "AUTH" and its final reply; each answer may take `timeout` seconds."""

    def __init__(self, channel: Channel, timeout: float, client: str | None = None) -> None:
        self.user = ""
        self.client = client
        self._channel = channel
        self._timeout = timeout

    async def challenge(self, data: bytes) -> bytes:
        """Send a challenge, return the decoded answer; Refused when it is too long, cancelled or no base64."""
        self._channel.write(replies.AUTH_PROMPT(challenge=b64encode(data).decode()).plain)
        try:
            line = await self._channel.line(self._timeout, limit=commands.MAX_AUTH_LINE)
        except Refused:
            raise Refused(replies.AUTH_LINE_TOO_LONG) from None
        if line == b"*":
            raise Refused(replies.AUTH_CANCELLED)
        return auth.decode_response(line)

    async def ask[T](self, work: Coroutine[Any, Any, T]) -> T:
        """Run what awaits asyncio things."""
        return await self._channel.run(work)
