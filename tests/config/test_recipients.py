"""`[smtpd.recipients]`: the forms of keys and targets, and what leads nowhere."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from smtpd.config import Config, ConfigError, check, from_tables
from smtpd.rewriting import Target
from smtpd.routing import Router


def config(recipients: Mapping[str, object], **more: object) -> Config:
    return from_tables({
        "hostname": "mx.example.com",
        "domains": {"example.com": "store", "*.example.org": "store"},
        "agents": {"store": {"type": "discard", "allow_discard": True}},
        "recipients": recipients,
        **more,
    })  # fmt: skip


def complaints(recipients: Mapping[str, object], **more: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config(recipients, **more)
    return [f"{problem.key.removeprefix('smtpd.')}: {problem.message}" for problem in caught.value.problems]


def test_short_and_long_forms_can_be_mixed() -> None:
    found = config({
        "a@example.com": "store",
        "b@EXAMPLE.com": "deny",
        "c@example.com": "d@a.example.org",
        "e@example.com": {"agent": "store", "mailbox": "{user}@mail.internal", "folder": "E/{detail}"},
        "/f-(?P<box>.+)@example.com/": {"folder": "{box}"},
        "@example.com": {"deny": True},
    }).recipients  # fmt: skip
    assert found == {
        "a@example.com": Target(agent="store"),
        "b@example.com": Target(deny=True),
        "c@example.com": Target(mailbox="d@a.example.org"),
        "e@example.com": Target(agent="store", mailbox="{user}@mail.internal", folder="E/{detail}"),
        "/f-(?P<box>.+)@example.com/": Target(folder="{box}"),
        "@example.com": Target(deny=True),
    }


def test_what_can_be_loaded_can_be_routed_with() -> None:
    Router.from_config(config({"c@example.com": "d@a.example.org"}, subaddress_folders=True))


@pytest.mark.parametrize(
    ("key", "target", "complaint"),
    [
        ("a@example.com", "stor", 'recipients."a@example.com": there is no agent "stor"'),
        ("a@example.com", {"agent": "stor"}, 'recipients."a@example.com": there is no agent "stor"'),
        (
            "a@example.com",
            "",
            'recipients."a@example.com": must be the name of an agent, "deny", an address or a table',
        ),
        ("a@example.com", 5, 'recipients."a@example.com": must be the name of an agent, "deny", an address or a table'),
        ("a@example.com", {}, 'recipients."a@example.com": must have an agent, a mailbox, a folder or deny = true'),
        ("a@example.com", {"agnt": "store"}, 'recipients."a@example.com".agnt: unknown key'),
        ("a@example.com", {"folder": "../x"}, 'recipients."a@example.com".folder: is made of letters'),
        ("a@example.com", {"folder": "{x}"}, 'recipients."a@example.com": {x} stands for nothing here'),
        ("a@example.com", "a b@example.com", 'recipients."a@example.com": is no address'),
        ("a@example.com", "b@other.test", 'recipients."a@example.com": b@other.test is not in one of our domains'),
        ("/(a+)+@x/", "store", 'recipients."/(a+)+@x/": could take too long'),
        ("/(/", "store", 'recipients."/(/": is no regular expression'),
        ("/(?P<domain>.+)/", "store", 'recipients."/(?P<domain>.+)/": may not name a group "domain"'),
        ("//", "store", 'recipients."//": a regular expression has 1 to'),
    ],
)
def test_mistakes_are_named_with_their_place(key: str, target: object, complaint: str) -> None:
    (found, *_) = complaints({key: target})
    assert found.startswith(complaint)


def test_unknown_key_of_a_target_comes_with_a_suggestion() -> None:
    with pytest.raises(ConfigError) as caught:
        config({"a@example.com": {"mailbx": "b@example.com", "folder": "x"}})
    assert [problem.suggestion for problem in caught.value.problems] == ["mailbox"]


def test_alias_goes_one_step_and_never_in_a_circle() -> None:
    circle = {"a@example.com": "b@example.com", "b@example.com": "a@example.com"}
    assert complaints(circle) == [
        'recipients."a@example.com": b@example.com leads to yet another address, a@example.com',
        'recipients."b@example.com": a@example.com leads to yet another address, b@example.com',
    ]
    chain = {"a@example.com": "b@example.com", "b@example.com": "c@example.com", "c@example.com": "c@example.com"}
    assert len(complaints(chain)) == 1


def test_aliases_are_not_judged_by_domains_that_could_not_be_read() -> None:
    found = complaints({"a@example.com": "b@other.test"}, domains={"not a domain": "store"})
    assert [complaint.partition(": ")[0] for complaint in found] == ['domains."not a domain"']


def test_subaddress_folders_need_a_separator() -> None:
    assert complaints({}, subaddress_folders=True, subaddress_separator="") == [
        "subaddress_folders: needs a subaddress_separator"
    ]


def test_agent_that_only_the_map_names_is_used(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    discard = 'type = "discard"\nallow_discard = true\n'
    path.write_text(
        f'[smtpd]\nhostname = "mx.example.com"\n[smtpd.agents.one]\n{discard}[smtpd.agents.two]\n{discard}'
        '[smtpd.domains]\n"example.com" = "one"\n[smtpd.recipients."a@example.com"]\nagent = "two"\nfolder = "A"\n'
    )
    report = check(path, {})
    assert report.config is not None
    assert [warning.key for warning in report.warnings if "agents" in warning.key] == []
