"""Which store keeps the state: what `[smtpd.state] url` names."""

from __future__ import annotations

import time

from smtpd.store import MemoryStore, Store


def open_store(url: str) -> Store:
    """Make the store that `[smtpd.state] url` names: "memory:" or "sqlite:PATH"; ValueError for anything else.

    Nothing is opened before `start`. The text of the error holds nothing of `url`, which may hold a password.
    """
    scheme, _, rest = url.partition(":")
    if url == "memory:":
        return MemoryStore(time.monotonic)
    if scheme in ("redis", "rediss"):
        raise ValueError('redis is not supported yet: state is kept in "memory:" or "sqlite:PATH"')
    # SQLite itself would read ":memory:" as a database that vanishes, and each connection would have its own.
    if scheme != "sqlite" or not rest or rest.startswith(":") or "\0" in rest:
        raise ValueError('state is kept in "memory:" or "sqlite:PATH"')
    from smtpd.sqlite_store import SqliteStore

    return SqliteStore(rest, time.time)
