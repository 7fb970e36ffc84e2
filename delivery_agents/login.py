"""How we log in at a mail server behind us: AUTH PLAIN (RFC 4616), or LOGIN where that is all it knows."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import SecretStr

from delivery_agents.answers import Answer
from delivery_agents.connection import Connection
from delivery_agents.failures import Unreachable

MAX_OCTETS = 255  # of a name, and of a password: RFC 4616 §2

_LONGEST_LINE = 512  # RFC 5321 §4.5.3.1.4; what is longer comes behind a 334 (RFC 4954 §4)
_GO_ON = 334
_WELCOME = 235


def check_credential(text: str) -> str:
    """Return a name or a password that can be said; ValueError for an empty, a too long one, or one with NUL."""
    if not text or "\0" in text or len(text.encode()) > MAX_OCTETS:
        raise ValueError(f"must have 1 to {MAX_OCTETS} octets, and no NUL")
    return text


@dataclass(frozen=True, slots=True)
class Login:
    """A name and a password at the server."""

    user: str
    password: SecretStr

    async def perform(self, connection: Connection) -> None:
        """Log in; Unreachable when the server does not want us, with its codes but never in its words.

        What it says may hold what we said.
        """
        mechanisms = connection.extensions.get("AUTH", "").upper().split()
        user, password = self.user.encode(), self.password.get_secret_value().encode()
        if "PLAIN" in mechanisms:
            await _exchange(connection, "PLAIN", [b"\0%b\0%b" % (user, password)])
        elif "LOGIN" in mechanisms:
            await _exchange(connection, "LOGIN", [user, password])
        else:
            before = ' before STARTTLS, so tls has to be "starttls"' if "STARTTLS" in connection.extensions else ""
            raise Unreachable(f"it offers neither AUTH PLAIN nor AUTH LOGIN{before}")


async def _exchange(connection: Connection, mechanism: str, responses: Sequence[bytes]) -> None:
    left = [b64encode(response) for response in responses]
    line = f"AUTH {mechanism}\r\n".encode()
    if mechanism == "PLAIN" and len(line) + 1 + len(left[0]) <= _LONGEST_LINE:
        line = b"AUTH PLAIN %b\r\n" % left.pop(0)
    answer = await _say(connection, line)
    while answer.code == _GO_ON and left:
        answer = await _say(connection, b"%b\r\n" % left.pop(0))
    if answer.code != _WELCOME or left:
        raise Unreachable(f"it answers AUTH {mechanism} with {f'{answer.code} {answer.status}'.strip()}")


async def _say(connection: Connection, line: bytes) -> Answer:
    connection.send(line, 1)
    return await connection.answer()
