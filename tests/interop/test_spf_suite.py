"""The test suite of RFC 7208 over the wire: a nameserver, clients that a PROXY header names, and what is delivered.

The other half of it, without sockets, is in tests/filters/test_spf_evaluation.py.
"""

import re
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import BytesHeaderParser
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import BinaryIO

import pytest
from dns_server import Nameserver, running_nameserver
from proxy_headers import v2
from spf_suite import DEFAULT_EXPLANATION, Case, Scenario, scenarios

from filters.spf_evaluation import Client, evaluate
from smtpd.config import LogOptions
from smtpd.dns import make_resolver
from smtpd.log import Log
from smtpd.metrics import Metrics
from tests.conftest import PATIENCE, Certificates, Server, servers

# What a client cannot say: we answer 501, and there is nothing to check. They pass where nobody speaks SMTP.
NOT_IN_SMTP = {
    "toolonglabel": b"501 5.1.7",  # a label of 64 octets in MAIL
    "emptylabel": b"501 5.1.7",  # two dots in a row
    "nolocalpart": b"501 5.1.7",  # <@example.net>
    "invalid-hello-macro": b"501 5.5.4",  # a name with a blank in EHLO
}
# Records with an octet 0: c-ares, as aiodns speaks to it, gives a TXT record only up to there. Who writes such a
# record decides what stands before it anyway, so nobody can be harmed but himself.
KNOWN_MISSES = {"aiodns": {"a-null", "mx-null"}, "dnspython": set[str]()}
DOT_STRING = re.compile(r"[\w!#$%&'*+\-/=?^`{|}~]+(\.[\w!#$%&'*+\-/=?^`{|}~]+)*")


@dataclass(frozen=True)
class Wire:
    """A server of ours, and the nameserver that it asks."""

    server: Server
    nameserver: Nameserver

    def say(self, case: Case, *, listener: str, recipient: str) -> list[bytes]:
        """Send one message as the client of a case; all answers, that to EHLO last line only."""
        with socket.create_connection(("127.0.0.1", self.server.port(listener)), PATIENCE) as connection:
            connection.sendall(proxied(case.host))
            answers = connection.makefile("rb")
            said = [answer(answers)]
            for line in (f"EHLO {case.helo}", f"MAIL FROM:<{path(case.mailfrom)}>", f"RCPT TO:<{recipient}>", "DATA"):
                connection.sendall(line.encode() + b"\r\n")
                said.append(answer(answers))
                if not said[-1].startswith((b"2", b"3")):
                    return said
            connection.sendall(b"From: joe@example.test\r\n\r\nHi\r\n.\r\nQUIT\r\n")
            return [*said, answer(answers), answer(answers)]


@pytest.fixture(scope="module")
def wire(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    """Listener "smtp" delivers whatever the result is, "strict" refuses a fail."""
    directory: Path = tmp_path_factory.mktemp("spf")
    behind = {"address": "127.0.0.1:0", "mode": "smtp", "proxy_protocol": ["127.0.0.1/32"]}
    with running_nameserver() as nameserver, servers(directory, certificates) as serve:
        # Nothing may be kept between two zones: no cache of ours, and none of c-ares.
        dns = {"nameservers": [nameserver.address], "backend": "dnspython", "cache_entries": 0}
        filters = {
            "spf": {"listeners": ["smtp"]},
            "refusing": {"type": "spf", "fail": "reject", "listeners": ["strict"]},
        }
        listeners = {"smtp": behind, "strict": behind, "smtps": None, "submission": None, "alt": None}
        yield Wire(serve({"smtpd": {"listeners": listeners, "dns": dns, "filters": filters}}), nameserver)


@pytest.mark.parametrize("scenario", [pytest.param(one, id=one.name.replace(" ", "-")) for one in scenarios()])
def test_results_of_the_suite_stand_in_what_is_delivered(wire: Wire, scenario: Scenario) -> None:
    scenario.publish(wire.nameserver)
    found, refused = {}, {}
    for case in scenario.cases:
        said = wire.say(case, listener="smtp", recipient=f"{case.name}@example.test")
        if said[-1].startswith(b"221 "):
            (message,) = wire.server.mailbox(case.name)
            found[case.name] = results(message)
        else:
            refused[case.name] = said[-1][:9]
    assert refused == {case.name: NOT_IN_SMTP[case.name] for case in scenario.cases if case.name in NOT_IN_SMTP}
    identity = {case.name: "mailfrom" if case.mailfrom else "helo" for case in scenario.cases}
    wrong = {
        case.name: (found[case.name], case.results)
        for case in scenario.cases
        if case.name in found and found[case.name] not in {(right, identity[case.name]) for right in case.results}
    }
    assert wrong == {}


@pytest.mark.parametrize("scenario", [one for one in scenarios() if any(case.explanation for case in one.cases)])
def test_explanations_of_the_suite_are_what_the_client_hears(wire: Wire, scenario: Scenario) -> None:
    scenario.publish(wire.nameserver)
    heard, told = {}, {}
    for case in scenario.cases:
        if case.explanation and "fail" in case.results and case.name not in NOT_IN_SMTP:
            reply = wire.say(case, listener="strict", recipient="bob@example.test")[-1].decode()
            assert reply.startswith(f"550 5.7.23 SPF says {ip_address(case.host)} may not send for ")
            heard[case.name] = reply.partition(", domain says: ")[2].partition(" [refusing ")[0]
            told[case.name] = case.explanation.replace(DEFAULT_EXPLANATION, "")
    assert heard == told


def test_all_but_four_cases_can_be_said_in_smtp() -> None:
    names = [case.name for scenario in scenarios() for case in scenario.cases]
    assert len(set(names)) == 203
    assert set(names) > NOT_IN_SMTP.keys()


@pytest.mark.parametrize("backend", ["aiodns", "dnspython"])
async def test_suite_passes_by_way_of_either_backend(backend: str) -> None:
    wrong = {}
    with running_nameserver() as nameserver:
        for scenario in scenarios():
            scenario.publish(nameserver)
            # A fresh one for each zone, as c-ares remembers what it was told.
            resolver = make_resolver(nameserver.options(backend=backend), Metrics(), Log(LogOptions(), sink=Nowhere()))
            for case in scenario.cases:
                local, domain = case.identity
                client = Client(ip_address(case.host), case.helo, "mx.test")
                found = await evaluate(client, local, domain, resolver)
                told = None if case.explanation is None else case.explanation.replace(DEFAULT_EXPLANATION, "")
                if found.result not in case.results or told not in (None, found.explanation):
                    wrong[case.name] = found
            await resolver.stop()
    assert wrong.keys() == KNOWN_MISSES[backend], wrong


class Nowhere:
    """A log that nobody reads."""

    def write(self, data: bytes) -> int:
        return len(data)

    def reopen(self) -> None: ...

    def close(self) -> None: ...


def proxied(ip: str) -> bytes:
    """A header that names a client (PROXY protocol, version 2)."""
    client = ip_address(ip)
    ours = ip_address("192.0.2.25" if isinstance(client, IPv4Address) else "2001:db8::25")
    family = 0x11 if isinstance(client, IPv4Address) else 0x21
    return v2(0x21, family, client.packed + ours.packed + struct.pack("!HH", 4321, 25))


def path(address: str) -> str:
    """An address as a client writes it: a local part in quotes where it must be."""
    local, at, domain = address.rpartition("@")
    return f'"{local}"@{domain}' if local and DOT_STRING.fullmatch(local) is None else f"{local}{at}{domain}"


def answer(answers: BinaryIO) -> bytes:
    """One reply, of several lines the last."""
    while (line := answers.readline())[3:4] == b"-":
        pass
    return line


def results(message: bytes) -> tuple[str, str]:
    """The first result of our Authentication-Results, and whose it is."""
    field = BytesHeaderParser().parsebytes(message)["Authentication-Results"]
    found = re.match(r"mx\.test;\s+spf=(\w+)\s.*?\ssmtp\.(\w+)=", field, re.DOTALL)
    assert found is not None, field
    return found[1], found[2]
