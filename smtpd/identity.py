"""Whom root becomes once the ports are bound, and what can be done with that user's rights before."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple


class Identity(NamedTuple):
    """Numbers of a user, its group and its further groups."""

    user: int
    group: int
    groups: list[int]


def find_identity(user_name: str | None, group_name: str | None) -> Identity | None:
    """Whom root shall become; None when there is nothing to change, OSError when it is impossible."""
    if user_name is None and group_name is None:
        return None
    try:
        user = pwd.getpwnam(user_name) if user_name is not None else None
        group = grp.getgrnam(group_name).gr_gid if group_name is not None else None
    except KeyError as error:
        raise OSError(f"user and group to become: {error.args[0].rpartition('(): ')[2]}") from None
    if os.geteuid() != 0:
        if user is not None and user.pw_uid != os.geteuid():
            raise PermissionError(f"only root can become {user_name}")
        return None
    gid = group if group is not None else user.pw_gid if user is not None else os.getegid()
    groups = [] if user is None else os.getgrouplist(user.pw_name, gid)
    return Identity(os.geteuid() if user is None else user.pw_uid, gid, groups)


def become(identity: Identity | None) -> None:
    """Become it for good; as an ordinary user this changes nothing and may be left out. Raises PermissionError."""
    if identity is None:
        return
    with _told_whose_rights():
        os.setgroups(identity.groups)
        os.setgid(identity.group)
        os.setuid(identity.user)


@contextmanager
def acting_as(identity: Identity | None) -> Iterator[None]:
    """Have root do something with another user's rights; PermissionError when it may not, as in some containers.

    Whatever happens, it has its own again afterwards.
    """
    if identity is None:
        yield
        return
    user, group, groups = os.geteuid(), os.getegid(), os.getgroups()
    with ExitStack() as changed:
        with _told_whose_rights():
            os.setgroups(identity.groups)
            changed.callback(os.setgroups, groups)
            os.setegid(identity.group)
            changed.callback(os.setegid, group)
            os.seteuid(identity.user)
            changed.callback(os.seteuid, user)
        yield


@contextmanager
def _told_whose_rights() -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise PermissionError(
            f"root may not become another user here (CAP_SETUID, CAP_SETGID): {error.strerror}"
        ) from error


def name_of_user() -> str:
    """Whose rights we have: what root may read, the user that it became perhaps may not."""
    user = os.geteuid()
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)
