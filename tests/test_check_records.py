"""`smtpd check --records` and `--zone`."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from dns_server import Nameserver, running_nameserver

from smtpd.cli import main

CONFIG = """
[smtpd]
hostname = "mx.example.com"
postmaster = "ann@example.com"
[smtpd.listeners.smtp]
address = ":25"
mode = "smtp"
tls = "off"
[smtpd.agents.store]
type = "discard"
allow_discard = true
[smtpd.dns]
nameservers = ["{nameserver}"]
timeout = "1s"
[smtpd.domains]
"""
GOOD = {
    "example.com": 'TXT = ["v=spf1 mx -all"]\nMX = ["10 mx.example.com"]',
    "mx.example.com": 'A = ["192.0.2.1"]',
    "_dmarc.example.com": 'TXT = ["v=DMARC1; p=reject; rua=mailto:d@example.com"]',
    "_smtp._tls.example.com": 'TXT = ["v=TLSRPTv1; rua=mailto:t@example.com"]',
}
MANUAL = Path(__file__).resolve().parent.parent / "docs" / "operating.md"
SPF, DMARC, TLSRPT = "SPF of example.com", "DMARC of example.com", "TLSRPT of example.com"
MANY_INCLUDES = " ".join(f"include:i{number}.example" for number in range(11))


@pytest.fixture
def nameserver() -> Iterator[Nameserver]:
    with running_nameserver() as server:
        yield server


class Desk:
    """Where a configuration and a zone lie side by side."""

    def __init__(self, folder: Path, nameserver: Nameserver) -> None:
        self.config = folder / "config.toml"
        self.zone = folder / "zone.toml"
        self._start = CONFIG.format(nameserver=nameserver.address)
        self.receive("example.com")

    def receive(self, *domains: str) -> None:
        # A postmaster has to be in one of the domains.
        keys = "".join(f'"{domain}" = "store"\n' for domain in domains)
        self.config.write_text((self._start if domains else self._start.replace("postmaster", "#postmaster")) + keys)

    def write_zone(self, names: dict[str, str]) -> None:
        self.zone.write_text("\n".join(f'["{name}"]\n{records}' for name, records in names.items()) + "\n")

    def check(self, *arguments: str) -> Result:
        return CliRunner().invoke(main, ["check", "--config", str(self.config), *arguments])

    def check_zone(self, names: dict[str, str], *arguments: str) -> Result:
        self.write_zone(names)
        return self.check("--zone", str(self.zone), *arguments)


@pytest.fixture
def desk(tmp_path: Path, nameserver: Nameserver) -> Desk:
    return Desk(tmp_path, nameserver)


def findings(done: Result) -> dict[str, tuple[str, str]]:
    """Level and meaning by subject."""
    return {one["subject"]: (one["level"], one["meaning"]) for one in json.loads(done.stdout)["findings"]}


def test_good_records_are_good_and_only_the_file_is_asked(desk: Desk, nameserver: Nameserver) -> None:
    done = desk.check_zone(GOOD)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "ok: 1 listener, 1 domain, 1 agent, 0 filters",
        "ok      SPF of example.com: It can be read; evaluating it takes up to 1 of 10 lookups.",
        "ok      DMARC of example.com: Mail that fails is to be treated as reject.",
        "ok      TLSRPT of example.com: Senders know where to report trouble with TLS.",
        "",
        "0 problems, 0 warnings",
    ]
    assert not nameserver.asked


@pytest.mark.parametrize(
    ("names", "subject", "level", "said"),
    [
        ({"_dmarc.example.com": 'TXT = ["v=DMARC1; p=reject;;"]'}, DMARC, "problem", "It is wrong: "),
        ({"_dmarc.example.com": 'TXT = ["v=DMARC1; p=none", "v=DMARC1; p=reject"]'}, DMARC, "problem", "2 records"),
        ({"_dmarc.example.com": "TXT = []"}, DMARC, "warning", "There is none"),
        ({"_dmarc.example.com": 'TXT = "tempfail: timeout"'}, DMARC, "warning", "does not say now (timeout)"),
        ({"example.com": 'TXT = ["v=spf1 ' + MANY_INCLUDES + ' -all"]'}
         | {f"i{number}.example": 'TXT = ["v=spf1 -all"]' for number in range(11)}, SPF, "problem", "lookups"),
        ({"example.com": 'TXT = ["v=spf1 -all", "v=spf1 mx -all"]'}, SPF, "problem", "2 records"),
        ({"example.com": "TXT = []"}, SPF, "warning", "There is none"),
        ({"example.com": "tempfail = true"}, SPF, "warning", "does not say now"),
        ({"example.com": 'TXT = ["v=spf1 include:far.example -all"]', "far.example": "tempfail = true"},
         SPF, "warning", "nobody answers about far.example TXT"),
        ({"_smtp._tls.example.com": 'TXT = ["v=TLSRPTv1; rua=nobody"]'}, TLSRPT, "problem", "It is wrong: "),
        ({"_smtp._tls.example.com": "TXT = []"}, TLSRPT, "info", "There is none"),
    ],
)  # fmt: skip
def test_each_record_is_told_and_problems_by_the_exit_status(
    desk: Desk, names: dict[str, str], subject: str, level: str, said: str
) -> None:
    done = desk.check_zone(GOOD | names, "--json")
    found_level, meaning = findings(done)[subject]
    assert (found_level, done.exit_code) == (level, 1 if level == "problem" else 0)
    assert said in meaning
    assert (json.loads(done.stdout)["worst"] == "problem") is (level == "problem")


def test_a_mistake_is_told_with_what_to_do(desk: Desk) -> None:
    done = desk.check_zone(GOOD | {"_dmarc.example.com": 'TXT = ["v=DMARC1; p=rejekt"]'})
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert lines[0].startswith("ok: ")
    assert "problem DMARC of example.com: It is wrong: " in done.stdout
    assert "        -> Correct the record." in lines
    assert lines[-1] == "1 problem, 0 warnings"


def test_names_that_the_file_does_not_have_are_named(desk: Desk) -> None:
    done = desk.check_zone(
        GOOD | {"example.com": 'TXT = ["v=spf1 include:far.example -all"]\nMX = ["1 mx.example.com"]'}
    )
    assert done.exit_code == 1
    assert "info    zone file: By this file there is no far.example." in done.stdout


def test_records_of_the_dns_are_read_with_the_option_alone(desk: Desk, nameserver: Nameserver) -> None:
    nameserver.add('example.com. 60 IN TXT "v=spf1 ip4:192.0.2.1 -all"')
    nameserver.add('_dmarc.example.com. 60 IN TXT "v=DMARC1; p=reject;;"')
    done = desk.check()
    assert (done.exit_code, done.stdout) == (0, "ok: 1 listener, 1 domain, 1 agent, 0 filters\n")
    assert not nameserver.asked
    done = desk.check("--records", "--json")
    assert (done.exit_code, done.stderr) == (1, "")
    assert {subject: level for subject, (level, _) in findings(done).items()} == {
        SPF: "ok", DMARC: "problem", TLSRPT: "info",
    }  # fmt: skip


def test_a_dns_that_does_not_answer_breaks_no_record(desk: Desk, nameserver: Nameserver) -> None:
    for name in ("example.com", "_dmarc.example.com", "_smtp._tls.example.com"):
        nameserver.fail(name, "SERVFAIL")
    done = desk.check("--records", "--json")
    assert done.exit_code == 0
    for level, meaning in findings(done).values():
        assert level == "warning"
        assert meaning.startswith("The DNS does not say now (")


def test_domains_without_records_are_told_as_such(desk: Desk) -> None:
    desk.receive("example.com", "*.example.net", "example.test", "localhost", "[192.0.2.1]")
    desk.write_zone(GOOD)
    levels = findings(desk.check("--zone", str(desk.zone), "--json"))
    assert levels["*.example.net"] == (
        "info", "It is a pattern; the domains it stands for are not known here, and their records are not read."
    )  # fmt: skip
    assert levels["localhost"][0] == levels["[192.0.2.1]"][0] == "info"
    assert levels["SPF of example.test"][0] == "warning"  # a file may have names that the DNS never has
    assert not [subject for subject in levels if subject.startswith("SPF of") and subject[-1] not in "tm"]


def test_no_domains_no_records(desk: Desk) -> None:
    desk.receive()
    done = desk.check("--records")
    assert done.exit_code == 0
    assert "info    domains: There is none in [smtpd.domains], so there are no records to read." in done.stdout


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[example.com", "zone.toml: is no TOML: "),
        ('["example.com"]\nTEXT = ["x"]\n', "zone.toml: example.com: knows no 'TEXT'"),
        (None, "zone.toml: No such file or directory"),
    ],
)
def test_a_broken_zone_file_is_told_and_nothing_is_read(desk: Desk, text: str | None, said: str) -> None:
    if text is not None:
        desk.zone.write_text(text)
    done = desk.check("--zone", str(desk.zone))
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr


def test_a_wrong_configuration_comes_first(desk: Desk) -> None:
    desk.config.write_text(desk.config.read_text().replace("hostname", "hostnam"))
    done = desk.check("--zone", str(desk.zone), "--json")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "smtpd.hostnam: unknown key" in done.stderr
    assert "zone.toml" not in done.stderr


@pytest.mark.parametrize(("switches", "is_there"), [((), False), (("--zone", "zone.toml"), True)])
def test_the_parser_is_loaded_only_for_records(desk: Desk, switches: tuple[str, ...], is_there: bool) -> None:
    desk.write_zone(GOOD)
    loaded = "import atexit, sys; atexit.register(lambda: print('checkdmarc' in sys.modules))"
    code = f"{loaded}; from smtpd.cli import main; main()"
    command = [sys.executable, "-c", code, "check", "--config", str(desk.config), *switches]
    done = subprocess.run(command, cwd=desk.zone.parent, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.startswith("ok: ")
    assert done.stdout.splitlines()[-1] == str(is_there)


def test_example_of_the_manual_is_what_is_said(desk: Desk) -> None:
    section = MANUAL.read_text(encoding="utf-8").partition("### Records, before and after")[2].partition("\n## ")[0]
    desk.zone.write_text(section.partition("```toml\n")[2].partition("```")[0], encoding="utf-8")
    said = section.partition("```console\n")[2].partition("```")[0].partition("\n")[2]
    assert desk.check("--zone", str(desk.zone)).output == said
