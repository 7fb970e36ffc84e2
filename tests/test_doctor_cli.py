import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from conftest import Certificates, toml_lines
from dns_server import Nameserver, running_nameserver

from smtpd.cli import main

RECORDS = """
mx.test. 60 IN A 127.0.0.1
example.com. 60 IN MX 10 mx.test.
example.com. 60 IN TXT "v=spf1 include:spf.example.com -all"
spf.example.com. 60 IN TXT "v=spf1 ip4:192.0.2.1 -all"
_dmarc.example.com. 60 IN TXT "v=DMARC1; p=reject; rua=mailto:d@example.com"
2.0.0.127.bl.example. 60 IN A 127.0.0.2
"""


@pytest.fixture
def nameserver() -> Iterator[Nameserver]:
    with running_nameserver() as server:
        server.add(RECORDS)
        yield server


@pytest.fixture
def config(nameserver: Nameserver, directory: Path, certificates: Certificates) -> Path:
    path = directory / "config.toml"
    tables = {
        "smtpd": {
            "hostname": "mx.test",
            "postmaster": "ann@example.com",
            "listeners": {"smtp": {"address": "127.0.0.1:0", "mode": "smtp"}},
            "domains": {"example.com": "store", "*.example.net": "store", "example.test": "store"},
            "tls": {"cert_file": certificates.cert_file, "key_file": certificates.key_file},
            "agents": {"store": {"type": "discard", "allow_discard": True}},
            "dns": {"nameservers": [nameserver.address]},
        }
    }
    path.write_text("\n".join(toml_lines(tables)) + "\n")
    return path


def doctor(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["doctor", "--config", str(config), *arguments])


def told(done: Result) -> dict[str, str]:
    """Level by subject."""
    return {finding["subject"]: finding["level"] for finding in json.loads(done.stdout)["findings"]}


def test_a_healthy_server_has_no_problem(config: Path) -> None:
    done = doctor(config, "--json", "--blocklist", "bl.example")
    assert (done.exit_code, done.stderr) == (0, "")
    levels = told(done)
    for subject in ("nameservers", "blocklist bl.example", "agent store", "MX of example.com", "SPF of example.com"):
        assert levels[subject] == "ok"
    assert levels["DMARC of example.com"] == "ok"
    assert json.loads(done.stdout)["worst"] == "warning"  # 127.0.0.1 is for the inside
    assert not [subject for subject in levels if "example.net" in subject or "example.test" in subject]


def test_problems_are_told_with_what_to_do_and_by_the_exit_status(config: Path, nameserver: Nameserver) -> None:
    done = doctor(config, "Bücher.example", "--selector", "s1")
    assert (done.exit_code, done.stderr) == (1, "")
    text = " ".join(done.stdout.split())
    assert "problem MX of xn--bcher-kva.example: There is no such domain" in text
    assert "problem DKIM key s1._domainkey.xn--bcher-kva.example: There is none" in text
    assert "-> Publish the record that your signing program has made." in text
    assert "2 problems, " in done.stdout.splitlines()[-1]
    assert ("example.com", "MX") not in nameserver.asked


def test_a_hostile_record_cannot_write_to_the_terminal(config: Path, nameserver: Nameserver) -> None:
    nameserver.add_text("evil.example", b"v=spf1 \x1b]0;owned\x07 \r\nok -all")
    nameserver.add("evil.example. 60 IN MX 10 mx.test.")
    done = doctor(config, "evil.example")
    assert not [sign for sign in done.stdout if not sign.isprintable() and sign != "\n"]
    assert "problem SPF of evil.example: It is wrong" in done.stdout
    assert "\nok" not in done.stdout.partition("SPF of evil.example")[2].partition("DMARC")[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("a..b",), "a..b is no name"),
        (("joe@example.com",), "joe@example.com is no name"),
        (("192.0.2.1",), "192.0.2.1 is no name"),
        (("--selector", "a b"), "is no name"),
        (("--blocklist", "."), "is no name"),
        (("--timeout", "0"), "0.0 is not in the range"),
        (tuple(f"d{number}.example" for number in range(51)), "more than 50"),
    ],
)
def test_wrong_arguments_end_with_2(config: Path, arguments: tuple[str, ...], said: str) -> None:
    done = doctor(config, *arguments)
    assert done.exit_code == 2
    assert said in done.stderr


def test_a_wrong_configuration_ends_with_2(directory: Path) -> None:
    path = directory / "wrong.toml"
    path.write_text("[smtpd]\nhostnam = 'x'\n")
    done = doctor(path)
    assert done.exit_code == 2
    assert "hostnam" in done.stderr
