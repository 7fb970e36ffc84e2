"""The directories of mailboxes and their folders, opened so that nobody can lead us astray, and made durably.

A mailbox's directory is trusted as configured, symbolic links included. What is in it may belong to
its owner, who could put a link to anywhere in the place of new/; below it no link is followed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

MAX_OPEN = 128  # folders with open directories, two descriptors each

_BELOW = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
# O_NONBLOCK: the owner may have put a named pipe there, and we would wait for its reader.
_MARK = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Access(NamedTuple):
    """Permission bits of what is made."""

    file: int
    directory: int
    beats_umask: bool
    """Whether they have to be set once more because a umask would take some away."""


OWNER = Access(0o600, 0o700, beats_umask=False)
GROUP = Access(0o660, 0o770, beats_umask=True)


class Box(NamedTuple):
    """Where one copy goes: the mailbox's directory, a folder in it (".Junk", "" for the inbox)."""

    path: str
    folder: str
    root: str
    """The directory below which the mailbox is made when it is missing; "": it is not made."""


class Folder(NamedTuple):
    """Open directories of one folder."""

    tmp: int
    new: int


class Folders:
    """The directories of one batch, opened when needed; those used longest ago are closed when there are too many."""

    __slots__ = ("_access", "_open")

    def __init__(self, access: Access) -> None:
        self._access = access
        self._open: dict[Box, Folder] = {}

    def open(self, box: Box) -> Folder:
        """The folder's directories, made if missing and allowed; they stay open until MAX_OPEN others are asked for."""
        folder = self._open.pop(box, None)
        if folder is None:
            while len(self._open) >= MAX_OPEN:
                self._close(self._open.pop(next(iter(self._open))))
            folder = self._find(box)
        self._open[box] = folder  # the last one to be closed
        return folder

    def close(self) -> None:
        """Close them all."""
        for folder in self._open.values():
            self._close(folder)
        self._open.clear()

    def _find(self, box: Box) -> Folder:
        try:
            return self._enter(box)
        except FileNotFoundError:
            self._make(box)
            return self._enter(box)

    def _enter(self, box: Box) -> Folder:
        if not box.folder:
            return _both(os.path.join(box.path, "tmp"), os.path.join(box.path, "new"), None)
        mailbox = os.open(box.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            folder = os.open(box.folder, _BELOW, dir_fd=mailbox)
        finally:
            os.close(mailbox)
        try:
            return _both("tmp", "new", folder)
        finally:
            os.close(folder)

    def _make(self, box: Box) -> None:
        if box.root:
            make_directory(box.path, self._access, box.root)
        descriptor = os.open(box.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if box.folder:
                self._make_below(descriptor, [box.folder])
                inner = os.open(box.folder, _BELOW, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = inner
                # Maildir++: this file tells a folder from a mailbox.
                os.close(os.open("maildirfolder", _MARK, self._access.file, dir_fd=descriptor))
            self._make_below(descriptor, ["tmp", "new", "cur"])
        finally:
            os.close(descriptor)

    def _make_below(self, descriptor: int, names: Iterable[str]) -> None:
        for name in names:
            try:
                os.mkdir(name, self._access.directory, dir_fd=descriptor)
            except FileExistsError:
                continue
            if self._access.beats_umask:
                os.chmod(name, self._access.directory, dir_fd=descriptor)
        os.fsync(descriptor)

    def _close(self, folder: Folder) -> None:
        os.close(folder.tmp)
        os.close(folder.new)


def _both(tmp: str, new: str, directory: int | None) -> Folder:
    descriptor = os.open(tmp, _BELOW, dir_fd=directory)
    try:
        return Folder(descriptor, os.open(new, _BELOW, dir_fd=directory))
    except OSError:
        os.close(descriptor)
        raise


def make_directory(path: str, access: Access, root: str = "") -> None:
    """Make a directory and what is missing above it up to the root, durably; nothing happens when it exists.

    FileNotFoundError when that root is missing: where it was moved away, or its disk is not mounted, nobody would find
    again what is stored meanwhile.
    """
    try:
        os.mkdir(path, access.directory)
    except FileExistsError:
        return
    except FileNotFoundError:
        above = os.path.dirname(path)
        if root and above in (root, os.path.realpath(root)):
            raise
        make_directory(above, access, root)
        with suppress(FileExistsError):  # several processes may store below it, and another one was faster
            os.mkdir(path, access.directory)
    if access.beats_umask:
        os.chmod(path, access.directory)
    descriptor = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
