"""The mailbox grammar of RFC 5321 §4.1.2 and RFC 6531 §3.3."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd.addresses import Address, AddressError, normalise_domain, parse_address, parse_path

ATOM = st.text("abcXYZ019!#$%&'*+-/=?^_`{|}~", min_size=1, max_size=12)
LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)


def problem_of(text: str, *, strict: bool = False) -> str:
    with pytest.raises(AddressError) as caught:
        parse_path(text, strict=strict)
    return caught.value.problem


@pytest.mark.parametrize(
    ("text", "local", "domain", "delivered"),
    [
        ("<a@b>", "a", "b", "a@b"),
        ("<John.Smith@Mail.EXAMPLE.org>", "John.Smith", "mail.example.org", "John.Smith@Mail.EXAMPLE.org"),
        ("<a+b=c{d}!#$%&'*/?^_`|~-@x.y>", "a+b=c{d}!#$%&'*/?^_`|~-", "x.y", "a+b=c{d}!#$%&'*/?^_`|~-@x.y"),
        ("<@relay.test:user@d.test>", "user", "d.test", "user@d.test"),
        ("<@hosta.int,@jkl.org:userc@d.bar.org>", "userc", "d.bar.org", "userc@d.bar.org"),
        ('<"a b"@x>', "a b", "x", '"a b"@x'),
        ('<"a\\"\\\\b"@x>', 'a"\\b', "x", '"a\\"\\\\b"@x'),
        ('<"a@b"@us.test>', "a@b", "us.test", '"a@b"@us.test'),
        ('<"a>b"@x>', "a>b", "x", '"a>b"@x'),
        ("<user%d@us.test>", "user%d", "us.test", "user%d@us.test"),
        ("<a@[192.0.2.1]>", "a", "[192.0.2.1]", "a@[192.0.2.1]"),
        ("<a@[IPv6:2001:DB8:0::1]>", "a", "[ipv6:2001:db8::1]", "a@[IPv6:2001:DB8:0::1]"),
        ("<a@mail_1.example.org>", "a", "mail_1.example.org", "a@mail_1.example.org"),
        ("<a@r3---sn.example.org>", "a", "r3---sn.example.org", "a@r3---sn.example.org"),
        ("<a@XN--BCHER-KVA.example>", "a", "xn--bcher-kva.example", "a@XN--BCHER-KVA.example"),
        ("<grå@bücher.example>", "grå", "xn--bcher-kva.example", "grå@bücher.example"),
        ("<a@BÜCHER。example>", "a", "xn--bcher-kva.example", "a@BÜCHER。example"),
        ("<a@faß.example>", "a", "xn--fa-hia.example", "a@faß.example"),
        ("<a@_x.bücher.example>", "a", "_x.xn--bcher-kva.example", "a@_x.bücher.example"),
        ('<"å b"@x>', "å b", "x", '"å b"@x'),
    ],
)
def test_path_is_taken_apart(text: str, local: str, domain: str, delivered: str) -> None:
    address, rest = parse_path(text + " SIZE=1")
    assert (address.local, address.domain, address.text, rest) == (local, domain, delivered, " SIZE=1")
    assert str(address) == delivered


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "it does not stand in angle brackets"),
        ("a@b", "it does not stand in angle brackets"),
        (" <a@b>", "it does not stand in angle brackets"),
        ("<a@b", "the closing angle bracket is missing"),
        ("<", "the closing angle bracket is missing"),
        ("<a>", "the domain is missing"),
        ("<@a:postmaster>", "the domain is missing"),
        ('<"postmaster">', "the domain is missing"),
        ("<@b>", "the local part is empty"),
        ('<""@b>', "the local part is empty"),
        ("<@a,@b:>", "the local part is empty"),
        ("<a@>", "the domain has an empty label"),
        ("<.a@b>", "the local part has a dot too many"),
        ("<a.@b>", "the local part has a dot too many"),
        ("<a..b@c>", "the local part has a dot too many"),
        ("<(x)a@b>", "the local part has a character that needs quotes"),
        ("<a,b@c>", "the local part has a character that needs quotes"),
        ("<a@b@c>", "it does not read local-part@domain"),
        ("<a b@c>", "it does not read local-part@domain"),
        ("<a@b c>", "it does not read local-part@domain"),
        ("< a@b>", "it does not read local-part@domain"),
        ("<<a@b>>", "it does not read local-part@domain"),
        ('<"a"b@c>', "it does not read local-part@domain"),
        ('<"a@c>', "it does not read local-part@domain"),
        ('<"a\\"@c>', "it does not read local-part@domain"),
        ("<a\\b@c>", "it does not read local-part@domain"),
        ("<@a;@b:c@d>", "it does not read local-part@domain"),
        ('<"a\tb"@c>', "it does not read local-part@domain"),
        ('<"a\\\x7fb"@c>', "it does not read local-part@domain"),
        ('<"a\\å"@c>', "it does not read local-part@domain"),
        ("<a\x00@c>", "the local part has a character that needs quotes"),
        ("<a\x85b@c>", "it does not read local-part@domain"),
        ("<a@b.>", "the domain has an empty label"),
        ("<a@.b>", "the domain has an empty label"),
        ("<a@b..c>", "the domain has an empty label"),
        ("<a@-b>", "a label of the domain starts or ends with a hyphen"),
        ("<a@b-.c>", "a label of the domain starts or ends with a hyphen"),
        ("<a@b.-c>", "a label of the domain starts or ends with a hyphen"),
        ("<@-r:a@b>", "a label of the domain starts or ends with a hyphen"),
        ("<a@b!c>", "the domain has a character that no host name has"),
        ("<a@b＠c>", "the domain has a character that no host name has"),
        ("<a@\u0300b.c>", "the domain is no internationalised name"),
        ("<a@\u2028.c>", "it does not read local-part@domain"),
        ("<a@[192.0.2.256]>", "the address literal is neither IPv4 nor IPv6"),
        ("<a@[192.0.2]>", "the address literal is neither IPv4 nor IPv6"),
        ("<a@[010.0.0.1]>", "the address literal is neither IPv4 nor IPv6"),
        ("<a@[2001:db8::1]>", "the address literal is neither IPv4 nor IPv6"),
        ("<a@[IPv6:1::2::3]>", "the address literal is neither IPv4 nor IPv6"),
        ("<a@[IPv6:fe80::1%eth0]>", "the address literal is neither IPv4 nor IPv6"),
        ("<a@[x-tag:abc]>", "the address literal is neither IPv4 nor IPv6"),
        ("<a@[]>", "the address literal is neither IPv4 nor IPv6"),
    ],
)
def test_what_is_no_path_is_refused_with_a_reason(text: str, problem: str) -> None:
    assert problem_of(text) == problem


def test_sizes_are_those_of_rfc_5321_in_octets() -> None:
    label = "d" * 63
    assert parse_path(f"<{'a' * 64}@b>")[0].local == "a" * 64
    assert parse_path(f"<{'å' * 32}@b>")[0].local == "å" * 32
    assert parse_path(f"<{'a' * 200}@b>")[0].local == "a" * 200
    for local in ("a" * 65, "å" * 33):
        with pytest.raises(AddressError, match="longer than 64 octets"):
            parse_path(f"<{local}@b>", strict=True)
    assert parse_path(f"<a@{label}.b>")[0].domain == f"{label}.b"
    assert problem_of(f"<a@{label}d>") == "the domain has a label longer than 63 octets"
    assert problem_of(f"<a@b.{label}d>") == "the domain has a label longer than 63 octets"
    longest = f"<{'a' * 62}@{label}.{label}.{label}>"
    assert len(longest) == 256
    assert parse_path(longest)[0].text == longest[1:-1]
    assert problem_of(longest.replace("@", "a@")) == "the path is longer than 256 octets"
    assert problem_of(f"<@r:{longest[1:]}") == "the path is longer than 256 octets"
    assert problem_of(f"<a@{'ü' * 60}.b>") == "the domain is no internationalised name"
    assert normalise_domain(f"{label}.{label}.{label}.{label}") == f"{label}.{label}.{label}.{label}"
    with pytest.raises(AddressError, match="longer than 255 octets"):
        normalise_domain(f"{label}.{label}.{label}.{label}.")


def test_empty_path_is_the_null_address() -> None:
    address, rest = parse_path("<> BODY=7BIT")
    assert address is Address.null
    assert rest == " BODY=7BIT"
    assert address.is_null
    assert str(address) == ""
    assert not parse_path("<a@b>")[0].is_null


@pytest.mark.parametrize("text", ["Postmaster", "postmaster", "POSTMASTER"])
def test_postmaster_needs_no_domain_in_any_case(text: str) -> None:
    address, _ = parse_path(f"<{text}>")
    assert (address.local, address.domain, address.text) == (text, "", text)
    assert not address.is_null
    assert address.key == "postmaster@"


def test_key_ignores_quotes_case_and_composition() -> None:
    assert parse_address('"abc"@X').key == parse_address("aBc@x").key == "abc@x"
    assert parse_address("re\u0301ne\u0301@x").key == parse_address("RÉNÉ@x").key
    # Case folding parts an iota subscript from its letter, so the order of marks must be settled before it.
    assert parse_address("\u03b1\u0345\u0301@x").key == parse_address("\u1fb4@x").key
    assert parse_address("re\u0301@x").local == "re\u0301"
    assert parse_address("a@x").local_key == "a"


def test_kind_of_an_address_is_known() -> None:
    assert parse_address("a@[192.0.2.1]").is_literal
    assert not parse_address("a@b").is_literal
    assert parse_address("a@b").is_ascii
    assert not parse_address("a@bücher.example").is_ascii
    assert not parse_address("å@b").is_ascii


def test_strict_refuses_what_is_only_tolerated() -> None:
    assert problem_of("<a@b_c.test>", strict=True) == "the domain has an underscore"
    assert problem_of("<a@BÜCHER.test>", strict=True) == "the domain is no internationalised name"
    assert parse_path("<a@bücher.test>", strict=True)[0].domain == "xn--bcher-kva.test"
    assert parse_path("<a@B.test>", strict=True)[0].domain == "b.test"


@pytest.mark.parametrize("text", ["", "<a@b>", "a@b> x", "@r:a@b", "a@b ", " a@b", "a", "a@b>"])
def test_address_in_the_configuration_stands_alone(text: str) -> None:
    with pytest.raises(AddressError):
        parse_address(text)


def test_domain_in_the_configuration_is_normalised() -> None:
    assert normalise_domain("Bücher.Example") == "xn--bcher-kva.example"
    assert normalise_domain("[IPv6:2001:DB8::1]") == "[ipv6:2001:db8::1]"
    assert normalise_domain("EXAMPLE.org") == "example.org"
    for text in ("", "a..b", "example.org.", "a b", "[::1]", "\ud800", "[", "a\n"):
        with pytest.raises(AddressError):
            normalise_domain(text)


@given(st.lists(ATOM, min_size=1, max_size=4), st.lists(LABEL, min_size=1, max_size=4))
def test_every_plain_mailbox_is_read_back_as_it_was(atoms: list[str], labels: list[str]) -> None:
    local, domain = ".".join(atoms), ".".join(labels)
    expected = Address(local, domain, f"{local}@{domain}")
    assert parse_path(f"<{expected}>") == (expected, "")
    assert parse_path(f"<{expected}>", strict=True) == (expected, "")


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=30))
def test_every_printable_local_part_can_be_quoted(local: str) -> None:
    quoted = '"' + local.replace("\\", "\\\\").replace('"', '\\"') + '"'
    assert parse_path(f"<{quoted}@x>") == (Address(local, "x", f"{quoted}@x"), "")


@given(st.text(max_size=80), st.booleans())
def test_no_text_raises_anything_but_address_error(text: str, strict: bool) -> None:
    for candidate in (text, f"<{text}>", f"<{text}@b>", f"<a@{text}>", f'<"{text}"@b>', f"<@{text}:a@b>"):
        problem, address = "", Address.null
        try:
            address, _ = parse_path(candidate, strict=strict)
        except AddressError as error:
            problem = error.problem
        assert problem.isascii()
        assert problem.isprintable()
        if not problem:
            assert address.domain.isascii()
            assert not any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 for char in address.text)
            if not address.is_null:
                assert parse_address(address.text) == address
                assert address.key.endswith("@" + address.domain)


@given(st.text(max_size=80))
def test_normalising_a_domain_twice_changes_nothing(text: str) -> None:
    try:
        domain = normalise_domain(text)
    except AddressError:
        return
    assert domain.isascii()
    assert normalise_domain(domain) == domain
