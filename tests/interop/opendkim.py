"""A private OpenDKIM: one process that signs what Postfix takes in, or one that says what it thinks of signatures."""

import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from tests.conftest import PATIENCE
from tests.interop.programs import Daemon, run

SETTINGS = """\
Socket local:{home}/socket
Background no
AutoRestart no
Syslog no
UserID opendkim
UMask 000
PidFile {home}/pid
"""
SIGNING = """\
Mode s
InternalHosts 127.0.0.1
Canonicalization relaxed/simple
OversignHeaders From
KeyTable {home}/keys
SigningTable refile:{home}/signers
DontSignMailTo refile:{home}/unsigned
RequireSafeKeys no
"""
# With 127.0.0.1 among its InternalHosts it would verify nothing that comes from there.
VERIFYING = """\
Mode v
InternalHosts /dev/null
ExternalIgnoreList /dev/null
AuthservID {authserv_id}
AlwaysAddARHeader yes
On-Default accept
TrustAnchorFile /dev/null
ResolverConfiguration {home}/resolver.conf
"""
# libunbound, which it asks, knows by itself that "test." does not exist.
RESOLVER = """\
server:
  do-not-query-localhost: no
  module-config: "iterator"
  local-zone: "test." nodefault
forward-zone:
  name: "."
  forward-addr: {address}@{port}
"""
SELECTOR = "opendkim"


class OpenDkim:
    """A milter; `address` is what Postfix calls it."""

    def __init__(self, program: str, home: Path, settings: str) -> None:
        self.address = f"unix:{home}/socket"
        (home / "opendkim.conf").write_text(SETTINGS.format(home=home) + settings, encoding="ascii")
        shutil.chown(home, "opendkim", "opendkim")
        self.daemon = Daemon(program, "-f", "-x", home / "opendkim.conf")
        end = time.monotonic() + PATIENCE
        while not (home / "socket").exists():
            assert self.daemon.process.poll() is None, "".join(self.daemon.lines)
            assert time.monotonic() < end, "".join(self.daemon.lines)

    def kill(self) -> None:
        """End it; asked politely it takes five seconds."""
        self.daemon.process.kill()
        self.daemon.stop()


def signer(program: str, home: Path, key: Path, domains: Iterable[str], *, unsigned: str) -> OpenDkim:
    """One that signs mail from `domains` with one key, unless it goes to a recipient like `unsigned`."""
    home.mkdir(mode=0o755)
    private = home / "key"
    shutil.copyfile(key, private)
    private.chmod(0o600)
    shutil.chown(private, "opendkim", "opendkim")
    keys = "".join(f"{domain} {domain}:{SELECTOR}:{private}\n" for domain in domains)
    (home / "keys").write_text(keys, encoding="ascii")
    (home / "signers").write_text("".join(f"*@{domain} {domain}\n" for domain in domains), encoding="ascii")
    (home / "unsigned").write_text(f"{unsigned}\n", encoding="ascii")
    return OpenDkim(program, home, SIGNING.format(home=home))


def verifier(program: str, home: Path, nameserver: str, authserv_id: str) -> OpenDkim:
    """One that refuses nothing, and says in Authentication-Results what it thinks; asks the nameserver "IP:PORT"."""
    home.mkdir(mode=0o755)
    address, port = nameserver.split(":")
    (home / "resolver.conf").write_text(RESOLVER.format(address=address, port=port), encoding="ascii")
    return OpenDkim(program, home, VERIFYING.format(home=home, authserv_id=authserv_id))


def make_key(program: str, home: Path) -> Path:
    """An RSA key by `opendkim-genkey`."""
    run(program, "-b", "2048", "-D", home, "-s", SELECTOR)
    return home / f"{SELECTOR}.private"
