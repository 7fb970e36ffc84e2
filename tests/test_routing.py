from collections.abc import Mapping

import pytest

from smtpd.addresses import parse_address, parse_path
from smtpd.model import Recipient
from smtpd.replies import Reply
from smtpd.rewriting import Target
from smtpd.routing import Router

DOMAINS = {"example.com": "store", "*.example.com": "wild", "*.deep.example.com": "deep", "Bücher.example": "books"}


def router(
    recipients: Mapping[str, Target | str] | None = None,
    *,
    domains: dict[str, str] = DOMAINS,
    relay: str | None = None,
    postmaster: str = "",
    separator: str = "+",
    case_sensitive: bool = False,
    subaddress_folders: bool = False,
) -> Router:
    return Router(
        domains,
        recipients or {},
        relay,
        postmaster=postmaster,
        separator=separator,
        case_sensitive=case_sensitive,
        subaddress_folders=subaddress_folders,
    )


def ask(target: Router, text: str, *, authenticated: bool = False) -> str:
    """The agent, "agent -> mailbox [folder]", or code and status."""
    address, _ = parse_path(f"<{text}>")
    answer = target.route(address, authenticated=authenticated)
    if isinstance(answer, Reply):
        return f"{answer.code} {answer.status}"
    assert answer.address is address
    mailbox = f" -> {answer.mailbox}" if answer.mailbox else ""
    return f"{answer.agent}{mailbox}" + (f" [{answer.folder}]" if answer.folder else "")


@pytest.mark.parametrize(
    ("text", "agent"),
    [
        ("a@example.com", "store"),
        ("a@EXAMPLE.com", "store"),
        ("a@x.example.com", "wild"),
        ("a@y.x.example.com", "wild"),
        ("a@x.deep.example.com", "deep"),
        ("a@deep.example.com", "wild"),
        ("a@bücher.example", "books"),
        ("a@xn--bcher-kva.example", "books"),
        ("a@badexample.com", "550 5.7.1"),
        ("a@example.com.evil", "550 5.7.1"),
    ],
)
def test_domain_is_found_exactly_then_by_its_longest_wildcard(text: str, agent: str) -> None:
    assert ask(router(), text) == agent


def test_star_takes_any_domain_but_no_address_literal() -> None:
    target = router(domains={"*": "all"})
    assert ask(target, "a@anything.test") == "all"
    assert ask(target, "a@[192.0.2.1]") == "550 5.7.1"
    assert ask(target, "a@[IPv6:2001:db8::1]") == "550 5.7.1"


@pytest.mark.parametrize("relay", [None, "smarthost"])
@pytest.mark.parametrize(
    "text",
    [
        "user%d.test@example.com",
        '"user@d.test"@example.com',
        '"user%d.test"@example.com',
        "d.test!user@example.com",
        "@example.com:user@d.test",
        "user@[192.0.2.1]",
        "user@[IPv6:2001:db8::1]",
        "user@d.test",
        "user@localhost",
        "user%example.com@d.test",
        "example.com!user@d.test",
        '"user@example.com"@d.test',
    ],
)
@pytest.mark.parametrize("mapped", [{}, {"somebody@example.com": "store"}])
def test_no_spelling_of_a_recipient_earns_relaying(text: str, relay: str | None, mapped: dict[str, str]) -> None:
    assert ask(router(mapped, relay=relay), text) == "550 5.7.1"


def test_login_and_relay_together_earn_relaying() -> None:
    assert ask(router(relay="smarthost"), "a@elsewhere.test", authenticated=True) == "smarthost"
    assert ask(router(), "a@elsewhere.test", authenticated=True) == "550 5.7.1"
    assert ask(router(relay="smarthost"), "a@example.com", authenticated=True) == "store"


def test_refusal_names_the_address() -> None:
    answer = router().route(parse_address("a@elsewhere.test"), authenticated=False)
    assert isinstance(answer, Reply)
    assert "a@elsewhere.test" in str(answer)


RECIPIENTS = {
    "bob@example.com": "one",
    "bob+list@example.com": "two",
    "gone@example.com": "deny",
    "*@example.com": "rest",
    "old-*@example.com": "deny",
    "old-but-first-*@example.com": "never",
    "new-*@example.com": "patterns",
}


@pytest.mark.parametrize(
    ("text", "agent"),
    [
        ("bob@example.com", "one"),
        ("BOB@example.com", "one"),
        ('"bob"@example.com', "one"),
        ("bob+list@example.com", "two"),
        ("bob+other@example.com", "one"),
        ("gone@example.com", "550 5.1.1"),
        ("gone+x@example.com", "550 5.1.1"),
        ("Old-stuff@example.com", "550 5.1.1"),
        ("old-but-first-x@example.com", "550 5.1.1"),
        ("new-x@example.com", "patterns"),
        ("nobody@example.com", "rest"),
        ("+x@example.com", "rest"),
        ("bob@x.example.com", "wild"),
    ],
)
def test_recipient_map_goes_from_the_exact_address_to_the_catch_all(text: str, agent: str) -> None:
    assert ask(router(RECIPIENTS), text) == agent


def test_catch_all_can_be_a_deny_with_exceptions() -> None:
    target = router({"bob@example.com": "store", "@example.com": "deny", "@*.example.com": "deny"})
    assert ask(target, "bob@example.com") == "store"
    assert ask(target, "other@example.com") == "550 5.1.1"
    assert ask(target, "other@x.example.com") == "550 5.1.1"


def test_separator_can_be_another_or_none() -> None:
    recipients = {"bob@example.com": "one"}
    assert ask(router(recipients, separator="-"), "bob-x@example.com") == "one"
    assert ask(router(recipients, separator=""), "bob+x@example.com") == "store"


def test_local_parts_are_compared_without_case_and_composition_unless_told_otherwise() -> None:
    recipients = {"Jos\u00e9@example.com": "one"}
    assert ask(router(recipients), "JOSE\u0301@example.com") == "one"
    exact = router(recipients, case_sensitive=True)
    assert ask(exact, "Jose\u0301@example.com") == "one"
    assert ask(exact, "jose\u0301@example.com") == "store"
    assert ask(router({"A*@example.com": "deny"}, case_sensitive=True), "abc@example.com") == "store"


def test_local_part_is_delivered_as_received() -> None:
    answer = router(RECIPIENTS).route(parse_address("BoB+Tag@example.com"), authenticated=False)
    assert isinstance(answer, Recipient)
    assert answer.destination.local == "BoB+Tag"


def test_map_can_name_another_mailbox_of_ours() -> None:
    target = router({"info@example.com": "bob@x.example.com", "@example.com": "Carl@example.com"})
    assert ask(target, "info@example.com") == "wild -> bob@x.example.com"
    assert ask(target, "any@example.com") == "store -> Carl@example.com"


def test_map_cannot_lead_outside_or_in_a_circle() -> None:
    with pytest.raises(ValueError, match="not in one of our domains"):
        router({"info@example.com": "bob@elsewhere.test"})
    with pytest.raises(ValueError, match="yet another address"):
        router({"a@example.com": "b@example.com", "b@example.com": "a@example.com"})


def test_map_cannot_lead_further_than_one_step() -> None:
    with pytest.raises(ValueError, match="yet another address"):
        router({"a@example.com": "b@example.com", "b@example.com": "c@example.com", "c@example.com": "c@example.com"})
    assert ask(router({"b@example.com": "b@example.com", "a@example.com": "b@example.com"}), "a@example.com") == (
        "store -> b@example.com"
    )


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        (Target(mailbox="{user}@mail.internal"), "needs an agent beside it"),
        (Target(mailbox="{user}@{domain}.internal"), "needs an agent beside it"),
        (Target(mailbox="{usr}@example.com"), "{usr} stands for nothing here"),
        (Target(folder="{folder}"), "{folder} stands for nothing here"),
    ],
)
def test_target_that_leads_nowhere_is_a_mistake(target: Target, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        router({"@example.com": target})


def test_store_can_be_asked_for_another_mailbox_than_the_client_named() -> None:
    target = router({"@example.com": Target(agent="lmtp", mailbox="{user}@mail.internal")})
    assert ask(target, "Bob+x@example.com") == "lmtp -> Bob@mail.internal"
    target = router({"@*.example.com": Target(mailbox="{user}.{detail}@{domain}")})
    assert ask(target, "bob+x@q.example.com") == "wild -> bob.x@q.example.com"
    target = router({"@example.com": Target(mailbox="{local}@a.deep.example.com")})
    assert ask(target, "bob+x@example.com") == "deep -> bob+x@a.deep.example.com"


def test_mailbox_of_the_map_has_the_agent_that_the_map_gives_it() -> None:
    target = router({"bob@example.com": "special", "info@example.com": Target(mailbox="bob@example.com")})
    assert ask(target, "info@example.com") == "special -> bob@example.com"


def test_alias_may_lead_to_an_address_that_is_closed_for_the_world() -> None:
    target = router({"hidden@example.com": "deny", "info@example.com": "hidden@example.com"})
    assert ask(target, "hidden@example.com") == "550 5.1.1"
    assert ask(target, "info@example.com") == "store -> hidden@example.com"


@pytest.mark.parametrize("text", ["a/b@example.com", '"a..b"@example.com', '"..+x"@example.com', '"@x"@example.com'])
def test_address_that_would_make_an_unsafe_mailbox_is_unknown(text: str) -> None:
    assert ask(router({"@example.com": Target(mailbox="{user}@example.com")}), text) == "550 5.1.1"


def test_parts_of_an_address_put_in_another_order_make_no_route() -> None:
    target = router({"@example.com": Target(agent="lmtp", mailbox="{detail}{user}@mail.internal")})
    assert ask(target, "%x+y@example.com") == "550 5.1.1"
    assert ask(target, "x+y@example.com") == "lmtp -> yx@mail.internal"
    target = router({"/(?P<rest>.+)@example.com/": Target(agent="lmtp", mailbox="y{rest}@mail.internal")})
    assert ask(target, "%x@example.com") == "550 5.1.1"
    assert ask(target, "x@example.com") == "lmtp -> yx@mail.internal"


def test_expression_does_not_name_what_once_made_hosts_relay() -> None:
    target = router({r"/.+@example\.com/": "one", "a%b@example.com": "two"}, relay="smarthost")
    assert ask(target, "ann@example.com") == "one"
    assert ask(target, "ann%x.test@example.com") == "550 5.7.1"
    assert ask(target, "a%b@example.com") == "two"


def test_captured_groups_become_mailbox_and_folder() -> None:
    expression = r"/^(?P<user>[a-z]+)-(?P<box>.+)@example\.com$/"
    target = router({expression: Target(mailbox="{user}@example.com", folder="Lists/{box}"), "@example.com": "deny"})
    assert ask(target, "Bob-News@EXAMPLE.com") == "store -> bob@example.com [Lists/news]"
    assert ask(target, "bob-a/b@example.com") == "store -> bob@example.com"
    assert ask(target, "bob-a.b@example.com") == "store -> bob@example.com"
    assert ask(target, "bob@example.com") == "550 5.1.1"


def test_deny_pattern_beats_an_expression_below_it_and_the_catch_all() -> None:
    target = router({"@example.com": "one", "old-*@example.com": "deny", r"/old-.*@example\.com/": "two"})
    assert ask(target, "old-x@example.com") == "550 5.1.1"
    assert ask(target, "new-x@example.com") == "one"


def test_detail_is_a_folder_only_when_asked_for() -> None:
    assert ask(router(), "bob+Tag@example.com") == "store"
    target = router(subaddress_folders=True)
    assert ask(target, "Bob+Tag@example.com") == "store -> Bob@example.com [Tag]"
    assert ask(target, "bob@example.com") == "store"
    assert ask(target, "bob+@example.com") == "store"
    assert ask(target, "+tag@example.com") == "store"
    assert ask(target, "bob+a.b@example.com") == "store"
    assert ask(target, '"bob+../../x"@example.com') == "store"
    assert ask(target, '"..+tag"@example.com') == "store"
    assert ask(target, "bob+tag@elsewhere.test") == "550 5.7.1"


def test_detail_of_the_mailbox_counts_and_a_named_address_has_none() -> None:
    recipients: dict[str, Target | str] = {
        "info@example.com": "bob+Info@example.com",
        "ann-marie@example.com": "one",
        "carl@example.com": "two",
        "dora@example.com": Target(folder=""),
        "old@example.com": Target(agent="lmtp", mailbox="{local}@mail.internal"),
    }
    assert ask(router(recipients, subaddress_folders=True), "info+x@example.com") == "store -> bob@example.com [Info]"
    assert ask(router(recipients, subaddress_folders=True), "carl+x@example.com") == "two -> carl@example.com [x]"
    assert ask(router(recipients, subaddress_folders=True), "dora+x@example.com") == "store"
    assert ask(router(recipients, subaddress_folders=True), "old+x@example.com") == "lmtp -> old@mail.internal [x]"
    assert ask(router(recipients, subaddress_folders=True, separator="-"), "ann-marie@example.com") == "one"
    assert ask(router(recipients, subaddress_folders=True, separator="-"), "ann-x@example.com") == (
        "store -> ann@example.com [x]"
    )


def test_folder_of_the_map_takes_the_place_of_the_detail() -> None:
    target = router({"bob+list@example.com": Target(folder="Lists/bob"), "bob@example.com": Target(folder="Rest")})
    assert ask(target, "bob+list@example.com") == "store -> bob@example.com [Lists/bob]"
    assert ask(target, "bob@example.com") == "store [Rest]"
    target = router({"list@example.com": Target(mailbox="bob+x@example.com", folder="Lists")})
    assert ask(target, "list@example.com") == "store -> bob+x@example.com [Lists]"


def test_mapped_local_part_may_hold_what_looks_like_a_route() -> None:
    assert ask(router({"a%b@example.com": "one"}), "a%b@example.com") == "one"


@pytest.mark.parametrize("key", ["@example.com", "a*@example.com", "*@example.com"])
def test_catch_all_does_not_take_what_once_made_hosts_relay(key: str) -> None:
    target = router({key: "one", "ann@example.com": "one", "a!deny@example.com": "deny"})
    assert ask(target, "ann@example.com") == "one"
    assert ask(target, "a%b.test@example.com") == "550 5.7.1"
    assert ask(target, "ann+x!y@example.com") == "550 5.7.1"
    assert ask(target, "a!deny@example.com") == "550 5.1.1"


@pytest.mark.parametrize("text", ["Postmaster", "POSTMASTER@example.com", '"postmaster"@x.example.com'])
def test_postmaster_is_exempt_and_goes_to_the_configured_mailbox(text: str) -> None:
    target = router({"postmaster@example.com": "deny", "@example.com": "deny"}, postmaster="root@deep.example.com")
    address, _ = parse_path(f"<{text}>")
    answer = target.route(address, authenticated=False)
    assert isinstance(answer, Recipient)
    assert answer.exempt
    assert (answer.agent, str(answer.destination)) == ("wild", "root@deep.example.com")


def test_postmaster_without_configuration_belongs_to_the_domain() -> None:
    assert ask(router({"*@example.com": "deny"}), "postmaster@example.com") == "store"
    assert ask(router(), "postmaster@x.example.com") == "wild"
    assert ask(router(), "Postmaster") == "store -> postmaster@example.com"
    assert ask(router(domains={"*": "all"}), "Postmaster") == "550 5.1.1"
    assert ask(router(domains={"*": "all"}, postmaster="root@example.com"), "Postmaster") == "all -> root@example.com"
    assert ask(router(), "postmaster@elsewhere.test") == "550 5.7.1"


def test_postmaster_of_one_domain_can_be_mapped() -> None:
    target = router({"postmaster@example.com": "one"}, postmaster="root@example.com")
    assert ask(target, "postmaster@example.com") == "one"
    answer = target.route(parse_address("postmaster@example.com"), authenticated=False)
    assert isinstance(answer, Recipient)
    assert answer.exempt


def test_mail_to_postmaster_goes_one_step_through_the_map() -> None:
    mapped = {"root@example.com": Target(mailbox="bob@x.example.com", folder="Root")}
    assert ask(router(mapped, postmaster="root@example.com"), "Postmaster") == "wild -> bob@x.example.com [Root]"
    closed = router({"root@example.com": "deny"}, postmaster="root@example.com")
    assert ask(closed, "postmaster@example.com") == "store -> root@example.com"


def test_postmaster_is_reached_even_if_its_mailbox_cannot_be_made() -> None:
    target = router({"postmaster@example.com": Target(mailbox="{detail}@example.com")})
    answer = target.route(parse_address("postmaster@example.com"), authenticated=False)
    assert isinstance(answer, Recipient)
    assert (answer.agent, answer.mailbox, answer.exempt) == ("store", None, True)


def test_ordinary_recipient_is_not_exempt() -> None:
    answer = router(postmaster="root@example.com").route(parse_address("root@example.com"), authenticated=False)
    assert isinstance(answer, Recipient)
    assert not answer.exempt


def test_explanation_shows_each_step_and_says_what_route_says() -> None:
    target = router({"old-*@example.com": "deny", "@example.com": "one"}, relay="smarthost")
    explained = target.explain(parse_address("Old-x@example.com"), authenticated=False)
    assert [(step.looked_for, step.found) for step in explained.steps] == [
        ("address Old-x@example.com", "compared as old-x@example.com"),
        ("domain example.com", 'one of ours by "example.com", agent "store"'),
        ("as it stands old-x@example.com", "not in the map"),
        ("pattern old-*@example.com", "deny"),
    ]
    assert isinstance(explained.answer, Reply)
    assert explained.answer.key == "no-such-user"


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("a@elsewhere.test", ("relay", 'agent "smarthost", not logged in')),
        ("a%b@example.com", ('"%", "!" or "@" inside the local part', "looks like a route, has to be in the map")),
        ("a/b@x.example.com", ("mailbox {user}@example.com", "this address makes none that is safe to ask for")),
        ("postmaster@example.com", ("postmaster", "always reached, whatever the map refuses")),
        ("a+b@example.com", ("subaddress b", "a folder")),
        ("a+b.c@example.com", ("subaddress b.c", "no folder name, left alone")),
    ],
)
def test_explanation_ends_with_what_decided(text: str, step: tuple[str, str]) -> None:
    mapped = {"@*.example.com": Target(mailbox="{user}@example.com")}
    target = router(mapped, relay="smarthost", subaddress_folders=True)
    last = target.explain(parse_address(text), authenticated=False).steps[-1]
    assert (last.looked_for, last.found) == step
