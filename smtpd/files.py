"""Small files that are replaced as a whole or not at all, and read up to a limit."""

import os
import secrets
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

QUIET = 2.0  # seconds without a change after which a file counts as written to its end


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells one state of a file from the next: symbolic links are followed, so a swapped one shows."""

    modified_ns: int
    inode: int
    size: int
    mode: int
    """Permission bits; giving or taking them is a change, too."""


class Rest:
    """Tells whether a file that has changed is complete: many write into it where they should replace it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` gives seconds; it counts where the time of the change tells nothing, as that of another machine."""
        self._clock = clock
        self._seen: Stamp | None = None
        self._since = 0.0

    def has_come(self, found: Stamp) -> bool:
        """Whether nobody has written for QUIET seconds into the file that has this stamp now."""
        now = self._clock()
        if found != self._seen:
            self._seen, self._since = found, now
        return now - self._since >= QUIET or time.time() - found.modified_ns / 1e9 >= QUIET


def stamp(path: Path) -> Stamp | None:
    """The stamp of a file, None when there is none or its directory is closed to us."""
    try:
        return _stamp(os.stat(path))
    except OSError:
        return None


def read(path: Path, *, max_bytes: int) -> tuple[bytes, Stamp]:
    """A file's content and the stamp it had; raises OSError, ValueError when it is bigger than `max_bytes`."""
    # O_NONBLOCK: a named pipe that nobody writes to would be waited for.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK | os.O_CLOEXEC)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is not a regular file")
        found = _stamp(status)
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"{path} is bigger than {max_bytes} bytes")
    return content, found


def replace(path: Path, content: bytes, *, mode: int, owner: tuple[int, int] | None = None) -> None:
    """Put `content` in the place of the file that `path` leads to, durably; readers see the old or the new.

    `owner` is (user, group) by number. Raises OSError, and then the old file is still there.
    """
    target = path.resolve()
    draft = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            made = os.fstat(file.fileno())
            if owner is not None and owner != (made.st_uid, made.st_gid):
                os.fchown(file.fileno(), *owner)
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    _sync_directory(target.parent)


def _stamp(status: os.stat_result) -> Stamp:
    return Stamp(status.st_mtime_ns, status.st_ino, status.st_size, status.st_mode & 0o7777)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
