import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd.addresses import parse_address
from smtpd.rewriting import Rewriting, Target, make_mailbox, plain_folder


def values(user: str = "bob", detail: str = "", domain: str = "example.com") -> dict[str, str]:
    return {"user": user, "detail": detail, "local": f"{user}+{detail}" if detail else user, "domain": domain}


def test_short_forms_are_agent_deny_and_address() -> None:
    assert Target.read("store") == Target(agent="store")
    assert Target.read("deny") == Target(deny=True)
    assert Target.read("bob@example.com") == Target(mailbox="bob@example.com")
    assert Target.read(Target(folder="")) == Target(folder="")


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ({}, "must have an agent"),
        ({"deny": True, "agent": "store"}, "stands alone"),
        ({"deny": True, "folder": ""}, "stands alone"),
        ({"mailbox": "bob"}, "must be an address"),
        ({"mailbox": "a b@example.com"}, "is no address"),
        ({"mailbox": "bob@"}, "is no address"),
        ({"mailbox": "{user}@{user}"}, "its domain can hold {domain} only"),
        ({"mailbox": '"{user}"@example.com'}, "needs no quotes"),
        ({"mailbox": "{user!r}@example.com"}, "braces only around a name"),
        ({"mailbox": "{user:>99999999}@example.com"}, "braces only around a name"),
        ({"mailbox": "{@example.com"}, "braces only around a name"),
        ({"folder": "{}"}, "braces only around a name"),
        ({"folder": "../x"}, "is made of"),
        ({"folder": "/x"}, "is made of"),
        ({"folder": ".x"}, "is made of"),
        ({"folder": "a//b"}, "is made of"),
        ({"folder": "a/.{user}"}, "is made of"),
        ({"folder": " a"}, "is made of"),
        ({"folder": "a\n"}, "is made of"),
        ({"folder": "a" * 121}, "is made of"),
    ],
)
def test_target_that_makes_no_sense_is_refused(target: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Target.model_validate(target)


def test_parts_of_the_recipient_get_into_mailbox_and_folder() -> None:
    rewriting = Rewriting(Target(mailbox="{user}.{detail}@{domain}.test", folder="Lists/{detail}"))
    assert str(rewriting.mailbox(values(detail="News"))) == "bob.News@example.com.test"
    assert rewriting.folder(values(detail="News")) == "Lists/News"


def test_mailbox_without_parts_may_be_any_address() -> None:
    mailbox = Rewriting(Target(mailbox='"a/b"@example.com')).mailbox(values())
    assert mailbox == parse_address('"a/b"@example.com')


@pytest.mark.parametrize(
    ("local", "text"),
    [
        ("bob", "bob@example.com"),
        ("jörg", "jörg@example.com"),
        ("a b", '"a b"@example.com'),
        ('a"\\b', '"a\\"\\\\b"@example.com'),
        ("a>b", '"a>b"@example.com'),
        (".a", '".a"@example.com'),
        ("postmaster>", '"postmaster>"@example.com'),
    ],
)
def test_mailbox_is_quoted_where_it_must_be(local: str, text: str) -> None:
    made = make_mailbox(local, "example.com")
    assert made is not None
    assert (made.local, made.text) == (local, text)


@pytest.mark.parametrize("local", ["", "a/b", "a..b", "..", "a@b", "a%b", "b!a", "a\0b", "a\nb", "a\x85b", "a" * 300])
def test_what_could_be_a_path_or_a_route_makes_no_mailbox(local: str) -> None:
    assert make_mailbox(local, "example.com") is None


def test_domain_that_is_none_makes_no_mailbox() -> None:
    assert make_mailbox("bob", "[192.0.2.1].internal") is None


@pytest.mark.parametrize("detail", ["", "a/b", "..", ".a", "a.b", "\0", " a", "a ", "ä", "a\n", "a" * 121, "INBOX"])
def test_folder_that_is_no_plain_name_is_the_inbox(detail: str) -> None:
    assert plain_folder(detail) == ""
    assert Rewriting(Target(folder="{detail}")).folder(values(detail=detail)) == ""


def test_capture_cannot_add_a_level() -> None:
    assert Rewriting(Target(folder="Lists/{detail}")).folder(values(detail="a/b")) == ""
    assert Rewriting(Target(folder="Lists/x{detail}")).folder(values(detail="")) == ""


@given(st.text(), st.text())
def test_whatever_is_put_together_is_an_address_and_a_plain_folder(local: str, detail: str) -> None:
    made = make_mailbox(local, "example.com")
    if made is not None:
        assert parse_address(made.text) == made
        assert made.local == local
        assert not set(local) & set("/%!@\0\r\n")
    folder = Rewriting(Target(folder="L/{detail}")).folder(values(detail=detail))
    assert folder in ("", f"L/{detail}")
    assert plain_folder(detail) in ("", detail)
    assert folder == plain_folder(detail) == "" or (detail.isascii() and detail.isprintable() and "/" not in detail)
