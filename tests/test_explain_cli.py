import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from dns_server import running_nameserver

from smtpd.cli import main
from smtpd.explain_cli import parse_time

CONFIG = """
[smtpd]
hostname = "mx.example.com"
postmaster = "ann@example.com"
spool = "/nonexistent/spool"
[smtpd.listeners.smtp]
address = ":25"
mode = "smtp"
[smtpd.listeners.submission]
address = ":587"
mode = "submission"
[smtpd.tls]
cert_file = "/nonexistent/crt"
key_file = "/nonexistent/key"
[smtpd.auth]
providers = ["users"]
[smtpd.auth.users]
type = "file"
path = "/nonexistent/users"
[smtpd.domains]
"example.com" = "store"
[smtpd.agents.store]
type = "maildir"
path = "MAIL"
[smtpd.state]
url = "sqlite:MAIL/state.db"
[smtpd.metrics]
address = "127.0.0.1:1"
token_file = "/nonexistent/token"
[smtpd.filters.spf]
fail = "reject"
"""
ZONE = '["sender.example"]\nTXT = ["v=spf1 ip4:192.0.2.1 -all"]\n'
ENVELOPE = ("--from", "joe@sender.example", "--to", "ann@example.com")


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    (tmp_path / "config.toml").write_text(CONFIG.replace("MAIL", str(tmp_path / "mail")))
    (tmp_path / "zone.toml").write_text(ZONE)
    (tmp_path / "message.eml").write_text("From: joe@sender.example\nSubject: Hi\n\nHi\n")
    (tmp_path / "bare.eml").write_bytes(b"From: joe@sender.example\r\n\r\nlone\n")
    return tmp_path


def explain(desk: Path, *arguments: str, zone: str = "zone.toml") -> Result:
    words = [str(desk / word) if word.endswith((".eml", ".smtp", ".toml")) else word for word in arguments]
    words += ["--zone", str(desk / zone)] if zone else []
    return CliRunner().invoke(main, ["explain", "--config", str(desk / "config.toml"), *words])


def ending(done: Result) -> str:
    """The last thing that is told, on one line."""
    return " ".join(done.stdout.rpartition("\n\n")[2].split())


def test_an_accepted_message_is_explained_and_goes_nowhere(desk: Path) -> None:
    before = sorted(desk.iterdir())
    done = explain(desk, "message.eml", *ENVELOPE)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.endswith("\naccepted\n")
    assert "found   spf=pass (ip4:192.0.2.1 matches)" in done.stdout
    assert sorted(desk.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("message.eml", *ENVELOPE, "--ip", "2001:db8::1"), 1, "refused: 550 5.7.23 "),
        (("message.eml", *ENVELOPE, "--to", "bob@elsewhere.example"), 1, "partly accepted: 550 5.7.1 "),
        (("message.eml", *ENVELOPE, "--listener", "submission", "--tls"), 1, "refused: 530 "),
        (("message.eml", *ENVELOPE, "--listener", "submission", "--tls", "--login", "joe"), 0, "accepted"),
        (("message.eml", *ENVELOPE, "--helo", ""), 1, "refused: 501 5.5.4 "),
        (("bare.eml", *ENVELOPE), 1, "refused: 550 5.5.2 "),
        (("message.eml", "--from", "", "--to", "postmaster"), 0, "accepted"),
    ],
)
def test_the_exit_status_says_what_became_of_it(desk: Path, arguments: tuple[str, ...], status: int, told: str) -> None:
    done = explain(desk, *arguments)
    assert (done.exit_code, done.stderr) == (status, "")
    assert ending(done).startswith(told)


def test_a_message_may_come_from_standard_input(desk: Path) -> None:
    words = ["explain", "--config", str(desk / "config.toml"), "--zone", str(desk / "zone.toml"), *ENVELOPE, "-"]
    done = CliRunner().invoke(main, words, input=(desk / "message.eml").read_bytes())
    assert (done.exit_code, done.stderr) == (0, "")
    same = explain(desk, "message.eml", *ENVELOPE).stdout
    (sent,) = [line for line in same.splitlines() if line.startswith("C: (")]
    assert sent in done.stdout.splitlines()


def test_a_dns_that_is_down_never_refuses(desk: Path) -> None:
    (desk / "down.toml").write_text('["sender.example"]\ntempfail = true\n["client.example"]\ntempfail = true\n')
    done = explain(desk, "message.eml", *ENVELOPE, zone="down.toml")
    assert done.exit_code == 0
    assert "sender.example TXT: tempfail (no answer)" in done.stdout
    assert "labels  spf-temperror" in done.stdout
    config = desk / "config.toml"
    config.write_text(config.read_text() + 'temperror = "defer"\n')
    done = explain(desk, "message.eml", *ENVELOPE, zone="down.toml")
    assert ending(done).startswith("deferred: 451 4.4.3 ")


def test_no_line_is_added_to_the_report_of_dmarc(desk: Path) -> None:
    config, report = desk / "config.toml", desk / "report.json"
    config.write_text(f'{CONFIG}\n[smtpd.filters.dkim]\n[smtpd.filters.dmarc]\nreport_file = "{report}"\n')
    (desk / "zone.toml").write_text(
        f'{ZONE}["_dmarc.sender.example"]\nTXT = ["v=DMARC1; p=reject; rua=mailto:reports@sender.example"]\n'
    )
    done = explain(desk, "message.eml", *ENVELOPE)
    assert (done.exit_code, done.stderr) == (0, "")
    assert "found   dmarc=pass" in done.stdout
    assert not report.exists()


def test_a_dialog_is_replayed(desk: Path) -> None:
    (desk / "talk.smtp").write_text(
        "S: 220 whatever\nC: EHLO pc\nC: MAIL FROM:<joe@sender.example>\nC: RCPT TO:<ann@example.com>\nC: RSET\n"
    )
    done = explain(desk, "--session", "talk.smtp", "--json")
    told = json.loads(done.stdout)
    assert [step["stage"] for step in told["steps"]] == ["connect", "helo", "mail", "rcpt", "other"]
    assert (told["outcome"], done.exit_code) == ("nothing sent", 1)


def without_times(told: Any) -> Any:
    """What must be the same whenever it is run."""
    if isinstance(told, dict):
        return {key: without_times(value) for key, value in told.items() if key not in ("seconds", "trace")}
    if isinstance(told, list):
        return [without_times(item) for item in told]
    return told.partition(" [")[0].partition("id 0")[0] if isinstance(told, str) else told


def test_what_was_recorded_can_be_repeated_without_the_network(desk: Path) -> None:
    arguments = ("message.eml", *ENVELOPE, "--time", "2026-11-21T10:00:00Z", "--json")
    with running_nameserver() as nameserver:
        nameserver.add('sender.example. 60 IN TXT "v=spf1 mx -all"')
        nameserver.add("sender.example. 60 IN MX 10 mx.sender.example.")
        nameserver.add("mx.sender.example. 60 IN A 192.0.2.1")
        nameserver.fail("client.example", "SERVFAIL")
        config = desk / "config.toml"
        config.write_text(f'{config.read_text()}\n[smtpd.dns]\nnameservers = ["127.0.0.1:{nameserver.port}"]\n')
        live = explain(desk, *arguments, "--record", "recorded.toml", zone="")
        asked = sum(nameserver.asked.values())
        again = explain(desk, *arguments, zone="recorded.toml")
        assert sum(nameserver.asked.values()) == asked > 0
    assert (live.exit_code, live.stderr) == (0, "")
    statuses = {
        (one["name"], one["type"]): one["status"] for one in json.loads(live.stdout)["steps"][2]["filters"][0]["dns"]
    }
    assert statuses["sender.example", "MX"] == "ok"
    assert statuses["client.example", "TXT"] == "tempfail"
    assert without_times(json.loads(again.stdout)) == without_times(json.loads(live.stdout))


@pytest.mark.parametrize(
    ("arguments", "zone", "problem"),
    [
        (("message.eml", *ENVELOPE, "--ip", "here"), "zone.toml", "'here' does not appear to be an IPv4"),
        (("message.eml", *ENVELOPE, "--time", "now"), "zone.toml", "Invalid isoformat string: 'now'"),
        (("message.eml", *ENVELOPE, "--time", "-1"), "zone.toml", "is no time between 1970 and 9999"),
        (("message.eml", *ENVELOPE, "--listener", "smpt"), "zone.toml", "there is no listener 'smpt'"),
        (("message.eml", "--from", "joe@sender.example"), "zone.toml", "MESSAGE, --from and --to are needed"),
        (("message.eml", "--session", "none.smtp"), "zone.toml", "--session brings its own"),
        (("--session", "none.smtp", "--helo", "mx.example"), "zone.toml", "--session brings its own"),
        (("none.eml", *ENVELOPE), "zone.toml", "none.eml: cannot be read: No such file"),
        (("--session", "none.smtp"), "zone.toml", "none.smtp: cannot be read: No such file"),
        (("message.eml", *ENVELOPE, "--helo", "a\nb"), "zone.toml", "'a\\nb' cannot stand in a command"),
        (("message.eml", *ENVELOPE), "none.toml", "none.toml: No such file or directory"),
        (("message.eml", *ENVELOPE), "config.toml", "config.toml: smtpd: knows no 'hostname'"),
        (("message.eml", "--from", "a\nb", "--to", "c"), "zone.toml", "cannot stand in a command"),
    ],
)
def test_what_cannot_be_used_is_exit_status_2(desk: Path, arguments: tuple[str, ...], zone: str, problem: str) -> None:
    done = explain(desk, *arguments, zone=zone)
    assert (done.exit_code, done.stdout) == (2, "")
    assert problem in done.stderr


def test_the_page_is_shown_also_when_the_dns_cannot_be_recorded(desk: Path) -> None:
    done = explain(desk, "message.eml", *ENVELOPE, "--record", "no/z.toml")
    assert (done.exit_code, done.stderr) == (2, f"{desk / 'no/z.toml'}: No such file or directory\n")
    assert "250 2.0.0" in done.stdout


def test_an_ipv4_address_in_the_notation_of_ipv6_is_one(desk: Path) -> None:
    done = explain(desk, "message.eml", *ENVELOPE, "--ip", "::ffff:192.0.2.1", "--json")
    assert json.loads(done.stdout)["client"]["ip"] == "192.0.2.1"


def test_mistakes_of_the_configuration_are_exit_status_2(desk: Path) -> None:
    config = desk / "config.toml"
    config.write_text(config.read_text().replace("fail =", "fial ="))
    done = explain(desk, "message.eml", *ENVELOPE)
    assert done.exit_code == 2
    assert 'smtpd.filters.spf.fial: unknown key, did you mean "fail"?' in done.stderr


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7", 7.0), ("1970-01-01T00:00:07Z", 7.0), ("1970-01-01", 0.0), ("1970-01-01T01:00:00+01:00", 0.0)],
)
def test_times_are_in_utc_unless_they_say_otherwise(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds
