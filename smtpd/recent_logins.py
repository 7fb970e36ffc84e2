"""Which passwords were right a moment ago, so that they need not be hashed again."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable


class RecentLogins:
    """Remembers logins by a keyed digest; the key never leaves the process.

    The hash from the file is part of the digest, so a changed password is asked for at once.
    """

    def __init__(self, seconds: float, *, limit: int = 1000, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._limit = limit
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._until: dict[bytes, float] = {}
        self._lock = threading.Lock()

    def token(self, *parts: str) -> bytes:
        """The digest of one login."""
        octets = [part.encode() for part in parts]
        framed = b"".join(len(part).to_bytes(4) + part for part in octets)
        return hmac.digest(self._key, framed, hashlib.sha256)

    def add(self, token: bytes) -> None:
        """Remember; the oldest goes when there are too many."""
        with self._lock:
            self._until.pop(token, None)
            if self._seconds <= 0:
                return
            while len(self._until) >= self._limit:
                del self._until[next(iter(self._until))]
            self._until[token] = self._clock() + self._seconds

    def __contains__(self, token: bytes) -> bool:
        with self._lock:
            return self._until.get(token, 0.0) > self._clock()
