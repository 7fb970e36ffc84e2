"""Where mail to postmaster goes when the recipient map has aliases, patterns and a catch-all."""

import pytest

from smtpd.addresses import parse_path
from smtpd.model import Recipient
from smtpd.rewriting import Target
from smtpd.routing import Router

DOMAINS = {"example.com": "store", "*.example.com": "wild"}


def reached(recipients: dict[str, Target | str], text: str, postmaster: str = "") -> str:
    """The agent and the mailbox it is asked for; no filter may refuse it."""
    address, _ = parse_path(f"<{text}>")
    answer = Router(DOMAINS, recipients, None, postmaster=postmaster).route(address, authenticated=False)
    assert isinstance(answer, Recipient)
    assert answer.exempt
    assert answer.address is address
    return f"{answer.agent} -> {answer.destination}" + (f" [{answer.folder}]" if answer.folder else "")


@pytest.mark.parametrize("text", ["Postmaster", "postmaster@example.com", "postmaster@x.example.com"])
@pytest.mark.parametrize("key", ["@example.com", "pm*@example.com", "/p.@example\\.com/"])
def test_mailbox_of_postmaster_may_be_a_recipient_by_a_catch_all_or_a_pattern(text: str, key: str) -> None:
    mapped = {key: Target(mailbox="bob@example.com", folder="Root")}
    assert reached(mapped, text, "pm@example.com") == "store -> bob@example.com [Root]"


@pytest.mark.parametrize("key", ["@example.com", "pm*@example.com", "pm@example.com"])
def test_mailbox_of_postmaster_is_never_denied(key: str) -> None:
    assert reached({key: "deny"}, "Postmaster", "pm@example.com") == "store -> pm@example.com"


def test_catch_all_does_not_take_the_mail_of_a_configured_postmaster() -> None:
    assert reached({"@example.com": "bob@example.com"}, "postmaster@example.com", "pm@x.example.com") == (
        "wild -> pm@x.example.com"
    )


@pytest.mark.parametrize("text", ["Postmaster", "postmaster@example.com"])
@pytest.mark.parametrize("key", ["@example.com", "post*@example.com", "postmaster@example.com"])
def test_postmaster_that_nobody_configured_has_the_aliases_of_everybody(text: str, key: str) -> None:
    mapped = {key: Target(mailbox="bob@example.com", folder="Root")}
    assert reached(mapped, text) == "store -> bob@example.com [Root]"


@pytest.mark.parametrize("text", ["Postmaster", "postmaster@example.com"])
@pytest.mark.parametrize("key", ["@example.com", "post*@example.com", "postmaster@example.com"])
def test_postmaster_that_nobody_configured_is_never_denied(text: str, key: str) -> None:
    assert reached({key: "deny"}, text) == "store -> postmaster@example.com"


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("postmaster@example.com", "in the map"),
        ("@example.com", "always reached, whatever the map refuses"),
    ],
)
def test_explanation_says_whether_the_map_names_postmaster(key: str, found: str) -> None:
    router = Router(DOMAINS, {key: "bob@example.com"}, None, postmaster="pm@example.com")
    address, _ = parse_path("<postmaster@example.com>")
    steps = router.explain(address, authenticated=False).steps
    assert [step.found for step in steps if step.looked_for == "postmaster"] == [found]
