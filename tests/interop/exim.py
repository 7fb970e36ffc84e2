"""A private Exim: settings, and a queue that sends everything to one port of this machine."""

from pathlib import Path

from tests.interop.letter import LETTER
from tests.interop.programs import run

SETTINGS = """\
exim_path = {program}
exim_user = Debian-exim
exim_group = Debian-exim
spool_directory = {directory}/spool
log_file_path = {directory}/log/%slog
primary_hostname = sender.test
trusted_users = root
keep_environment =
accept_8bitmime = true
smtputf8_advertise_hosts = *
prdr_enable = true
host_lookup =
log_selector = +all
begin routers
all:
  driver = manualroute
  route_list = * 127.0.0.1::{port}
  self = send
  transport = remote
begin transports
remote:
  driver = smtp
  allow_localhost
  hosts_try_fastopen =
  {transport}
begin retry
* * F,1h,5s
{more}
"""
PLAIN = "hosts_avoid_tls = *"


class Exim:
    """Delivers in the foreground, and once more whenever its queue is run; what it thinks of it stands in `log`."""

    def __init__(self, program: str, home: Path, port: int, transport: str, more: str) -> None:
        self._program = program
        self._home = home
        for name in ("spool", "log"):
            (home / name).mkdir(parents=True, mode=0o755)
            run("chown", "Debian-exim:", home / name)
        text = SETTINGS.format(program=program, directory=home, port=port, transport=transport, more=more)
        (home / "exim.conf").write_text(text, encoding="ascii")

    def send(self, *recipients: str, letter: bytes = LETTER, sender: str = "eve@sender.test") -> None:
        """Deliver one message at once."""
        words = (self._program, "-C", self._home / "exim.conf", "-odf", "-oi", "-f", sender, *recipients)
        run(*words, letter=letter.replace(b"\r\n", b"\n"))

    def try_again(self) -> None:
        """Try everything that waits once, even what its own rules would still let wait."""
        run(self._program, "-C", self._home / "exim.conf", "-qf")

    @property
    def log(self) -> str:
        """The main log."""
        return (self._home / "log" / "mainlog").read_text(encoding="utf-8")

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits in the queue."""
        return not any(name.is_file() for name in (self._home / "spool" / "input").rglob("*"))
