"""A Postfix of our own beside the system's: smtpd(8), its queue, and delivery into Maildirs or to a store by LMTP."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import machine
from generator import NotMeasured
from servers import MAILDIR_DOMAIN, STORE_DOMAIN, Server, own_directory

DAEMONS = Path("/usr/lib/postfix/sbin")
MAILBOXES = 20
QUEUES = ("incoming", "active", "maildrop")
MAX_BACKLOG_SECONDS = 90.0

_MAIN = """\
compatibility_level = 3.6
queue_directory = {top}/spool
data_directory = {top}/data
command_directory = /usr/sbin
daemon_directory = {daemons}
meta_directory = /etc/postfix
shlib_directory = /usr/lib/postfix
mail_owner = postfix
setgid_group = postdrop
maillog_file = {top}/mail.log
maillog_file_prefixes = {top}
myhostname = mx.bench.test
mydestination =
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
alias_maps =
alias_database =
local_transport = error:no local mail
default_transport = error:no mail for others
virtual_transport = {transport}
virtual_mailbox_domains = {domain}
virtual_mailbox_base = {top}/mail
virtual_mailbox_maps = texthash:{top}/conf/mailboxes
virtual_mailbox_limit = 0
virtual_uid_maps = static:{user}
virtual_gid_maps = static:{user}
virtual_minimum_uid = 100
message_size_limit = 26214400
in_flow_delay = 0
smtpd_tls_security_level = may
smtpd_tls_cert_file = {top}/conf/mx.crt
smtpd_tls_key_file = {top}/conf/mx.key
"""

_MASTER = """\
127.0.0.1:{port} inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
lmtp unix - - n - - lmtp
error unix - - n - - error
retry unix - - n - - error
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Addition:
    """What a Postfix that checks more has besides: lines of main.cf and master.cf, and what starts it."""

    name: str = "postfix"
    main: str = ""
    master: str = ""
    launcher: tuple[str, ...] = ()


@contextlib.contextmanager
def postfix(directory: Path, transport: str = "virtual", addition: Addition = Addition()) -> Iterator[Server]:
    """Postfix with its defaults; what it accepts is synced into its queue, and delivered from there.

    The transport is virtual(8) for MAILDIR_DOMAIN, or else where lmtp(8) hands mail for STORE_DOMAIN to.
    """
    if os.getuid() != 0 or not (DAEMONS / "master").exists():
        raise NotMeasured("Postfix is not installed" if os.getuid() == 0 else "Postfix needs root")
    top = own_directory(directory, addition.name)
    port = machine.free_port()
    configure(top, port, directory, transport, addition)
    command = [*addition.launcher, str(DAEMONS / "master"), "-c", str(top / "conf"), "-s"]
    process = machine.start(command, machine.cores()[0], cwd=top, stdin=subprocess.DEVNULL)
    try:
        machine.wait_until(lambda: process.poll() is not None or machine.is_listening(port), "Postfix does not start")
        if process.poll() is not None:
            raise NotMeasured(f"Postfix ended with {process.returncode}, see {top}/mail.log")
        yield Server(port=port, process=process.pid)
    finally:
        machine.stop(process)


def configure(top: Path, port: int, certificate: Path, transport: str, addition: Addition) -> None:
    """Write main.cf, master.cf and the map of mailboxes, and let Postfix make its directories."""
    nobody = 65534
    domain = MAILDIR_DOMAIN if transport == "virtual" else STORE_DOMAIN
    for name in ("conf", "spool", "data", "mail"):
        (top / name).mkdir(parents=True)
    shutil.chown(top / "data", "postfix")
    os.chown(top / "mail", nobody, nobody)
    for name in ("mx.crt", "mx.key"):
        shutil.copy(certificate / name, top / "conf" / name)
    lines = [f"user{number}@{domain} user{number}/\n" for number in range(MAILBOXES)]
    (top / "conf" / "mailboxes").write_text("".join(lines))
    main = _MAIN.format(top=top, daemons=DAEMONS, domain=domain, user=nobody, transport=transport)
    (top / "conf" / "main.cf").write_text(main + addition.main)
    (top / "conf" / "master.cf").write_text(_MASTER.format(port=port) + addition.master)
    command = ["postfix", "-c", str(top / "conf"), "check"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise NotMeasured(f"postfix check: {made.stderr.strip()}")


def wait_for_deliveries(directory: Path) -> None:
    """Until the queue is empty: nobody else is measured while Postfix still delivers."""
    queues = [queue for name in QUEUES for queue in directory.glob(f"postfix-*/spool/{name}")]
    machine.wait_until(
        lambda: not any(files for queue in queues for _, _, files in os.walk(queue)),
        "Postfix does not deliver what it accepted",
        MAX_BACKLOG_SECONDS,
    )
