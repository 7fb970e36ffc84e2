from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from smtpd.addresses import Address, AddressError, parse_address, parse_path
from smtpd.model import Recipient
from smtpd.replies import Reply
from smtpd.rewriting import Target
from smtpd.routing import Router


def _router(recipients: Mapping[str, Target | str], folders: bool, separator: str) -> Router:
    return Router(
        {"example.com": "store", "*.example.com": "wild"},
        recipients,
        "smarthost",
        postmaster="",
        separator=separator,
        subaddress_folders=folders,
    )


_LOCALS = st.one_of(
    st.text(st.sampled_from('abAB+-./%!@"\\ _é\0\n{}>'), min_size=1, max_size=12),
    st.text(min_size=1, max_size=20),
    st.sampled_from(["postmaster", "bob", "bob+list", "gone", "old-x", "a-b", "bob+..", "bob+a/b", "../+x", "..+x"]),
)
_ADDRESSES = st.builds(
    lambda local, domain: Address(local, domain, f"{local}@{domain}"),
    _LOCALS,
    st.sampled_from(["example.com", "x.example.com", "elsewhere.test", "[192.0.2.1]", ""]),
)
_KEYS = st.sampled_from([
    "bob@example.com", "bob+list@example.com", "gone@example.com", "old-*@example.com", "@example.com",
    "@*.example.com", r"/(?P<user>.+)-(?P<box>.+)@example\.com/", r"/(?P<user>.*)\+(?P<box>.*)@(?:x\.)?example\.com/",
])  # fmt: skip
_TARGETS = st.one_of(
    st.sampled_from(["store", "deny", "carl@example.com"]).map(Target.read),
    st.builds(
        Target,
        agent=st.sampled_from(["", "lmtp"]),
        mailbox=st.sampled_from(["", "{user}@example.com", "{detail}{user}@example.com", "x.{local}@{domain}"]),
        folder=st.sampled_from(["Lists", "", "{user}", "Lists/{detail}", "{local}x", "IN{detail}"]),
    ),
)
_ROUTERS = st.builds(
    lambda recipients, folders, separator: _router(recipients, folders, separator),
    st.dictionaries(_KEYS, _TARGETS, max_size=5),
    st.booleans(),
    st.sampled_from(["+", "-", ""]),
)


@given(_ROUTERS, _ADDRESSES, st.booleans())
def test_no_address_makes_a_path_of_a_mailbox_or_folder(target: Router, address: Address, authenticated: bool) -> None:
    answer = target.route(address, authenticated=authenticated)
    if isinstance(answer, Reply):
        return
    assert answer.address is address
    assert answer.folder.isprintable()
    assert answer.folder.isascii()
    assert ".." not in answer.folder
    assert "/" not in answer.folder.removeprefix("Lists/")
    if answer.mailbox is not None:
        assert not [sign for sign in ("/", "..", "%", "!") if sign in answer.mailbox.local]
        assert not [sign for sign in answer.mailbox.text if sign < " " or "\x7f" <= sign <= "\x9f"]
        assert parse_address(answer.mailbox.text) == answer.mailbox
        assert answer.mailbox.domain in ("example.com", "x.example.com")


@given(_ROUTERS, _ADDRESSES, st.booleans())
def test_explained_route_is_the_route(target: Router, address: Address, authenticated: bool) -> None:
    routed = target.route(address, authenticated=authenticated)
    explained = target.explain(address, authenticated=authenticated)
    assert explained.steps
    if isinstance(routed, Reply):
        assert explained.answer == routed
        return
    assert isinstance(explained.answer, Recipient)
    compared = ("address", "agent", "mailbox", "folder", "exempt")
    assert [getattr(explained.answer, name) for name in compared] == [getattr(routed, name) for name in compared]


@given(st.text(max_size=300))
def test_any_text_that_is_an_address_is_routed(text: str) -> None:
    try:
        address, _ = parse_path(f"<{text}@example.com>")
    except AddressError:
        return
    answer = _router({"@example.com": Target(mailbox="{user}@example.com", folder="{detail}")}, True, "+").route(
        address, authenticated=False
    )
    assert isinstance(answer, Recipient | Reply)
