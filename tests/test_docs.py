import grp
import json
import os
import pwd
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from click.testing import CliRunner

from smtpd import plugins
from smtpd.config import Config, check, developer_config
from smtpd.options import AgentOptions, FilterOptions, Options
from smtpd.reference import TEXTS, stale, write
from smtpd.reference.__main__ import reference
from smtpd.reference.describe import options_of
from smtpd.reference.own import own_plugins
from smtpd.reference.pages import TABLES

TOP = Path(__file__).resolve().parent.parent
COMMENTED = re.compile(r'^#(?=\[|"?[\w@*.-]+"? = )', re.MULTILINE)


@pytest.fixture
def sample(tmp_path: Path) -> str:
    """The sample with paths of files, a user and a group that exist."""
    certificate = trustme.CA().issue_cert("mail.example.com")
    for name in ("mail", "mx2", "metrics"):
        certificate.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.crt")
        certificate.private_key_pem.write_to_path(tmp_path / f"{name}.key")
    (tmp_path / "clients-ca.crt").write_text("")
    for secret in ("metrics-token", "smarthost-password"):
        (tmp_path / secret).write_text("secret\n")
    (tmp_path / "users").touch()
    text = TEXTS["config.toml"]()
    text = text.replace('user = "smtpd"', f'user = "{pwd.getpwuid(os.geteuid()).pw_name}"')
    text = text.replace('group = "smtpd"', f'group = "{grp.getgrgid(os.getegid()).gr_name}"')
    for directory in ("/etc/smtpd/certs", "/etc/smtpd", "/var/lib/smtpd"):
        text = text.replace(directory, str(tmp_path))
    return text


@pytest.mark.parametrize("name", TEXTS)
def test_made_texts_are_fresh(name: str) -> None:
    assert (TOP / name).read_text(encoding="utf-8") == TEXTS[name](), "run: python -m smtpd.reference"


def test_the_sample_loads_once_its_certificates_exist(sample: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(sample)
    report = check(path, {})
    assert report.problems == []
    assert report.warnings == []
    assert report.config is not None
    addresses = [listener.address for listener in report.config.listeners.values()]
    assert addresses == [(":25",), (":465",), (":587",), (":2525",)]


def test_every_commented_option_of_the_sample_is_valid(sample: str, tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    text = COMMENTED.sub("", sample).replace("/var/lib/smtpd", str(tmp_path)).replace("/usr/bin/procmail", "/bin/true")
    text = re.sub('^(token|password) = "change-me"$', "", text, flags=re.MULTILINE)
    path = tmp_path / "config.toml"
    path.write_text(text)
    assert check(path, {}).problems == []


def test_the_sample_shows_every_option(sample: str) -> None:
    shown = set(re.findall(r'^#?"?([\w-]+)"? = ', sample, re.MULTILINE))
    tables = {table for _, table in TABLES}
    for group in (plugins.FILTERS, plugins.AGENTS, plugins.PROVIDERS):
        tables |= {plugins.options_class(group, name) for name in own_plugins(group)}
    names = {option.name for table in tables for option in options_of(table)}
    headed = {name for name in Config.model_fields if f"[smtpd.{name}" in sample}
    assert names - shown <= headed | {"certificates"}


def test_defaults_in_the_sample_are_the_defaults(sample: str) -> None:
    section = sample.partition("[smtpd.limits]")[2].partition("\n\n")[0]
    table = tomllib.loads(COMMENTED.sub("", section))
    limits = Config.model_validate({"hostname": "a.example", "limits": table}).limits
    assert limits == Config(hostname="a.example").limits


def test_every_option_has_a_sentence() -> None:
    tables: list[type[Options]] = [table for _, table in TABLES] + [AgentOptions, FilterOptions]
    for group in (plugins.FILTERS, plugins.AGENTS, plugins.PROVIDERS):
        tables += [plugins.options_class(group, name) for name in own_plugins(group)]
    bare = [(table, option.name) for table in tables for option in options_of(table) if not option.sentence]
    assert bare == []


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_the_schema_hangs_together_and_knows_plug_ins() -> None:
    schema = json.loads(TEXTS["docs/config.schema.json"]())
    assert {name.rpartition("/")[2] for name in references(schema)} <= schema["$defs"].keys()
    root = schema["$defs"][schema["properties"]["smtpd"]["$ref"].rpartition("/")[2]]
    assert set(root["properties"]) == set(Config.model_fields)
    assert set(root["properties"]["filters"]["properties"]) == set(own_plugins(plugins.FILTERS))
    kinds = {
        rule["properties"]["type"]["const"]
        for choice in root["properties"]["agents"]["additionalProperties"]["anyOf"]
        for rule in choice.get("allOf", [])[1:]
    }
    assert kinds == set(own_plugins(plugins.AGENTS))


def test_stale_and_missing_texts_are_found_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(write(tmp_path)) == set(TEXTS)
    assert stale(tmp_path) == []
    (tmp_path / "docs" / "replies.md").write_text("old")
    (tmp_path / "config.toml").unlink()
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(reference, ["--check"])
    assert (found.exit_code, found.output) == (1, "stale: config.toml\nstale: docs/replies.md\n")
    assert CliRunner().invoke(reference, []).exit_code == 0
    assert CliRunner().invoke(reference, ["--check"]).exit_code == 0


def test_the_developer_set_up_is_valid(tmp_path: Path) -> None:
    config = developer_config(tmp_path, {"SMTPD__LISTENERS__ALT__ADDRESS": "127.0.0.1:0"})
    assert config.listeners["alt"].address == ("127.0.0.1:0",)
    assert set(config.domains) == {"example.test", "localhost"}
    assert config.agents["mailbox"].model_dump()["path"] == str(tmp_path / "var" / "mail")
    assert config.auth.providers == ("users",)
