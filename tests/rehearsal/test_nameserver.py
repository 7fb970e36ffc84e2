import asyncio
import json
import re
import smtplib
from pathlib import Path

import pytest
from click.testing import CliRunner
from dns_server import running_nameserver
from stage import Stage

from filters.dkim import Dkim
from filters.dmarc import Dmarc
from filters.spf import Spf
from smtpd.cli import main
from smtpd.config import LogOptions
from smtpd.dns import CachingResolver, DnsOptions, LimitedResolver
from smtpd.log import Log
from smtpd.rehearsal import resolver_of
from smtpd.zone import Zone

LIMIT = 3
# The first message needs six lookups. For the second three of them are known, and three are just enough.
TABLES: dict[str, dict[str, list[str]]] = {
    "wide.test": {"TXT": [f"v=spf1 {' '.join(f'a:h{number}.wide.test' for number in range(5))} -all"]},
    **{f"h{number}.wide.test": {"A": ["192.0.2.77" if number < 4 else "127.0.0.1"]} for number in range(5)},
    "_dmarc.wide.test": {"TXT": ["v=DMARC1; p=none"]},
}
MESSAGE = "From: joe@wide.test\r\nSubject: Hi\r\n\r\nHi\r\n"
CONFIG = f"""
[smtpd]
hostname = "mx.test"
postmaster = "ann@example.test"
[smtpd.listeners.smtp]
address = "127.0.0.1:0"
mode = "smtp"
tls = "off"
[smtpd.domains]
"example.test" = "store"
[smtpd.agents.store]
type = "discard"
allow_discard = true
[smtpd.dns]
lookups_per_message = {LIMIT}
[smtpd.filters.spf]
[smtpd.filters.dkim]
[smtpd.filters.dmarc]
"""
POLICY = """
config_file = "config.toml"
zone_file = "zone.toml"
[[case]]
name = "one"
client = { ip = "127.0.0.1" }
mail_from = "joe@wide.test"
rcpt = "ann@example.test"
message_file = "a.eml"
expect = { results = { spf = ["temperror", "none"] } }
"""
DIALOG = "EHLO client.test\n" + 2 * (
    "MAIL FROM:<joe@wide.test>\nRCPT TO:<ann@example.test>\nDATA\n" + MESSAGE.replace("\r\n", "\n") + ".\n"
)


def resolver(zone: Zone) -> CachingResolver:
    return resolver_of(zone, DnsOptions(), Log(LogOptions(level="error", to="stderr")))


async def test_only_the_first_lookup_of_a_name_and_type_counts() -> None:
    known = resolver(Zone({"a.test": {"A": ["192.0.2.1"]}, "down.test": {"tempfail": True}}))
    limited = LimitedResolver(known, 4)
    for _ in range(2):
        found = [await limited.resolve(name, "A") for name in ("a.test", "A.test.", "none.test", "down.test")]
        found.append(await limited.resolve("a.test", "MX"))
        assert [one.status for one in found] == ["ok", "ok", "nxdomain", "tempfail", "nodata"]
    assert (await limited.resolve("b.test", "A")).reason == "limit"
    assert limited.peek("a.test", "A") is not None
    await known.stop()


async def over_a_socket() -> list[str]:
    """Authentication-Results of two messages on one connection to a server that was just started."""

    def send(port: int) -> None:
        with smtplib.SMTP("127.0.0.1", port, local_hostname="client.test") as client:
            for _ in range(2):
                client.sendmail("joe@wide.test", "ann@example.test", MESSAGE)

    with running_nameserver() as nameserver:
        for name, table in TABLES.items():
            for kind, (record,) in table.items():
                nameserver.add(
                    f'{name}. 60 IN {kind} "{record}"' if kind == "TXT" else f"{name}. 60 IN {kind} {record}"
                )
        tables = {"dns": nameserver.options(lookups_per_message=LIMIT)}
        kinds = {"spf": Spf, "dkim": Dkim, "dmarc": Dmarc}
        async with Stage(filters=kinds, tables=tables, listens=True) as server:
            await asyncio.to_thread(send, server.port)
        return [results(kept.content.decode()) for kept in server.kept]


def results(content: str) -> str:
    """The field on top of a message, on one line."""
    (field,) = re.findall(r"^Authentication-Results: .*\r\n(?:[ \t].*\r\n)*", content, re.MULTILINE)
    return " ".join(field.split())


def explained(*arguments: str) -> list[str]:
    """Authentication-Results of every message, as `smtpd explain` tells them."""
    done = CliRunner().invoke(main, ["explain", *arguments, "--ip", "127.0.0.1", "--json"])
    assert done.stderr == ""
    return [" ".join(message["authentication_results"].split()) for message in json.loads(done.stdout)["messages"]]


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    (tmp_path / "config.toml").write_text(CONFIG)
    (tmp_path / "zone.toml").write_text(Zone(TABLES).to_toml())
    (tmp_path / "a.eml").write_bytes(MESSAGE.encode())
    (tmp_path / "two.smtp").write_text(DIALOG)
    return tmp_path


def test_a_rehearsal_finds_what_a_server_finds_that_was_just_started(desk: Path) -> None:
    first, second = asyncio.run(over_a_socket())
    assert 'spf=temperror reason="DNS: limit for A of h2.wide.test"' in first
    assert 'spf=pass reason="a:h4.wide.test matches"' in second
    rules = ("--config", str(desk / "config.toml"), "--zone", str(desk / "zone.toml"))
    envelope = ("--helo", "client.test", "--from", "joe@wide.test", "--to", "ann@example.test")
    assert explained(*rules, str(desk / "a.eml"), *envelope) == [first]
    assert explained(*rules, "--session", str(desk / "two.smtp")) == [first, second]


def test_cases_of_a_policy_file_know_nothing_of_each_other(desk: Path) -> None:
    _, case = POLICY.split("[[case]]")
    (desk / "policy.toml").write_text(POLICY + "[[case]]" + case.replace('"one"', '"two"'))
    done = CliRunner().invoke(main, ["test", str(desk / "policy.toml")])
    assert done.stdout == "ok    one\nok    two\n2 passed, 0 failed\n"
