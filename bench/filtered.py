"""The servers that check SPF, DKIM and DMARC: ours, and Postfix with Debian's policyd-spf and opendkim."""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import machine
from generator import NotMeasured
from nameserver import Nameserver
from postfix import Addition, postfix
from servers import Server, ours
from works import OURS_FILTERED, POSTFIX_FILTERS

FILTERS = ("spf", "dkim", "dmarc")
_KNOWN, _ASKED = 0.1, 2.5  # questions for each message: at most by us when all is known, at least when nothing is
_PATHS = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin"

_DNS = """\
[smtpd.dns]
nameservers = ["{address}:{port}"]
"""
_MAIN = """\
smtpd_recipient_restrictions = reject_unauth_destination, check_policy_service unix:private/policyd-spf
policyd-spf_time_limit = 3600
smtpd_milters = unix:{directory}/opendkim.sock
milter_default_action = tempfail
"""
_MASTER = """\
policyd-spf unix - n n - 0 spawn user=nobody argv={program} {directory}/policyd-spf.conf
"""
# Debian's, except that clients on this machine are checked, too.
_POLICYD = """\
debugLevel = 1
TestOnly = 1
HELO_reject = Fail
Mail_From_reject = Fail
PermError_reject = False
TempError_Defer = False
skip_addresses = 192.0.2.1/32
"""
# Debian's, except that clients on this machine are checked, too, and fails are refused. No DNSSEC: nothing is signed.
_OPENDKIM = """\
Syslog no
Mode v
Socket local:{directory}/opendkim.sock
UMask 000
UserID nobody
InternalHosts {directory}/nobody
Nameservers {address}
ResolverConfiguration {directory}/unbound.conf
On-BadSignature reject
On-KeyNotFound reject
On-NoSignature reject
"""
_UNBOUND = """\
server:
  do-not-query-localhost: no
  local-zone: "test." nodefault
  cache-min-ttl: 0
"""
# policyd-spf reads /etc/resolv.conf and nothing else: it gets one that only it and its relatives see.
_LAUNCHER = """\
exec 2>"$1/launcher.log"
mount --bind "$1/resolv.conf" /etc/resolv.conf || exit 1
"$2" -f -x "$1/opendkim.conf" & opendkim=$!
shift 2
"$@" & master=$!
trap 'kill $master; wait $master; kill $opendkim; wait $opendkim; exit 0' TERM
wait $master
kill $opendkim
"""


@contextlib.contextmanager
def ours_filtered(
    directory: Path, nameserver: Nameserver, filters: Sequence[str] = FILTERS, name: str = OURS_FILTERED
) -> Iterator[Server]:
    """Our server with these filters as they come."""
    tables = "".join(f"[smtpd.filters.{filter_name}]\n" for filter_name in filters)
    more = tables + _DNS.format(address=nameserver.address, port=nameserver.port)
    with ours(directory, name, more=more) as server:
        yield server


@contextlib.contextmanager
def postfix_filtered(directory: Path, nameserver: Nameserver) -> Iterator[Server]:
    """Postfix that asks both before it accepts anything."""
    policyd, opendkim = (_program(name) for name in ("policyd-spf", "opendkim"))
    if not shutil.which("unshare"):
        raise NotMeasured("unshare (util-linux) is not installed")
    if nameserver.port != 53:
        raise NotMeasured("the nameserver may not use port 53, and policyd-spf knows no other")
    place = directory / "checks"
    place.mkdir()
    shutil.chown(place, "nobody")
    files = {
        "resolv.conf": f"nameserver {nameserver.address}\n",
        "policyd-spf.conf": _POLICYD,
        "opendkim.conf": _OPENDKIM.format(directory=place, address=nameserver.address),
        "unbound.conf": _UNBOUND,
        "nobody": "192.0.2.1\n",
    }
    for name, text in files.items():
        (place / name).write_text(text)
    addition = Addition(
        name=POSTFIX_FILTERS,
        main=_MAIN.format(directory=place),
        master=_MASTER.format(program=policyd, directory=place),
        launcher=("unshare", "--mount", "sh", "-c", _LAUNCHER, "sh", str(place), opendkim),
    )
    with postfix(directory, addition=addition) as server:
        machine.wait_until((place / "opendkim.sock").is_socket, "opendkim does not start")
        yield server


def _program(name: str) -> str:
    found = shutil.which(name, path=_PATHS)
    if found is None:
        raise NotMeasured(f"{name} is not installed")
    return found


_FOUND = {
    "SPF": re.compile(rb"^received-spf: pass|\bspf=pass\b", re.IGNORECASE | re.MULTILINE),
    "DKIM": re.compile(rb"\bdkim=pass\b", re.IGNORECASE),
}


def check_work(directory: Path, server: str) -> None:
    """Whether what one of the two has stored last was found to be good by SPF and by DKIM; NotMeasured."""
    stored = [path for path in directory.glob(f"{server}-*/**/new/*") if path.is_file()]
    if not stored:
        raise NotMeasured(f"{server} has stored nothing")
    newest = max(stored, key=lambda path: path.stat().st_mtime_ns).read_bytes()
    for what, pattern in _FOUND.items():
        if not pattern.search(newest):
            raise NotMeasured(f"{server} has stored a message that does not say that {what} passed")


def check_questions(letters: str, server: str, per_message: float) -> None:
    """Whether DNS was as warm or as cold as it was to be; NotMeasured."""
    if letters == "cold" and per_message < _ASKED:
        raise NotMeasured(f"only {per_message:.2f} questions for each message, so something was known before")
    if letters == "warm" and server == OURS_FILTERED and per_message > _KNOWN:
        raise NotMeasured(f"{per_message:.2f} questions for each message, so not everything was known before")
