"""A relay that leads back to one of our own listeners is seen before the server starts, as far as it can be."""

from typing import Any

import pytest

from smtpd.config import ConfigError, from_tables


def tables(listens_at: str, relays_to: str) -> dict[str, Any]:
    return {
        "hostname": "MX.example.com",
        "listeners": {"smtp": {"address": listens_at, "mode": "smtp", "tls": "off"}},
        "relay": {"agent": "smarthost"},
        "agents": {"smarthost": {"type": "relay", "address": relays_to}},
    }


@pytest.mark.parametrize(
    ("listens_at", "relays_to"),
    [
        ("127.0.0.1:2525", "127.0.0.1:2525"),
        ("127.0.0.1:2525", "localhost:2525"),
        ("[::1]:2525", "LOCALHOST:2525"),
        ("[::1]:2525", "[::1]:2525"),
        (":2525", "127.0.0.2:2525"),
        (":2525", "[::1]:2525"),
        (":2525", "mx.example.com:2525"),
        ("0.0.0.0:2525", "127.0.0.1:2525"),
        ("[::]:2525", "[::1]:2525"),
        ("192.0.2.1:2525", "192.0.2.1:2525"),
        ("unix:/run/x.sock", "unix:/run/x.sock"),
    ],
)
def test_relay_to_ourselves_is_a_mistake(listens_at: str, relays_to: str) -> None:
    with pytest.raises(ConfigError, match=r"agents\.smarthost\.address: is listener smtp of this server"):
        from_tables(tables(listens_at, relays_to), files=False)


@pytest.mark.parametrize(
    ("listens_at", "relays_to"),
    [
        ("127.0.0.1:2525", "127.0.0.1:2526"),
        ("127.0.0.1:2525", "127.0.0.2:2525"),
        ("127.0.0.1:2525", "[::1]:2525"),
        ("0.0.0.0:2525", "[::1]:2525"),
        ("[::]:2525", "127.0.0.1:2525"),
        (":2525", "192.0.2.1:2525"),
        (":2525", "smtp.example.net:2525"),
        ("192.0.2.1:2525", "mx.example.com:2525"),
        ("127.0.0.1:0", "127.0.0.1:25"),
        ("unix:/run/x.sock", "unix:/run/y.sock"),
    ],
)
def test_relay_to_somebody_else_is_none(listens_at: str, relays_to: str) -> None:
    assert from_tables(tables(listens_at, relays_to), files=False).agents["smarthost"].next_hop() == relays_to
