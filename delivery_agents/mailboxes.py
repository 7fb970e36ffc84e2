"""Which mailboxes there are, and where: from an address to a directory that is certainly below the root.

A local part may hold nearly anything: slashes, dots, spaces, a whole other address. What could mean
something to a file system is percent-encoded, so two addresses never share a directory by accident and
none leads out of the root; what would be too long for a file name ends in a digest.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

from smtpd.addresses import Address, AddressError, parse_address
from smtpd.watched_file import WatchedFile

MAX_NAME = 200  # octets of one directory name; file systems allow 255
_LOOKED_AT = 10_000  # directories, for whether any can be written

_PLAIN = re.compile(r"[a-z0-9_+=\-][a-z0-9._+=\-]*+")
_PLACEHOLDER = re.compile(r"\{(\w*)\}")


class Layout:
    """The template of a mailbox's directory, such as "/var/mail/{domain}/{user}"."""

    def __init__(self, template: str, *, case_sensitive: bool) -> None:
        """Complete a template without placeholders by "/{domain}/{user}"; a relative one starts where we run."""
        check_template(template)
        if _PLACEHOLDER.search(template) is None:
            template = f"{template}/{{domain}}/{{user}}"
        self._template = os.path.abspath(template)
        self._case_sensitive = case_sensitive
        self.root = os.path.dirname(self._template.partition("{")[0])
        """The directory above the first placeholder."""

    @property
    def is_there(self) -> bool:
        """Whether the root exists: one that is not mounted yet says nothing about mailboxes."""
        return os.path.isdir(self.root)

    def user(self, address: Address) -> str:
        """The local part as it is looked up."""
        return unicodedata.normalize("NFC", address.local) if self._case_sensitive else address.local_key

    def path(self, user: str, domain: str) -> str:
        """The directory of one mailbox; `user` comes from `user()`, `domain` is an `Address.domain`."""
        return self._template.replace("{domain}", directory_name(domain)).replace("{user}", directory_name(user))

    def has(self, path: str) -> bool:
        """Whether there is a mailbox; OSError when nobody can say: closed to us, a bad disk, not mounted."""
        try:
            return stat.S_ISDIR(os.stat(path).st_mode)
        except NotADirectoryError:
            return False
        except FileNotFoundError:
            # What the link leads to, or what is in an empty directory, may be mounted later, as the root itself may be.
            while len(path) > len(self.root):
                if os.path.islink(path) and not os.path.exists(path):
                    raise
                path = os.path.dirname(path)
                if problem := _emptiness(path):
                    raise FileNotFoundError(problem) from None
            return False

    def emptiness(self) -> str:
        """Why nobody can say who has a mailbox, although the root is there, or ""."""
        return _emptiness(self.root)

    def fullness(self) -> str:
        """Why the filesystem of the root takes nothing more, or ""; a mailbox may well be on another one."""
        found = os.statvfs(self.root)
        if found.f_flag & os.ST_RDONLY:
            return f"{self.root} is mounted read-only"
        # Some filesystems count neither.
        is_full = (found.f_blocks and not found.f_bavail) or (found.f_files and not found.f_favail)
        return f"{self.root} is on a full disk" if is_full else ""

    def obstacle(self, *, makes: bool) -> str:
        """Why nothing at all can be stored with the rights we have, or ""; `makes`: missing mailboxes are made."""
        if not os.path.exists(self.root):
            above = self.root
            while not os.path.exists(above):
                above = os.path.dirname(above)
            if not os.access(above, os.X_OK, effective_ids=True):
                return f"{above} cannot be entered"
            return f"{self.root} cannot be made in {above}" if makes and not _is_open(above) else ""
        if not os.access(self.root, os.R_OK | os.X_OK, effective_ids=True):
            return f"{self.root} cannot be entered and read"
        every = glob.escape(self._template.removeprefix(self.root))
        levels = _PLACEHOLDER.sub("*", every).strip("/").split("/")
        mailboxes = self._below(levels)
        parents = [self._below(levels[:depth]) for depth in range(len(levels))] if makes else []
        if any(len(places) == _LOOKED_AT for places in (mailboxes, *parents)):
            return ""  # there may be more, which nobody has looked at
        if any(map(_takes_mail, mailboxes)) or any(map(_is_open, itertools.chain(*parents))):
            return ""
        if makes:
            return f"nothing can be written below {self.root}"
        return f"mailboxes such as {mailboxes[0]} are closed" if mailboxes else ""

    def _below(self, levels: list[str]) -> list[str]:
        pattern = os.path.join(glob.escape(self.root), *levels)
        return list(itertools.islice(filter(os.path.isdir, glob.iglob(pattern)), _LOOKED_AT))


def _emptiness(directory: str) -> str:
    try:
        with os.scandir(directory) as found:
            return "" if next(found, None) else f"there is nothing in {directory}; is it mounted?"
    except (FileNotFoundError, NotADirectoryError):
        return ""


def _takes_mail(mailbox: str) -> bool:
    below = os.path.join(mailbox, "tmp")
    return _is_open(below if os.path.isdir(below) else mailbox)


def _is_open(directory: str) -> bool:
    return os.access(directory, os.W_OK | os.X_OK, effective_ids=True)


def check_template(template: str) -> str:
    """Return a template that makes sense; ValueError for any other."""
    unknown = set(_PLACEHOLDER.findall(template)) - {"domain", "user"}
    if unknown or not template or re.search(r"[{}\0]", _PLACEHOLDER.sub("", template)):
        raise ValueError("must be a directory, with no other placeholders than {domain} and {user}")
    return template


def directory_name(text: str) -> str:
    """One name for a file system: injective, never empty, no slash, no dot in front, at most MAX_NAME octets."""
    if len(text) <= MAX_NAME and _PLAIN.fullmatch(text) is not None:
        return text
    name = quote(text.encode("utf-8", "surrogatepass"), safe="+=@")
    if name.startswith("."):
        name = f"%2E{name[1:]}"
    if not name:
        return "%_"
    if len(name) > MAX_NAME:
        # Neither "%_" nor "%~" is ever the beginning of an encoded octet.
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        return f"{name[: MAX_NAME - len(digest) - 2]}%~{digest}"
    return name


class KnownRecipients:
    """A fixed set of addresses, by the keys that `Layout.user` and `Address.domain` make."""

    def __init__(self, layout: Layout, addresses: Iterable[str] = ()) -> None:
        self._layout = layout
        self._keys = frozenset(map(self._key, addresses))

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self._keys

    @property
    def is_complete(self) -> bool:
        """Whether there is certainly nobody else."""
        return True

    async def refresh(self) -> None:
        """Nothing can have changed."""

    def _key(self, text: str) -> tuple[str, str]:
        address = parse_address(text)
        return self._layout.user(address), address.domain


class RecipientFile(KnownRecipients):
    """Addresses from a file, one per line; "#" starts a comment. See `WatchedFile` for when it is read again."""

    def __init__(
        self, layout: Layout, path: str, *, clock: Callable[[], float], complain: Callable[[Exception], None]
    ) -> None:
        super().__init__(layout)
        self._path = Path(path)
        self._file = WatchedFile(self._path, self._parse, self._keys, clock=clock, complain=complain)

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self._file.content

    @property
    def is_complete(self) -> bool:
        """Not while somebody writes, or has not begun to."""
        return self._file.is_settled and bool(self._file.content)

    def load(self) -> None:
        """Read the file now; OSError when it cannot be read, ValueError when it makes no sense."""
        self._file.load()

    async def refresh(self) -> None:
        """Look for a change, now and then."""
        await self._file.refresh()

    def _parse(self, content: bytes) -> frozenset[tuple[str, str]]:
        return frozenset(self._entries(content.decode("utf-8")))

    def _entries(self, text: str) -> Iterator[tuple[str, str]]:
        for number, line in enumerate(text.splitlines(), 1):
            address = line.strip()
            if address and not address.startswith("#"):
                try:
                    yield self._key(address)
                except AddressError as error:
                    raise ValueError(f"{self._path}:{number}: {error.problem}") from None
