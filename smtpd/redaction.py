"""What must not be readable in a log, and how much of a value may stand there; decided here and nowhere else.

- Passwords, tokens and the like are written as "***", bytes only by their number.
- With `privacy` the local parts of addresses, logins and HELO names are written as a keyed hash: equal
  ones stay recognisable within one run, the people behind them do not.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from hashlib import blake2b

MAX_TEXT = 2000  # characters of one value
MAX_ITEMS = 100  # of a list or table in one field
MAX_DEPTH = 4
HUGE = 1 << 64  # printing really big numbers is slow, and refused by Python

_SECRET = re.compile(r"passw|passphrase|token|secret|credential|private_key|authorization", re.IGNORECASE)
_PEOPLE = frozenset(("sender", "recipient", "recipients", "login", "user", "account", "mailbox", "helo"))
_NOT_PEOPLE = frozenset(("message_id", "trace", "id"))
_ADDRESS = re.compile(r"(?<![^\s<>()\",;:\[\]])(\"(?:[^\"\\]|\\.)*+\"|[^\s<>()\",;:@\[\]]++)@(?=[\w\[])")
# What was too long for a reply may have lost the "@" that tells an address.
_CUT_ADDRESS = re.compile(r"(?<![^\s<>()\",;:\[\]])(?:\"(?:[^\"\\]|\\.)*|[^\s<>()\",;:@\[\]]+)\.\.\.")


class Redaction:
    """Says how a value is shown, and whether the values of a field need no look at all."""

    def __init__(self, privacy: bool, salt: bytes | None) -> None:
        self._privacy = privacy
        self._salt = blake2b(salt if salt is not None else os.urandom(16), digest_size=32).digest()

    def is_plain(self, name: str) -> bool:
        """Whether any text in a field of this name can be written as it is."""
        return not self._privacy and _SECRET.search(name) is None

    def shown(self, name: str, value: object, depth: int = 0) -> object:
        """The value as something JSON can hold, without secrets and, with privacy, without people."""
        if value is None or isinstance(value, bool):
            return value
        if _SECRET.search(name) is not None or hasattr(value, "get_secret_value"):
            return "***"
        if isinstance(value, int):
            return int(value) if -HUGE < value < HUGE else _cut(hex(value))
        if isinstance(value, float):
            return round(value, 6) if value - value == 0 else None  # JSON has no infinity and no NaN
        if isinstance(value, bytes | bytearray | memoryview):
            return f"<{len(value)} octets>"
        if isinstance(value, Mapping | list | tuple | set | frozenset):
            return self._collection(name, value, depth)
        return self._person_or_text(name, value if isinstance(value, str) else _as_text(value))

    def text(self, text: str) -> str:
        """Free text, with privacy without the local parts in it."""
        if not self._privacy:
            return text
        if "..." in text:
            text = _CUT_ADDRESS.sub("***...", text)
        return _ADDRESS.sub(self._hidden, text) if "@" in text else text

    def _collection(self, name: str, value: Mapping[object, object] | Collection[object], depth: int) -> object:
        if depth >= MAX_DEPTH:
            return "..."
        if isinstance(value, Mapping):
            pairs = list(value.items())[:MAX_ITEMS]
            return {self.text(_cut(_as_text(key))): self.shown(_as_text(key), item, depth + 1) for key, item in pairs}
        items = [self.shown(name, item, depth + 1) for item in list(value)[:MAX_ITEMS]]
        if isinstance(value, set | frozenset):
            items.sort(key=str)
        more = len(value) - len(items)
        return [*items, f"and {more} more"] if more else items

    def _person_or_text(self, name: str, text: str) -> str:
        text = _cut(text)
        if not self._privacy or name in _NOT_PEOPLE:
            return text
        if name not in _PEOPLE:
            return self.text(text)
        local, at, domain = text.rpartition("@")
        return f"{self._hash(local)}@{domain}" if at else self._hash(domain)

    def _hidden(self, match: re.Match[str]) -> str:
        return f"{self._hash(match[1])}@"

    def _hash(self, local: str) -> str:
        if local in ("", "<>"):
            return local
        folded = local.strip("<\"'").lower().encode("utf-8", "backslashreplace")
        return blake2b(folded, digest_size=4, key=self._salt).hexdigest()


def _as_text(value: object) -> str:
    try:
        return str(value)
    except Exception:  # a foreign object's own bug must not break what is being logged
        return f"<{type(value).__name__}>"


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 3]}..."
