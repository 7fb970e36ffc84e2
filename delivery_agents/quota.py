"""How full a mailbox is, by the rules of Maildir++ that Courier and Dovecot follow.

`maildirsize` in the mailbox holds the limit in its first line and then one line per change ("octets
messages"). Whoever delivers appends; when the file is long, strange, or says the mailbox is full, the
mailbox is counted anew. Its owner may have put anything there, so nothing in it is trusted.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

# O_NONBLOCK: a named pipe in the place of a file must not make us wait.
_OPEN = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAX_FILE = 5120  # octets, the Maildir++ rule
_TRUST = 900.0  # seconds for which a count that says "full" is believed
_SIZE = re.compile(r",S=(\d{1,18})")
_DELETED = re.compile(r":2,[A-Za-z]*T")
_LINE = re.compile(rb"\s*(-?\d{1,18})\s+(-?\d{1,18})\s*")


class OverQuota(Exception):  # noqa: N818 - it is an outcome, not an error
    """The mailbox has no room for the message."""


class Quota:
    """One limit, in octets, for every mailbox; `clock` gives seconds since 1970."""

    def __init__(self, limit: int, *, clock: Callable[[], float] = time.time) -> None:
        self.limit = limit
        self._clock = clock

    def is_full(self, path: str, size: int, *, recount: bool = False) -> bool:
        """Whether `size` more octets do not fit; `recount` allows to look at every file. OSError when unreadable."""
        found = self._read(path)
        if found is not None and found[0] + size <= self.limit:
            return False
        if recount and (found is None or self._is_doubtful(*found[1:])):
            return self.recount(path) + size > self.limit
        return (found[0] if found is not None else 0) + size > self.limit

    def add(self, path: str, size: int) -> None:
        """Note one more message; without a file there is nothing to note, the next count sees the message."""
        try:
            descriptor = os.open(f"{path}/maildirsize", os.O_WRONLY | os.O_APPEND | _OPEN)
        except OSError:
            return
        try:
            os.write(descriptor, b"%d 1\n" % size)
        except OSError:
            # A full disk: what is missing is found at the next count.
            return
        finally:
            os.close(descriptor)

    def recount(self, path: str) -> int:
        """Count all files, write `maildirsize` anew if that is possible, return the octets."""
        octets = messages = 0
        for size in _sizes(path):
            octets += size
            messages += 1
        temporary = os.path.join(path, "tmp", f"{os.getpid()}.{time.monotonic_ns()}.maildirsize")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OPEN, 0o600)
        except OSError:  # a mailbox that is not made yet
            return octets
        try:
            try:
                os.write(descriptor, b"%dS\n%d %d\n" % (self.limit, octets, messages))
            finally:
                os.close(descriptor)
            os.rename(temporary, f"{path}/maildirsize")
        except OSError:  # a full disk: without a file the next one counts, too
            with suppress(OSError):
                os.unlink(temporary)
        return octets

    def _read(self, path: str) -> tuple[int, int, float] | None:
        """Octets, number of lines and time of the last change; None when the mailbox must be counted."""
        try:
            descriptor = os.open(f"{path}/maildirsize", os.O_RDONLY | _OPEN)
        except OSError:
            return None
        try:
            text = os.read(descriptor, _MAX_FILE + 1)
            changed = os.fstat(descriptor).st_mtime
        except OSError:  # a directory, or a pipe
            return None
        finally:
            os.close(descriptor)
        header, *lines = text.splitlines() or [b""]
        matches = [_LINE.fullmatch(line) for line in lines]
        if len(text) > _MAX_FILE or header.split(b",")[0] != b"%dS" % self.limit:
            return None
        found = [int(match[1]) for match in matches if match is not None]
        return (sum(found), len(found), changed) if len(found) == len(matches) and found else None

    def _is_doubtful(self, lines: int, changed: float) -> bool:
        return lines > 1 or abs(self._clock() - changed) > _TRUST  # in the future, too: the clock may be set back


def _sizes(path: str) -> Iterator[int]:
    folders = [path]
    for entry in _entries(path):
        # Maildir++: what is in the Trash, or marked to be deleted, does not count.
        if entry.name.startswith(".") and entry.name != ".Trash" and entry.is_dir(follow_symlinks=False):
            folders.append(entry.path)
    for folder in folders:
        for part in ("new", "cur"):
            for entry in _entries(f"{folder}/{part}"):
                if _DELETED.search(entry.name) is None:
                    yield _size(entry)


def _entries(path: str) -> Iterator[os.DirEntry[str]]:
    try:
        found = os.scandir(path)
    except FileNotFoundError:
        return
    with found:
        yield from found


def _size(entry: os.DirEntry[str]) -> int:
    named = _SIZE.search(entry.name)
    if named is not None:
        return int(named[1])
    try:
        return entry.stat(follow_symlinks=False).st_size
    except FileNotFoundError:  # read and deleted meanwhile
        return 0
