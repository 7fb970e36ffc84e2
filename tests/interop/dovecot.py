"""A private Dovecot: LMTP on TCP and on a unix socket, mailboxes that are read back by IMAP.

It runs in a directory of its own, on free ports that stay the same when it is started again. Mailboxes belong to
"nobody", as Dovecot delivers nothing to root.
"""

import imaplib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import pytest

from tests.conftest import PATIENCE

DOMAIN = "example.test"
PASSWORD = "secret"
USERS = 500  # of each kind

type Kind = Literal["user", "small", "patient"]
KINDS: dict[Kind, str] = {
    "user": "",
    "small": "userdb_quota_rule=*:storage=3K",
    "patient": "userdb_quota_rule=*:storage=3K userdb_quota_full_tempfail=yes",
}
"""Fields in the file of users: a patient mailbox is full only for now, a small one for good."""

SETTINGS = """\
base_dir = {home}/run
state_dir = {home}/state
log_path = {home}/log
info_log_path = {home}/log
protocols = imap lmtp
listen = 127.0.0.1
ssl = no
disable_plaintext_auth = no
auth_failure_delay = 0
first_valid_uid = 0
dotlock_use_excl = no
mail_location = maildir:{home}/mail/%n
mail_plugins = quota
lmtp_rcpt_check_quota = yes
lmtp_save_to_detail_mailbox = yes
lda_mailbox_autocreate = yes
recipient_delimiter = +
passdb {{
  driver = passwd-file
  args = scheme=PLAIN username_format=%Lu {home}/users
}}
userdb {{
  driver = passwd-file
  args = username_format=%Lu {home}/users
  default_fields = uid=nobody gid=nogroup
}}
namespace inbox {{
  inbox = yes
}}
plugin {{
  quota = maildir:User quota
  quota_rule = *:storage=10G
  quota_exceeded_message = Mailbox full
}}
service imap-login {{
  inet_listener imap {{
    address = 127.0.0.1
    port = {imap_port}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
service lmtp {{
  inet_listener lmtp {{
    address = 127.0.0.1
    port = {lmtp_port}
  }}
  unix_listener lmtp {{
    mode = 0666
  }}
}}
protocol imap {{
  mail_plugins = quota
}}
"""


def free_port() -> int:
    """A port of 127.0.0.1 that is free, and that no client's end of a connection gets while its server is away."""
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    candidates = [port for port in range(10_000, 65_000) if not first <= port <= last]
    for port in random.sample(candidates, 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")


@dataclass(frozen=True)
class Stored:
    """A message in a mailbox: what Dovecot put on top, our own Received field, and the rest as the client sent it."""

    hop: str
    received: str
    content: bytes


def read(mail: bytes) -> Stored:
    """Take the fields off the top of a message that came through our server and Dovecot."""
    fields = re.match(rb"((?:[!-9;-~]+:[^\n]*\n(?:[ \t][^\n]*\n)*?)*?Received:[^\n]*\n(?:[ \t][^\n]*\n)*)", mail)
    assert fields is not None, mail[:500]
    ours = re.match(rb"Received:[^\n]*\n(?:[ \t][^\n]*\n)*", mail[fields.end() :])
    assert ours is not None, mail[:1000]
    hop, received = (re.sub(r"\r\n[ \t]+", " ", each.decode()) for each in (fields[0], ours[0]))
    return Stored(hop, received, mail[fields.end() + ours.end() :])


class Dovecot:
    """One instance; mail for a user is in `mail/<user>` below its directory."""

    def __init__(self, program: str, home: Path) -> None:
        self._program = program
        self._home = home
        self._ports = free_port(), free_port()
        self._master: subprocess.Popen[bytes] | None = None
        self._numbers = {kind: iter(range(USERS)) for kind in KINDS}
        for name in ("run", "state", "mail"):
            (home / name).mkdir(parents=True)
        shutil.chown(home / "mail", "nobody", "nogroup")
        # It looks whether this file has changed once a second only, so all users are there from the beginning.
        users = (
            f"{kind}{number}@{DOMAIN}:{PASSWORD}::::::{fields}\n"
            for kind, fields in KINDS.items()
            for number in range(USERS)
        )
        (home / "users").write_text("".join(users), encoding="ascii")
        imap_port, lmtp_port = self._ports
        settings = SETTINGS.format(home=home, imap_port=imap_port, lmtp_port=lmtp_port)
        (home / "dovecot.conf").write_text(settings, encoding="ascii")

    @property
    def addresses(self) -> dict[str, str]:
        """Where it speaks LMTP, as the agent wants to have it: by "tcp" and by "unix"."""
        return {"tcp": f"127.0.0.1:{self._ports[1]}", "unix": f"unix:{self._home}/run/lmtp"}

    def user(self, kind: Kind = "user") -> str:
        """A user whose mailbox has not been used."""
        return f"{kind}{next(self._numbers[kind])}"

    def plant(self, user: str, mail: bytes) -> None:
        """Put a message into a mailbox that has not been used, whatever the quota."""
        folders = [self.mailbox(user), *(self.mailbox(user) / name for name in ("cur", "new", "tmp"))]
        for folder in folders:
            folder.mkdir(mode=0o700)
        file = self.mailbox(user) / "new" / "1.planted.test"
        file.write_bytes(mail)
        for path in (*folders, file):
            shutil.chown(path, "nobody", "nogroup")

    def empty(self, user: str) -> None:
        """Throw a mailbox away."""
        shutil.rmtree(self.mailbox(user))

    def mailbox(self, user: str) -> Path:
        """The directory with the mail of a user."""
        return self._home / "mail" / user

    def start(self) -> None:
        """Start it and wait until it takes mail."""
        log = (self._home / "output").open("ab")
        with log:
            self._master = subprocess.Popen(
                [self._program, "-F", "-c", str(self._home / "dovecot.conf")],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        for port in self._ports:
            self._wait_for(port)

    def stop(self) -> None:
        """End it in an orderly way, or by force if need be."""
        master, self._master = self._master, None
        if master is None:
            return
        children = _children(master.pid)
        master.terminate()
        try:
            master.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            master.kill()
            master.wait()
        _kill(*children)

    def kill(self) -> None:
        """kill -9 of everything that belongs to it, if it runs."""
        master, self._master = self._master, None
        if master is None:
            return
        os.kill(master.pid, signal.SIGSTOP)
        _wait_until(lambda: _status(master.pid).state == "T")  # so that there will be no more children
        _kill(*_children(master.pid))
        master.kill()
        master.wait()

    def kill_deliveries(self) -> None:
        """kill -9 of a few processes that speak LMTP."""
        speaking = self._speaking()
        _kill(*random.sample(speaking, min(len(speaking), 3)))

    def end_deliveries(self) -> None:
        """End processes that speak LMTP in an orderly way, as at a restart; there will be new ones."""
        for pid in self._speaking():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def _speaking(self) -> list[int]:
        """The older half of the processes that speak LMTP: ended too young, they would seem unable to start."""
        assert self._master is not None
        speaking = sorted(pid for pid, name in _children(self._master.pid).items() if name == "lmtp")
        return speaking[: len(speaking) // 2]

    def mails(self, user: str, folder: str = "INBOX") -> list[bytes]:
        """The messages in a folder by IMAP, in the order of arrival."""
        with imaplib.IMAP4("127.0.0.1", self._ports[0], timeout=PATIENCE) as client:
            client.login(f"{user}@{DOMAIN}", PASSWORD)
            answer, count = client.select(folder, readonly=True)
            if answer != "OK" or count == [b"0"]:
                return []
            _, data = client.fetch("1:*", "(BODY.PEEK[])")
            return [item[1] for item in data if isinstance(item, tuple)]

    def the_only_mail(self, user: str, folder: str = "INBOX") -> Stored:
        """The one message in a folder."""
        mails = self.mails(user, folder)
        assert len(mails) == 1, f"{len(mails)} messages for {user} in {folder}\n{self.log()}"
        return read(mails[0])

    def log(self) -> str:
        """What it has said so far."""
        files = (self._home / "output", self._home / "log")
        return "".join(file.read_text("utf-8", "backslashreplace") for file in files if file.exists())

    def _wait_for(self, port: int) -> None:
        assert self._master is not None
        end = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=PATIENCE).close()
            except ConnectionRefusedError:
                assert self._master.poll() is None, f"Dovecot has ended\n{self.log()}"
                assert time.monotonic() < end, f"Dovecot is not ready\n{self.log()}"
            else:
                return


@contextmanager
def private_dovecot(peer: Callable[[str], str]) -> Iterator[Dovecot]:
    """An instance that is not running yet; what is left of it goes at the end. Skips where there can be none."""
    program = peer("dovecot")
    if os.geteuid() != 0:
        pytest.skip("only root can start Dovecot")
    home = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    home.chmod(0o755)
    dovecot = Dovecot(program, home)
    try:
        yield dovecot
    finally:
        dovecot.kill()
        shutil.rmtree(home)


class Status(NamedTuple):
    """What is known of a process: nothing when there is none."""

    name: str = ""
    state: str = ""
    parent: int = 0


def _status(pid: int) -> Status:
    """See proc(5), /proc/pid/stat."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "backslashreplace")
    except (FileNotFoundError, ProcessLookupError):
        return Status()
    name, _, rest = text.partition("(")[2].rpartition(")")
    state, parent = rest.split()[:2]
    return Status(name, state, int(parent))


def _children(master: int) -> dict[int, str]:
    """The processes that were started by one, with their names."""
    statuses = {int(path.name): _status(int(path.name)) for path in Path("/proc").glob("[0-9]*")}
    return {pid: status.name for pid, status in statuses.items() if status.parent == master}


def _kill(*pids: int) -> None:
    """kill -9, and wait until nothing of them is in use any more."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    _wait_until(lambda: all(_status(pid).state in ("", "X", "Z") for pid in pids))


def _wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
