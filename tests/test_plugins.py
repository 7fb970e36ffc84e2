from pathlib import Path

import pytest

from smtpd import plugins

MODULE = """
from smtpd.delivery import DeliveryAgent
from smtpd.options import Options

class Agent(DeliveryAgent): pass
class Naked: pass
class Odd(DeliveryAgent):
    Options = Options
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "found_plugins.py").write_text(MODULE)
    points = {
        "one": "t_agent = found_plugins:Agent\nt_twice = found_plugins:Agent\nt_naked = found_plugins:Naked\n"
        "t_odd = found_plugins:Odd\nt_gone = found_plugins:Gone\n",
        "two": "t_twice = found_plugins:Odd\nt_leaving = leaving_plugins:Agent\n",
    }
    (tmp_path / "leaving_plugins.py").write_text("import sys\nsys.exit('no license')\n")
    for name, lines in points.items():
        metadata = tmp_path / f"found_{name}-1.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: found-{name}\nVersion: 1\n")
        (metadata / "entry_points.txt").write_text(f"[{plugins.AGENTS}]\n{lines}")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("install")
def test_plug_ins_are_found_by_name() -> None:
    assert "t_agent" in plugins.names(plugins.AGENTS)
    assert "t_agent" not in plugins.names(plugins.FILTERS)
    assert plugins.find(plugins.AGENTS, "t_agent").__name__ == "Agent"


@pytest.mark.usefixtures("install")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("t_twice", "twice"),
        ("t_naked", "no subclass"),
        ("t_odd", "no Options"),
        ("t_gone", "cannot be imported"),
        ("t_leaving", "cannot be imported: SystemExit: no license"),
    ],
)
def test_broken_plug_ins_say_why(name: str, reason: str) -> None:
    with pytest.raises(plugins.BrokenPlugin, match=reason):
        plugins.find(plugins.AGENTS, name)


@pytest.mark.usefixtures("install")
def test_what_a_plug_in_has_left_out_is_told() -> None:
    assert plugins.oddities(plugins.AGENTS, "t_agent") == ("deliver is not defined, so all mail will be put off",)
    assert plugins.oddities(plugins.AGENTS, "discard") == plugins.oddities(plugins.AGENTS, "lmtp") == ()
    assert plugins.oddities(plugins.PROVIDERS, "file") == ()


def test_unknown_plug_ins_are_told_apart_from_broken_ones() -> None:
    with pytest.raises(plugins.UnknownPlugin, match="t_nothing"):
        plugins.find(plugins.AGENTS, "t_nothing")


@pytest.mark.parametrize(
    ("group", "reason"),
    [
        (
            "smtpd.delivery_agent",
            "as smtpd.delivery_agents, .* one in the entry-point group smtpd.delivery_agent$",
        ),
        ("smtpd.filters", "but there is one in the entry-point group smtpd.filters"),
        ("other.group", "nothing of type 't_lost' is installed$"),
    ],
)
def test_plug_in_in_the_wrong_group_is_found_there(
    group: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = tmp_path / "lost-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: lost\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(f"[{group}]\nt_lost = lost_plugin:Agent\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(plugins.UnknownPlugin, match=reason):
        plugins.find(plugins.AGENTS, "t_lost")


def test_provider_of_logins_has_to_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = tmp_path / "logins-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: logins\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(f"[{plugins.PROVIDERS}]\nt_login = found_logins:Users\n")
    (tmp_path / "found_logins.py").write_text("class Users:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(plugins.BrokenPlugin, match="no subclass of CredentialProvider"):
        plugins.find(plugins.PROVIDERS, "t_login")


def test_provider_that_cannot_check_a_password_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = tmp_path / "idle-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: idle\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(f"[{plugins.PROVIDERS}]\nt_idle = found_idle:Users\n")
    (tmp_path / "found_idle.py").write_text("from smtpd.auth import CredentialProvider as P\nclass Users(P): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert plugins.oddities(plugins.PROVIDERS, "t_idle") == ("check_password is not defined, so nobody can log in",)
