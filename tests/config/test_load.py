from pathlib import Path
from typing import Any

import pytest
from configuration import FILES_ABSENT

from smtpd.config import ConfigError, from_tables, load

CONFIG = f"""
{FILES_ABSENT}
[smtpd.limits]
connections = 7
connections_per_ip = 3
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    return path


def test_tables_are_laid_over_those_of_the_file_and_left_as_they_are(path: Path) -> None:
    over: dict[str, Any] = {"limits": {"connections": 9}, "filters": {"access": {"deny_senders": ["@a.test"]}}}
    config = load(path, {}, over=over, files=False)
    assert (config.limits.connections, config.limits.connections_per_ip) == (9, 3)
    assert set(config.filters) == {"access"}
    assert over == {"limits": {"connections": 9}, "filters": {"access": {"deny_senders": ["@a.test"]}}}


def test_file_may_come_from_windows(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + CONFIG.replace("\n", "\r\n").encode())
    assert load(path, {}, files=False).limits.connections == 7


def test_a_mistake_in_what_is_laid_over_is_one(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"smtpd\.limits\.conections: unknown key"):
        load(path, {}, over={"limits": {"conections": 9}}, files=False)
    with pytest.raises(ConfigError, match=r"smtpd\.hostname: must be a string"):
        from_tables({"hostname": "mx.example.com"}, over={"hostname": 3})


def test_files_are_missed_only_by_who_serves(path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    assert [problem.key for problem in caught.value.problems] == [
        "smtpd.tls.cert_file", "smtpd.tls.key_file", "smtpd.metrics.token_file"
    ]  # fmt: skip
    assert load(path, {}, files=False).hostname == "mx.example.com"
