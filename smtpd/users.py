"""Logins in a file: the credential provider `file`, and everything that edits such a file.

One line per user, `login:hash`; the hash is an argon2 one in its usual text form. Empty lines and
lines that begin with "#" are left alone. `smtpd user` edits the file, and so may any editor: it is
read again as soon as it changes. A line that makes no sense is reported and locks out nobody else.
"""

from __future__ import annotations

import asyncio
import base64
import fcntl
import os
import re
import secrets
import time
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import argon2
from pydantic import Field

from smtpd import files
from smtpd.auth import (
    MAX_CREDENTIAL,
    CredentialProvider,
    ProviderOptions,
    prepare_name,
    prepare_password,
)
from smtpd.options import Bytes, InputFile, Seconds
from smtpd.recent_logins import RecentLogins
from smtpd.workers import Busy, Workers

if TYPE_CHECKING:
    from smtpd.services import Services

MAX_FILE = 64 << 20  # bytes; half a million users
MAX_LOGIN = 255  # octets, RFC 4616 §2
MAX_MEMORY = 4 << 30  # bytes of one hash
DEVELOPER_LOGIN = "user@example.test"

_HASH = re.compile(
    r"\$argon2(?:id|i|d)\$v=(?:16|19)\$m=(\d{1,10}),t=[1-9]\d{0,3},p=([1-9]\d{0,2})"
    r"\$([A-Za-z0-9+/]{11,})\$([A-Za-z0-9+/]{16,})"
)


class UserFileError(Exception):
    """The file, a login or a password is not usable; the text says why, without any secret."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one argon2id hash takes. The default is the second recommendation of RFC 9106 §4, on one lane:
    each of our threads then burns one core and no more.
    """

    passes: int = 3
    memory: int = 64 << 20
    """Bytes."""

    def hash(self, password: str) -> str:
        """The hash of a prepared password, in its text form."""
        hasher = argon2.PasswordHasher(time_cost=self.passes, memory_cost=self.memory >> 10, parallelism=1)
        return hasher.hash(password)


DEFAULT_COST = Cost()


class Options(ProviderOptions):
    """Options of the provider `file`."""

    path: InputFile = "/etc/smtpd/users"
    """The file, `login:hash` per line; made and edited with `smtpd user`."""
    time_cost: Annotated[int, Field(ge=1, le=100)] = DEFAULT_COST.passes
    """Passes of argon2 for new hashes; the hashes in the file carry their own."""
    memory_cost: Annotated[Bytes, Field(ge=8 << 10, le=MAX_MEMORY)] = DEFAULT_COST.memory
    """Memory of argon2 for new hashes, bytes."""
    threads: Annotated[int, Field(ge=1, le=64)] = 2
    """Passwords checked at the same time; each takes a core and the memory of its hash."""
    waiting: Annotated[int, Field(ge=0)] = 128  # at 0.2 s for a password the last one waits for 14 s
    """Logins that may wait for a thread; one more is answered 454, and one of an address that has 3/4 of them."""
    remember: Seconds = 60.0
    """How long a password that was right is not hashed again, and waits behind nobody's hash, seconds; 0: never."""

    @property
    def cost(self) -> Cost:
        """What a new hash takes."""
        return Cost(self.time_cost, self.memory_cost)


@dataclass(frozen=True, slots=True)
class Users:
    """What one state of the file says: hashes by canonical login, and complaints by line."""

    hashes: Mapping[str, str] = field(repr=False)
    problems: tuple[str, ...]
    decoy: str = field(repr=False)
    """A hash nobody knows the password of, as costly as most of the file's."""


class UserFile(CredentialProvider):
    """The provider `file`: reads, hashes and compares in a few threads of its own."""

    Options = Options

    def __init__(self, name: str, options: ProviderOptions, services: Services) -> None:
        super().__init__(name, options, services)
        assert isinstance(options, Options)
        self._path = Path(options.path)
        self._cost = options.cost
        self._workers = Workers(f"auth-{name}", threads=options.threads, waiting=options.waiting)
        self._reader = Workers(f"users-{name}", threads=1, waiting=options.waiting)
        self._recent = RecentLogins(options.remember)
        self._loaded: tuple[files.Stamp, Users] | None = None
        self._before: Users | None = None  # somebody began to write into the file that held these
        self._rest = files.Rest(time.monotonic)
        self._reported: files.Stamp | None = None

    async def start(self) -> None:
        """Read the file for the first time; UserFileError when there is none."""
        try:
            await self._workers.run(self._current)
        except (OSError, ValueError) as error:
            raise UserFileError(_explain(self._path, error)) from error
        self._report()

    async def stop(self) -> None:
        """Let the threads go."""
        self._workers.close()
        self._reader.close()

    async def health(self) -> str | None:
        """A sentence when the file cannot be read now."""
        try:
            await asyncio.to_thread(self._current)
        except (OSError, ValueError) as error:
            return _explain(self._path, error)
        return None

    async def check_password(self, user: str, password: str) -> str | None:
        """See `CredentialProvider`; an unknown user costs one hash as well."""
        if await self._is_remembered(user, password):
            login: str | None = user
        else:
            login = await self._workers.run(partial(self._check, user, password))
        self._report()
        return login

    async def _is_remembered(self, user: str, password: str) -> bool:
        """Who was right a moment ago waits for nobody's hash; and a wrong password does not get as far as the file."""
        if self._loaded is None or not self._was_right(self._loaded[1], user, password):
            return False
        return await self._reader.run(lambda: self._was_right(self._current(), user, password))

    def _check(self, user: str, password: str) -> str | None:
        users = self._current()
        login = self._find(users, user, password)
        if login is None and self._before is not None and user in self._before.hashes:
            raise Busy(f"{self._path} is being written")  # the rest of the line may be about to come
        return login

    def _find(self, users: Users, user: str, password: str) -> str | None:
        known = users.hashes.get(user)
        if known is None:
            _matches(users.decoy, password)
            return None
        if not self._was_right(users, user, password):
            if not _matches(known, password):
                return None
            self._recent.add(self._recent.token(user, known, password))
        return user

    def _was_right(self, users: Users, user: str, password: str) -> bool:
        known = users.hashes.get(user)
        return known is not None and self._recent.token(user, known, password) in self._recent

    def _current(self) -> Users:
        found = files.stamp(self._path)
        if self._before is not None and found is not None and self._rest.has_come(found):
            self._before = None
        if self._loaded is not None and self._loaded[0] == found:
            return self._loaded[1]
        content, stamp = files.read(self._path, max_bytes=MAX_FILE)
        users = parse(content, self._cost)
        if self._loaded is None or self._loaded[0].inode != stamp.inode:
            self._before = None  # replaced as a whole, as `smtpd user` does it
        elif self._before is None and not self._rest.has_come(stamp):
            self._before = self._loaded[1]
        self._loaded = (stamp, users)
        return users

    def _report(self) -> None:
        """Say what a file read anew holds; on the event loop's thread, where logging belongs."""
        if self._loaded is None or self._loaded[0] == self._reported:
            return
        self._reported, users = self._loaded
        log, path = self.services.log, str(self._path)
        log.info("users-loaded", path=path, users=len(users.hashes))
        if users.problems:
            log.warning("users-file-problems", path=path, problems="; ".join(users.problems[:5]))
        if self._reported.mode & 0o007:
            log.warning("users-file-open-to-others", path=path, advice="take the rights of others away: chmod o=")


def parse(content: bytes, cost: Cost = DEFAULT_COST) -> Users:
    """Read the lines of a users file; `cost` is for the decoy of a file without users."""
    hashes: dict[str, str] = {}
    problems: list[str] = []
    for number, line in enumerate(_lines(content), 1):
        entry = line.strip()
        if not entry or entry.startswith(b"#"):
            continue
        try:
            login, known = _parse_line(entry)
            if login in hashes:
                raise UserFileError("this user has a line above already")
            hashes[login] = known
        except UserFileError as error:
            problems.append(f"line {number}: {error}")
    return Users(hashes, tuple(problems), _decoy(hashes, cost))


def _lines(content: bytes) -> list[bytes]:
    return content.removeprefix(BOM_UTF8).splitlines()  # some editors put one there, and nobody would see it


def _parse_line(entry: bytes) -> tuple[str, str]:
    try:
        name, colon, known = entry.decode().partition(":")
    except UnicodeDecodeError:
        raise UserFileError("not UTF-8") from None
    if not colon:
        raise UserFileError("not of the form login:hash")
    login = prepare_name(name)
    if login is None:
        raise UserFileError("not a user name")
    if not _is_hash(known):
        raise UserFileError("the hash is not an argon2 one, or not all of it")
    return login, known


def _is_hash(text: str) -> bool:
    """Whether argon2 makes sense of it; if not, each login of this user would be undecided: "try again", for ever."""
    match = _HASH.fullmatch(text)
    if match is None:
        return False
    memory, lanes, *parts = match.groups()
    return 8 * int(lanes) <= int(memory) <= MAX_MEMORY >> 10 and all(map(_is_base64, parts))  # RFC 9106 §3.1


def _is_base64(text: str) -> bool:
    padded = text + "=" * (-len(text) % 4)
    with suppress(ValueError):
        return base64.b64encode(base64.b64decode(padded)).decode() == padded
    return False


def _decoy(hashes: Mapping[str, str], cost: Cost) -> str:
    costs = Counter(known.rpartition("$")[0].rpartition("$")[0] for known in hashes.values())
    settings = costs.most_common(1)[0][0] if costs else f"$argon2id$v=19$m={cost.memory >> 10},t={cost.passes},p=1"
    salt, digest = (base64.b64encode(secrets.token_bytes(size)).decode().rstrip("=") for size in (16, 32))
    return f"{settings}${salt}${digest}"


def _matches(known: str, password: str) -> bool:
    try:
        return argon2.PasswordHasher().verify(known, password)
    except argon2.exceptions.VerifyMismatchError:
        return False  # anything else (no memory, for one) is no answer, and escapes


def add(path: Path, login: str, password: str, cost: Cost = DEFAULT_COST) -> str:
    """Add a user, make the file (0600) when there is none; returns the canonical login."""
    name = _good_login(login)
    line = f"{name}:{cost.hash(_good_password(password))}"
    with _editing(path) as lines:
        if any(_login_of(known) == name for known in lines):
            raise UserFileError(f"{name} is in {path} already; `smtpd user passwd` changes the password")
        lines.append(line.encode())
    return name


def set_password(path: Path, login: str, password: str, cost: Cost = DEFAULT_COST) -> str:
    """Change a user's password; returns the canonical login."""
    name = _good_login(login)
    line = f"{name}:{cost.hash(_good_password(password))}"
    with _editing(path) as lines:
        lines[_place(lines, name, path)] = line.encode()
    return name


def remove(path: Path, login: str) -> str:
    """Remove every line of a user; returns the canonical login."""
    name = _good_login(login)
    with _editing(path) as lines:
        _place(lines, name, path)
        lines[:] = [known for known in lines if _login_of(known) != name]
    return name


def load(path: Path) -> Users:
    """Read the file once; raises UserFileError when that is impossible."""
    try:
        return parse(files.read(path, max_bytes=MAX_FILE)[0])
    except (OSError, ValueError) as error:
        raise UserFileError(_explain(path, error)) from error


def check_password(path: Path, login: str, password: str) -> bool:
    """Whether this password would be accepted for this login."""
    name, secret = prepare_name(login), prepare_password(password)
    known = load(path).hashes.get(name or "")
    return known is not None and secret is not None and _matches(known, secret)


def make_developer_user(path: Path, cost: Cost = DEFAULT_COST) -> tuple[str, str] | None:
    """Make a file with one user and a random password: (login, password), or None when the file is there.

    The password is kept nowhere; the caller shows it once.
    """
    if path.exists():
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    password = secrets.token_urlsafe(12)
    return add(path, DEVELOPER_LOGIN, password, cost), password


def _good_login(login: str) -> str:
    name = prepare_name(login)
    if name is None or ":" in name or name.startswith("#") or len(name.encode()) > MAX_LOGIN:
        raise UserFileError("a login has no spaces, no control characters, no colon and at most 255 octets")
    return name


def _good_password(password: str) -> str:
    secret = prepare_password(password)
    if secret is None or len(secret.encode()) > MAX_CREDENTIAL:
        raise UserFileError(
            f"a password has at least one character, no control characters and at most {MAX_CREDENTIAL} octets"
        )
    return secret


def _login_of(line: bytes) -> str | None:
    name, colon, _ = line.strip().decode("utf-8", "replace").partition(":")
    return prepare_name(name) if colon and not name.startswith("#") else None


def _place(lines: list[bytes], name: str, path: Path) -> int:
    for number, line in enumerate(lines):
        if _login_of(line) == name:
            return number
    raise UserFileError(f"{name} is not in {path}")


@contextmanager
def _editing(path: Path) -> Iterator[list[bytes]]:
    """The file's lines, written back as one when the block ends without an exception; nobody edits meanwhile."""
    try:
        directory = os.open(path.resolve().parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)  # not the file itself: that one is replaced
            lines, mode, owner = _read_for_editing(path)
            yield lines
            files.replace(path, b"".join(line + b"\n" for line in lines), mode=mode, owner=owner)
        finally:
            os.close(directory)
    except (OSError, ValueError) as error:
        raise UserFileError(_explain(path, error)) from error


def _read_for_editing(path: Path) -> tuple[list[bytes], int, tuple[int, int] | None]:
    if not path.exists():
        return [], 0o600, None
    status = path.stat()
    content, _ = files.read(path, max_bytes=MAX_FILE)
    return _lines(content), status.st_mode & 0o660, (status.st_uid, status.st_gid)


def _explain(path: Path, error: OSError | ValueError) -> str:
    return f"{path}: {error.strerror}" if isinstance(error, OSError) and error.strerror else str(error)
