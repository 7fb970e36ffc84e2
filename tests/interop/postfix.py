"""A private Postfix: settings, and a queue that sends everything to one port of this machine."""

import time
from pathlib import Path

from tests.conftest import PATIENCE
from tests.interop.letter import LETTER
from tests.interop.programs import Daemon, run

SETTINGS = """\
compatibility_level = 3.6
queue_directory = {directory}/spool
data_directory = {directory}/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
meta_directory = /etc/postfix
shlib_directory = /usr/lib/postfix
mail_owner = postfix
setgid_group = postdrop
maillog_file = /dev/stdout
myhostname = sender.test
mydestination =
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
alias_maps =
alias_database =
local_transport = error:no local
relayhost = [127.0.0.1]:{port}
smtp_host_lookup = native
smtp_tls_security_level = may
smtp_tls_loglevel = 1
smtp_tls_connection_reuse = no
minimal_backoff_time = 1s
maximal_backoff_time = 1s
queue_run_delay = 1s
"""
SERVICES = [  # name, type and privacy, wake-up time, process limit, command
    ("pickup", "unix n", "60", "1", "pickup"),
    ("cleanup", "unix n", "-", "0", "cleanup"),
    ("qmgr", "unix n", "1", "1", "qmgr"),
    ("tlsmgr", "unix -", "1000?", "1", "tlsmgr"),
    ("rewrite", "unix -", "-", "-", "trivial-rewrite"),
    ("bounce", "unix -", "-", "0", "bounce"),
    ("defer", "unix -", "-", "0", "bounce"),
    ("trace", "unix -", "-", "0", "bounce"),
    ("verify", "unix -", "-", "1", "verify"),
    ("flush", "unix n", "1000?", "0", "flush"),
    ("proxymap", "unix -", "-", "-", "proxymap"),
    ("smtp", "unix -", "-", "-", "smtp"),
    ("error", "unix -", "-", "-", "error"),
    ("retry", "unix -", "-", "-", "error"),
    ("discard", "unix -", "-", "-", "discard"),
    ("anvil", "unix -", "-", "1", "anvil"),
    ("scache", "unix -", "-", "1", "scache"),
    ("postlog", "unix-dgram n", "-", "1", "postlogd"),
]


class Postfix:
    """A sending mail server with a queue of its own; all mail goes to one port on this machine."""

    def __init__(self, directory: Path, daemon: Daemon, sendmail: str, queue: str) -> None:
        self.log = daemon
        self._config = directory / "conf"
        self._sendmail = sendmail
        self._queue = queue

    def send(self, *recipients: str, letter: bytes = LETTER, sender: str = "eve@sender.test") -> None:
        """Put a message into the queue."""
        words = (self._sendmail, "-C", self._config, "-i", "-f", sender, *recipients)
        run(*words, letter=letter.replace(b"\r\n", b"\n"))

    def try_again(self) -> None:
        """Ask it to try everything that waits, even what its own rules would still let wait."""
        run(self._queue, "-c", self._config, "-f")

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits in the queue."""
        return "Mail queue is empty" in run(self._queue, "-c", self._config, "-p").output

    def wait_until_empty(self) -> None:
        """Wait until nothing is queued any more."""
        begin = pushed = time.monotonic()
        while "Mail queue is empty" not in (waiting := run(self._queue, "-c", self._config, "-p").output):
            now = time.monotonic()
            assert now < begin + PATIENCE, waiting + "".join(self.log.lines)
            if now > pushed + PATIENCE / 10:  # it forgets a message that it has "skipped, still being delivered"
                self.try_again()
                pushed = now


def prepare(home: Path, program: str, port: int, *settings: str, listen: int | None = None) -> None:
    """Make the directories and the configuration; `settings` are further lines of main.cf.

    With `listen` it takes mail on that port of 127.0.0.1, too.
    """
    for name in ("conf", "spool", "data"):
        (home / name).mkdir(parents=True, mode=0o755)
    run("chown", "postfix", home / "data")
    main = SETTINGS.format(directory=home, port=port) + "\n".join(settings) + "\n"
    (home / "conf" / "main.cf").write_text(main, encoding="ascii")
    services = [*SERVICES, (str(listen), "inet n", "-", "-", "smtpd")] if listen else SERVICES
    lines = [f"{name} {kind} - n {wake} {limit} {command}\n" for name, kind, wake, limit, command in services]
    (home / "conf" / "master.cf").write_text("".join(lines), encoding="ascii")
    run(program, "-c", home / "conf", "check")
