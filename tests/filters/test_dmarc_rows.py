"""What the report file says, and that it never stands in the way of mail."""

import fcntl
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from log_lines import Lines

from filters.dmarc_rows import COMPLAIN_SECONDS, LOOK_SECONDS, RowFile
from smtpd.config import LogOptions
from smtpd.findings import DkimResults, DkimSignature, SpfCheck, SpfResults, TrustedForwarder
from smtpd.log import Log
from tests.filters.dmarc_bench import UNSIGNED, Bench, dkim, spf

WANTED = {"bank.example": "p=reject; np=none; adkim=s; t=n; fo=1; rua=mailto:dmarc@bank.example"}


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_a_row_has_what_an_aggregate_report_needs(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    signatures = DkimResults((
        DkimSignature("fail", "other.example", "a", reason="wrong body hash"),
        DkimSignature("pass", "evil.example", "b"),
        DkimSignature("fail", "bank.example", "c"),
    ))  # fmt: skip
    check = SpfCheck("softfail", "mailfrom", "evil.example", "eve@evil.example", "not listed")
    async with Bench((SpfResults(check), signatures), records=WANTED, report_file=str(path)) as bench:
        bench.filter.services = replace(bench.filter.services, now=lambda: 1798761600.9)
        assert (await bench.send(sender="eve@evil.example")).startswith("550 ")
    assert rows(path) == [{
        "begin": 1798761600,
        "policy_published": {
            "domain": "bank.example", "discovery_method": "treewalk", "p": "reject", "sp": None, "np": "none",
            "adkim": "s", "aspf": "r", "fo": "1", "testing": "n",
        },
        "rua": ["mailto:dmarc@bank.example"],
        "source_ip": "192.0.2.1",
        "count": 1,
        "disposition": "reject",
        "dkim": "fail",
        "spf": "fail",
        "reason": [],
        "header_from": "bank.example",
        "envelope_from": "evil.example",
        "auth_results": {
            "dkim": [
                {"domain": "evil.example", "selector": "b", "result": "pass"},
                {"domain": "bank.example", "selector": "c", "result": "fail"},
                {"domain": "other.example", "selector": "a", "result": "fail", "human_result": "wrong body hash"},
            ],
            "spf": {"domain": "evil.example", "scope": "mfrom", "result": "softfail", "human_result": "not listed"},
        },
    }]  # fmt: skip


async def test_both_mechanisms_are_told_even_when_one_would_do(tmp_path: Path) -> None:
    facts = (spf("pass", "bank.example"), dkim("pass", "bank.example"))
    async with Bench(facts, records=WANTED, report_file=str(tmp_path / "rows")) as bench:
        assert (await bench.send(sender="")).startswith("250 ")
    row = rows(tmp_path / "rows")[0]
    assert (row["dkim"], row["spf"], row["disposition"], row["envelope_from"]) == ("pass", "pass", "none", "")


async def test_reasons_and_recipients_are_told(tmp_path: Path) -> None:
    facts = (spf(), UNSIGNED, TrustedForwarder("university", frozenset()))
    records = {"bank.example": "p=reject; pct=0; rua=mailto:d@bank.example"}
    options = {"report_file": str(tmp_path / "rows"), "report_recipients": True, "pct": "apply"}
    async with Bench(facts, records=records, **options) as bench:
        await bench.send(recipients=["ann@example.test", "bob@example.test"])
    row = rows(tmp_path / "rows")[0]
    assert row["envelope_to"] == ["example.test"]
    assert row["disposition"] == "none"
    assert row["reason"] == [
        {"type": "sampled_out", "comment": "pct=0"}, {"type": "trusted_forwarder", "comment": "university"},
    ]  # fmt: skip


async def test_only_domains_that_want_reports_get_rows_one_for_each_author(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    records = {**WANTED, "shop.example": "p=none; rua=mailto:d@shop.example", "mute.example": "p=reject"}
    async with Bench(records=records, report_file=str(path)) as bench:
        for author in ("a@mute.example", "a@free.example", "a@[192.0.2.1]"):
            await bench.send(f"From: {author}\n\nHello\n")
        assert not path.exists()
        await bench.send("From: a@shop.example, b@mute.example, c@mail.bank.example\n\nHello\n")
    assert [row["header_from"] for row in rows(path)] == ["shop.example", "mail.bank.example"]
    assert rows(path)[1]["policy_published"]["domain"] == "bank.example"


async def test_what_a_stranger_says_stays_one_line_of_ascii(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    evil = DkimResults((DkimSignature("fail", 'x"\r\n{"begin":1}', "\u2028", reason="y" * 5000),))
    async with Bench((spf(), evil), records=WANTED, report_file=str(path)) as bench:
        await bench.send()
    assert path.read_bytes().count(b"\n") == 1
    assert path.read_bytes().isascii()
    assert len(path.read_bytes()) < 2000


async def test_mail_goes_on_when_the_file_cannot_be_written(tmp_path: Path) -> None:
    records = {"bank.example": "p=none; rua=mailto:d@bank.example"}
    async with Bench(records=records, report_file=str(tmp_path / "missing" / "rows")) as bench:
        for _ in range(3):
            assert (await bench.send()).startswith("250 ")
        lines = [line for line in bench.server.log if line["event"] == "dmarc-rows-lost"]
        assert [(line["level"], line["lost"], line["problem"]) for line in lines] == [
            ("warning", 1, "No such file or directory"),
        ]  # fmt: skip


async def test_nothing_is_written_about_mail_of_users_who_logged_in(tmp_path: Path) -> None:
    async with Bench(records=WANTED, report_file=str(tmp_path / "rows")) as bench:
        await bench.send(login="joe")
    assert not (tmp_path / "rows").exists()


class Writer:
    """A RowFile whose clock stands still."""

    def __init__(self, path: Path, max_bytes: int = 1000) -> None:
        self.now = 0.0
        self.lines = Lines()
        self.log = Log(LogOptions(), sink=self.lines)
        self.file = RowFile(str(path), max_bytes, self.log, clock=lambda: self.now)

    def problems(self) -> list[tuple[int, str]]:
        self.log.flush()
        return [(line["lost"], line["problem"]) for line in self.lines.entries]


def test_a_file_that_was_moved_away_is_made_anew(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "rows")
    writer.file.write({"a": 1})
    (tmp_path / "rows").rename(tmp_path / "old")
    writer.file.write({"a": 2})
    writer.now += LOOK_SECONDS
    writer.file.write({"a": 3})
    writer.file.close()
    assert rows(tmp_path / "old") == [{"a": 1}, {"a": 2}]
    assert rows(tmp_path / "rows") == [{"a": 3}]
    assert (tmp_path / "rows").stat().st_mode & 0o777 == 0o640 & ~_umask()


def test_two_processes_can_share_a_file(tmp_path: Path) -> None:
    one, two = Writer(tmp_path / "rows"), Writer(tmp_path / "rows")
    for number in range(3):
        one.file.write({"a": number})
        two.file.write({"b": number})
    assert len(rows(tmp_path / "rows")) == 6
    one.file.close()
    two.file.close()


def test_a_full_file_is_left_alone_until_it_is_moved_away(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "rows", max_bytes=20)
    for number in range(5):
        writer.file.write({"a": number})
    assert rows(tmp_path / "rows") == [{"a": 0}, {"a": 1}]
    (tmp_path / "rows").unlink()
    writer.now += LOOK_SECONDS
    writer.file.write({"a": 5})
    writer.file.close()
    assert rows(tmp_path / "rows") == [{"a": 5}]
    assert writer.problems() == [(1, "it has 20 octets already")]


def test_losses_are_told_once_a_minute_with_their_number(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "none" / "rows")
    for _ in range(5):
        writer.file.write({"a": 1})
    writer.now += COMPLAIN_SECONDS
    writer.file.write({"a": 1})
    assert writer.problems() == [(1, "No such file or directory"), (5, "No such file or directory")]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_loses_rows_and_nothing_else() -> None:
    writer = Writer(Path("/dev/full"))
    writer.file.write({"a": 1})
    writer.file.close()
    assert writer.problems() == [(1, "No space left on device")]


def test_a_row_that_was_cut_does_not_spoil_the_next(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows")
    reader = os.open(tmp_path / "rows", os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
    writer = Writer(tmp_path / "rows", max_bytes=1 << 20)
    writer.file.write({"a": "x" * 6000})
    assert len(os.read(reader, 8192)) == 4096
    writer.file.write({"a": 1})
    assert os.read(reader, 8192) == b'\n{"a":1}\n'
    writer.file.close()
    os.close(reader)
    assert writer.problems() == [(1, "no space")]


def test_a_pipe_without_a_reader_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows")
    writer = Writer(tmp_path / "rows")
    writer.file.write({"a": 1})
    assert writer.problems() == [(1, "No such device or address")]


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
