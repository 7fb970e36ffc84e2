"""What clients may use up: connections, memory for content, and time for slow data. Pure, no clock of its own.

Everywhere 0 means no limit. The limits are plain attributes: a reload sets them, what is counted stays.
"""

from __future__ import annotations

import socket
from typing import Literal

ConnectionRefusal = Literal["total", "address"]

_MAPPED_IPV4 = bytes(10) + b"\xff\xff"  # RFC 4291 §2.5.5.2


class ConnectionLimits:
    """Counts open connections, all together and per client; an IPv6 client is its /64 network."""

    __slots__ = ("_per_client", "active", "per_ip", "total")

    def __init__(self, total: int, per_ip: int) -> None:
        self.total = total
        self.per_ip = per_ip
        self.active = 0
        self._per_client: dict[str | bytes, int] = {}

    def admit(self, ip: str) -> ConnectionRefusal | None:
        """Count a new connection, or say which limit it would break; then it is not counted."""
        if self.total and self.active >= self.total:
            return "total"
        client = client_of(ip)
        held = self._per_client.get(client, 0)
        if held >= self.per_ip > 0:
            return "address"
        self._per_client[client] = held + 1
        self.active += 1
        return None

    def release(self, ip: str) -> None:
        """An admitted connection is over; ValueError when none from this client was admitted."""
        client = client_of(ip)
        held = self._per_client.pop(client, 0)
        if held > 1:
            self._per_client[client] = held - 1
        elif held == 0:
            raise ValueError(f"no connection from {ip} was admitted")
        self.active -= 1

    def move(self, old: str, new: str) -> ConnectionRefusal | None:
        """Count an admitted connection for another address; "address" leaves it where it was."""
        client = client_of(new)
        held = self._per_client.get(client, 0)
        if client == client_of(old):
            return None
        if self.per_ip and held >= self.per_ip:
            return "address"
        self.release(old)
        self._per_client[client] = held + 1
        self.active += 1
        return None

    @property
    def clients(self) -> int:
        """How many different clients are connected."""
        return len(self._per_client)


class ContentBudget:
    """Memory for the content of all messages in flight, bytes."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def take(self, octets: int) -> bool:
        """Reserve `octets` bytes; False when that much is not left, then nothing is reserved."""
        used = self.used + octets
        if used > self.limit and self.limit:
            return False
        self.used = used
        return True

    def give(self, octets: int) -> None:
        """Give reserved bytes back; ValueError for more than was taken."""
        if octets > self.used:
            raise ValueError(f"{octets} bytes given back, {self.used} taken")
        self.used -= octets


class DataRate:
    """Watches how fast content arrives: whole windows one after the other, so a stall shows within two.

    `min_rate` in bytes per second, `window` in seconds; `started` and `now` are seconds of one steady clock.
    """

    __slots__ = ("_octets", "_started", "min_rate", "window")

    def __init__(self, min_rate: float, started: float, *, window: float = 60.0) -> None:
        self.min_rate = min_rate
        self.window = window
        self._started = started
        self._octets = 0

    def too_slow(self, now: float, octets: int) -> bool:
        """Add octets that just arrived (0 to ask only): True when a window ended below the rate."""
        self._octets += octets
        passed = now - self._started
        if passed < self.window:
            return False
        slow = self._octets < self.min_rate * passed
        self._started = now
        self._octets = 0
        return slow


def client_of(ip: str) -> str | bytes:
    """Whom an address stands for wherever clients are told apart: an IPv6 one for its /64 network."""
    if ":" not in ip:
        return ip
    try:
        packed = socket.inet_pton(socket.AF_INET6, ip.partition("%")[0])
    except OSError:
        return ip
    if packed.startswith(_MAPPED_IPV4):
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return packed[:8]
