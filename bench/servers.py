"""The servers: each starts on the servers' core and is used through a `Server`."""

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import machine
import trustme
from generator import NotMeasured

DOMAIN = "bench.test"
"""Messages to it are thrown away."""
MAILDIR_DOMAIN = "store.test"
"""Messages to it go into Maildirs, and are on the disk before they are acknowledged."""
STORE_DOMAIN = "lmtp.test"
"""Messages to it are handed to a store by LMTP, and acknowledged when it has acknowledged them."""

SINK_PATHS = "/usr/sbin:/usr/local/sbin:/usr/bin:/opt/homebrew/sbin"

_CONFIG = """\
[smtpd]
hostname = "mx.bench.test"
event_loop = "uvloop"
spool = "{directory}"
[smtpd.limits]
connections = 5000
connections_per_ip = 5000
[smtpd.listeners.smtp]
address = "127.0.0.1:0"
mode = "smtp"
[smtpd.tls]
cert_file = "{directory}/mx.crt"
key_file = "{directory}/mx.key"
[smtpd.domains]
"{discard}" = "discard"
"{maildir}" = "maildir"
{store_domain}
[smtpd.agents.discard]
type = "discard"
allow_discard = true
[smtpd.agents.maildir]
type = "maildir"
path = "{mail}"
recipients = "any"
[smtpd.metrics]
address = "127.0.0.1:0"
[smtpd.log]
to = "file:{log}"
"""

_STORE = """\
[smtpd.agents.store]
type = "lmtp"
address = "{place}"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server that runs: its port, and the process whose family does the work."""

    port: int
    process: int


def make_certificate(directory: Path) -> None:
    """mx.crt and mx.key, for us and for Postfix."""
    issued = trustme.CA().issue_cert("mx.bench.test")
    (directory / "mx.crt").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    (directory / "mx.key").write_bytes(issued.private_key_pem.bytes())


def own_directory(directory: Path, server: str) -> Path:
    """Where a server stores mail: a name never used before, as `machine.keep_apart` wants it."""
    return directory / f"{server}-{secrets.token_hex(4)}"


@contextlib.contextmanager
def ours(directory: Path, name: str = "smtpd", *, store: str = "", more: str = "") -> Iterator[Server]:
    """`python -m smtpd serve`: no filters, everything else on, one line per message into a file.

    `store` is where a store for STORE_DOMAIN listens, if there is one; `more` are other tables, such as filters.
    """
    log, config = directory / f"{name}.log", directory / f"{name}.toml"
    mail = own_directory(directory, name)
    text = _CONFIG.format(
        directory=directory,
        mail=mail,
        log=log,
        discard=DOMAIN,
        maildir=MAILDIR_DOMAIN,
        store_domain=f'"{STORE_DOMAIN}" = "store"' if store else "",
    )
    config.write_text(text + _STORE.format(place=store) * bool(store) + more)
    log.touch()
    command = [sys.executable, "-m", "smtpd", "serve", "--config", str(config)]
    # From a directory without our source tree, so that only an installed package is found.
    process = machine.start(command, machine.cores()[0], cwd=directory, stdin=subprocess.DEVNULL)
    try:
        machine.wait_until(
            lambda: process.poll() is not None or bool(_events(log, "ready")), "our server does not start"
        )
        if process.poll() is not None:
            raise NotMeasured(f"our server ended with {process.returncode}")
        address = _events(log, "listening")[0]["address"]
        yield Server(port=int(address.rpartition(":")[2]), process=process.pid)
    finally:
        machine.stop(process)


def _events(log: Path, event: str) -> list[dict]:
    with log.open() as lines:
        entries = [json.loads(line) for line in lines if line.endswith("}\n")]
    return [entry for entry in entries if entry["event"] == event]


@contextlib.contextmanager
def aiosmtpd(directory: Path) -> Iterator[Server]:
    """Stock aiosmtpd with its Sink handler."""
    script = Path(__file__).resolve().parent / "stock_aiosmtpd.py"
    process = machine.start(
        [sys.executable, str(script)], machine.cores()[0], cwd=directory, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise NotMeasured("aiosmtpd does not start")
        yield Server(port=int(line), process=process.pid)
    finally:
        machine.stop(process)
        process.stdout.close()


@contextlib.contextmanager
def smtp_sink(directory: Path) -> Iterator[Server]:
    """Postfix's test server in C, which throws everything away."""
    program = shutil.which("smtp-sink", path=SINK_PATHS)
    if program is None:
        raise NotMeasured("smtp-sink (a part of Postfix) is not installed")
    port = machine.free_port()
    command = [program, *(("-u", "nobody") if os.getuid() == 0 else ()), f"127.0.0.1:{port}", "1024"]
    process = machine.start(command, machine.cores()[0], cwd=directory)
    try:
        machine.wait_until(lambda: process.poll() is not None or machine.is_listening(port), "smtp-sink does not start")
        if process.poll() is not None:
            raise NotMeasured(f"smtp-sink ended with {process.returncode}")
        yield Server(port=port, process=process.pid)
    finally:
        machine.stop(process)
