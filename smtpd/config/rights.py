"""Whether the server may use what a configuration names: what root can read, `[smtpd] user` perhaps cannot."""

import os
import pwd
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from smtpd.config.models import Config
from smtpd.identity import acting_as, find_identity

_FREE_PORTS = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")


class Rights:
    """Those the server will have, where they can be had: only root can act as somebody else.

    What is asked about is looked at, and neither made nor changed. The answer is "" when there is no problem, or when
    nobody can know here.
    """

    def __init__(self, config: Config) -> None:
        self._identity = None
        self.are_known = False
        self.problem = ""
        """Why root cannot become that user."""
        self.user = config.user or str(os.geteuid())
        try:
            self._identity = find_identity(config.user, config.group)
            with self.held():
                self.are_known = self._identity is not None or os.geteuid() == 0 or _is_me(config.user)
        except OSError as error:  # that there is no such user is said elsewhere
            if os.geteuid() == 0 and isinstance(error, PermissionError):
                self.problem = str(error)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Act with them, as far as they are known."""
        with acting_as(self._identity):
            yield

    def reading(self, file: Path) -> str:
        """Why a file cannot be read."""
        return self._ask(file, os.R_OK, "read")

    def writing(self, file: Path) -> str:
        """Why a file cannot be written, or made when it is not there."""
        with self.held():  # root may see less, where its rights are cut or the file is on another machine
            is_there, target = os.path.exists(file), Path(os.path.realpath(file))
        if is_there:
            return self._ask(file, os.W_OK, "write")
        # A link to nowhere has the file made where it leads.
        return self.making_in(target.parent if os.path.islink(file) else file.parent)

    def making_in(self, directory: Path) -> str:
        """Why nothing can be made in a directory."""
        return self._ask(directory, os.W_OK | os.X_OK, "make files in")

    def lacks_file(self, file: Path) -> bool:
        """Whether there is certainly no such file."""
        with self.held():
            return lacks(file, stat.S_ISREG)

    def lacks_directory(self, directory: Path) -> bool:
        """Whether there is certainly no such directory."""
        with self.held():
            return lacks(directory, stat.S_ISDIR)

    def listening(self, port: int) -> str:
        """Why a port cannot be had that is bound without root's rights."""
        free = _first_free_port()
        if self._identity is None or self._identity.user == 0 or not 0 < port < free:
            return ""
        return f"user {self.user} cannot listen on port {port}: those below {free} are root's"

    def _ask(self, path: Path, mode: int, verb: str) -> str:
        if not self.are_known:
            return ""
        with self.held():
            for directory in reversed(path.parents):  # of a relative path only those that are walked through
                if not _may(directory, os.X_OK):
                    return f"user {self.user} cannot enter {directory}, so not {verb} {path}"
            if _may(path, mode):
                return ""
            return f"user {self.user} cannot {verb} {path}{_why(path)}"


def lacks(path: Path, is_right: Callable[[int], bool]) -> bool:
    """Whether it is not there, or something else; not when it is behind a door that is closed to us."""
    try:
        return not is_right(os.stat(path).st_mode)
    except PermissionError:
        return False
    except (OSError, ValueError):
        return True


def _is_me(name: str | None) -> bool:
    try:
        return name is not None and pwd.getpwnam(name).pw_uid == os.geteuid()
    except KeyError:
        return False


def _may(path: Path, mode: int) -> bool:
    # Whether it is there is asked elsewhere.
    return os.access(path, mode, effective_ids=True) or not os.path.lexists(path)


def _why(path: Path) -> str:
    try:
        return ", which is mounted read-only" if os.statvfs(path).f_flag & os.ST_RDONLY else ""
    except OSError:
        return ""


def _first_free_port() -> int:
    try:
        return int(_FREE_PORTS.read_text())
    except (OSError, ValueError):
        return 1024
