"""Small files that are replaced as a whole or not at all, and read up to a limit."""

import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells one state of a file from the next: symbolic links are followed, so a swapped one shows."""

    modified_ns: int
    inode: int
    size: int
    mode: int
    """Permission bits; giving or taking them is a change, too."""


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
