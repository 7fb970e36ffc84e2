import pytest

from smtpd.addresses import parse_address
from smtpd.recipient_map import Hit, RecipientMap, Step, compile_expression, is_expression
from smtpd.rewriting import Target

EXPRESSION = r"/(?P<user>[a-z]+)-(?P<folder>[a-z]+)?@example\.com/"


def find(targets: dict[str, str], text: str, *, case_sensitive: bool = False) -> Hit | None:
    return RecipientMap(targets, case_sensitive=case_sensitive).find(parse_address(text), "example.com")


def agent(targets: dict[str, str], text: str, *, case_sensitive: bool = False) -> str | None:
    hit = find(targets, text, case_sensitive=case_sensitive)
    return hit.rewriting.target.agent if hit is not None else None


def test_expression_stands_between_slashes() -> None:
    assert is_expression("/a@b/")
    assert not is_expression("/a@b")
    assert not is_expression("a/b@c")
    assert not is_expression("/")


def test_expression_is_matched_against_the_whole_address() -> None:
    assert agent({r"/a@example\.com/": "one"}, "a@example.com") == "one"
    assert agent({r"/a@example\.com/": "one"}, "ba@example.com") is None
    assert agent({r"/a@example/": "one"}, "a@example.com") is None


def test_expression_ignores_case_unless_local_parts_are_told_apart() -> None:
    assert agent({r"/Ab@example\.com/": "one"}, "aB@example.com") == "one"
    assert agent({r"/Ab@example\.com/": "one"}, "aB@example.com", case_sensitive=True) is None
    assert agent({r"/Ab@example\.com/": "one"}, "Ab@example.com", case_sensitive=True) == "one"


def test_groups_hold_what_they_have_captured() -> None:
    hit = find({EXPRESSION: "one"}, "Bob-News@example.com")
    assert hit is not None
    assert hit.groups == {"user": "bob", "folder": "news"}
    hit = find({EXPRESSION: "one"}, "bob-@example.com")
    assert hit is not None
    assert hit.groups == {"user": "bob", "folder": ""}


def test_globs_and_expressions_are_tried_in_the_order_of_the_file() -> None:
    first = {"a*@example.com": "glob", r"/a.*@example\.com/": "expression"}
    assert agent(first, "ab@example.com") == "glob"
    assert agent(dict(reversed(first.items())), "ab@example.com") == "expression"


def test_group_cannot_take_the_place_of_the_domain() -> None:
    with pytest.raises(ValueError, match="domain of the recipient"):
        compile_expression("/(?P<user>.+)=(?P<domain>.+)@example.com/")


def test_only_an_address_that_is_named_itself_is_a_whole_hit() -> None:
    targets = {"bob+x@example.com": "one", "bob@example.com": "two", "c*@example.com": "three"}
    hits = [find(targets, text) for text in ("bob+x@example.com", "bob+y@example.com", "carl@example.com")]
    assert [hit.is_whole for hit in hits if hit is not None] == [True, False, False]


def test_steps_say_what_was_looked_for_and_found() -> None:
    found: list[Step] = []
    targets: dict[str, Target | str] = {
        "bob@example.com": "one",
        EXPRESSION: "two",
        "x*@example.com": "deny",
        "@example.com": Target(folder=""),
    }
    RecipientMap(targets).find(parse_address("Ann+q@example.com"), "example.com", found)
    assert found == [
        Step("as it stands ann+q@example.com", "not in the map"),
        Step("without subaddress ann@example.com", "not in the map"),
        Step(f"pattern {EXPRESSION}", "does not match"),
        Step("pattern x*@example.com", "does not match"),
        Step("catch-all @example.com", "inbox"),
    ]
    found.clear()
    RecipientMap(targets).find(parse_address("ann-q@example.com"), "example.com", found)
    assert found[-1] == Step(f"pattern {EXPRESSION}", "agent \"two\", user='ann', folder='q'")


def test_names_in_braces_that_nothing_stands_for_are_found() -> None:
    targets = {
        "a@example.com": Target(mailbox="{usr}@example.com", folder="{folder}"),
        EXPRESSION: Target(mailbox="{user}@example.com", folder="{folder}"),
    }
    assert [found[:2] for found in RecipientMap(targets).unknown_parts()] == [
        ("a@example.com", "folder"),
        ("a@example.com", "usr"),
    ]
