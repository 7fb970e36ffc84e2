from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd.addresses import Address, parse_address
from smtpd.patterns import AddressSet, HostSet, NetworkSet, check_address, check_domain, check_host

NETWORKS = [ip_network(text) for text in ("192.0.2.0/24", "198.51.100.7", "2001:db8::/32", "::1")]


@pytest.mark.parametrize(
    "text", ["192.0.2.0", "192.0.2.255", "198.51.100.7", "2001:db8:1::", "::1", "::ffff:192.0.2.9"]
)
def test_an_address_is_found_in_its_network(text: str) -> None:
    assert ip_address(text) in NetworkSet(NETWORKS)


@pytest.mark.parametrize("text", ["192.0.3.0", "198.51.100.6", "2001:db9::", "::2", "::c000:201", "::ffff:192.0.3.9"])
def test_an_address_beside_a_network_is_not_found(text: str) -> None:
    assert ip_address(text) not in NetworkSet(NETWORKS)


def test_the_network_of_everybody_holds_one_family_only() -> None:
    assert ip_address("203.0.113.5") in NetworkSet([ip_network("0.0.0.0/0")])
    assert ip_address("2001:db8::1") not in NetworkSet([ip_network("0.0.0.0/0")])


@given(st.ip_addresses(), st.lists(st.tuples(st.ip_addresses(), st.integers(0, 32))))
def test_networks_are_found_as_ipaddress_finds_them(address, entries) -> None:  # type: ignore[no-untyped-def]
    networks = [ip_network((start, length), strict=False) for start, length in entries]
    known = NetworkSet(networks)
    plain = address if address.version == 4 or address.ipv4_mapped is None else address.ipv4_mapped
    assert (address in known) == any(address in network or plain in network for network in networks)


@pytest.mark.parametrize("name", ["bad.example", "BAD.example.", "a.worse.example", "a.b.Worse.Example", "[192.0.2.1]"])
def test_a_name_is_found_without_regard_to_case_and_final_dot(name: str) -> None:
    assert name in HostSet(["Bad.example", "*.worse.example", "[192.0.2.1]"])


@pytest.mark.parametrize(
    "name", ["", ".", "a.bad.example", "worse.example", "aworse.example", "example", "..", "a" * 500]
)
def test_a_name_beside_the_pattern_is_not_found(name: str) -> None:
    assert name not in HostSet(["bad.example", "*.worse.example"])


SENDERS = ["Joe@a.example", "@b.example", "@*.c.example", '"x y"@d.example', "@bücher.example"]


@pytest.mark.parametrize(
    "text",
    ["joe@A.example", '"JOE"@a.example', "any@b.example", "any@x.c.example", "any@x.y.c.example", '"X y"@d.example',
     "any@bücher.example", "any@xn--bcher-kva.example"],
)  # fmt: skip
def test_an_address_is_found_however_it_is_written(text: str) -> None:
    assert parse_address(text) in AddressSet(SENDERS)


@pytest.mark.parametrize("text", ["joe+x@a.example", "jo@a.example", "any@x.b.example", "any@c.example", "postmaster"])
def test_an_address_beside_the_pattern_is_not_found(text: str) -> None:
    assert parse_address(text) not in AddressSet(SENDERS)


def test_the_null_sender_is_in_no_list() -> None:
    assert Address.null not in AddressSet([*SENDERS, "@*.example"])


def test_nothing_is_in_an_empty_list() -> None:
    assert ip_address("::1") not in NetworkSet([])
    assert "a" not in HostSet([])
    assert parse_address("a@b") not in AddressSet([])


@pytest.mark.parametrize("pattern", ["", "*", "*.", "a*.example", "*.*.example", "a b", "bü cher.example"])
def test_a_host_pattern_that_could_never_match_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="must be a"):
        check_host(pattern)


@pytest.mark.parametrize("pattern", ["", "joe", "@", "@*.", "*@a.example", "a@b@c", "@a..example", "postmaster", "<>"])
def test_an_address_pattern_that_could_never_match_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="must look like"):
        check_address(pattern)


def test_a_pattern_beyond_ascii_becomes_what_clients_say() -> None:
    assert check_host("*.bücher.example") == "*.xn--bcher-kva.example"


@pytest.mark.parametrize(
    "pattern",
    ["", ".", "*", "*.", "*.*.example", "a b", "joe@a.example", "https://a.example", "a.example:25", "a..example",
     "[192.0.2.1]", "192.0.2.1", "192.0.2.0/24", "-a.example"],
)  # fmt: skip
def test_a_pattern_of_domains_that_no_mail_can_have_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="must be a domain"):
        check_domain(pattern)


@pytest.mark.parametrize(
    ("pattern", "kept"),
    [("A.example", "a.example"), ("*.a.example.", "*.a.example"), ("*.b\u00fccher.example", "*.xn--bcher-kva.example")],
)
def test_a_pattern_of_domains_is_kept_as_it_is_compared(pattern: str, kept: str) -> None:
    assert check_domain(pattern) == kept
