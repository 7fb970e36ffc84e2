"""What carries a channel: a socket (`wire.py`), a pipe (`session_cli.py`), or nothing but memory (`memory.py`)."""

from __future__ import annotations

from typing import Protocol

from smtpd.model import TlsInfo
from smtpd.replies import Reply


class Transport(Protocol):
    """What a channel needs of its carrier: a socket, a pipe, or a test."""

    def write(self, data: bytes) -> None:
        """Send octets; never blocks."""

    def pause_reading(self) -> None:
        """Stop feeding."""

    def resume_reading(self) -> None:
        """Feed again."""

    def close(self) -> None:
        """Send what is written, then hang up."""

    def abort(self) -> None:
        """Hang up at once."""

    async def start_tls(self) -> TlsInfo:
        """Shake hands as a TLS server; OSError or ssl.SSLError when it fails."""

    def readdress(self, ip: str) -> Reply | None:
        """Count the connection for another client; a Reply when that one has too many already."""
