import pytest

from smtpd.config import ConfigError, Listener, from_tables, split_address


@pytest.mark.parametrize(
    ("mode", "tls", "required", "auth", "ends", "tickets"),
    [
        ("smtp", "starttls", False, "off", "reject", False),
        ("smtps", "implicit", True, "required", "normalise", True),
        ("submission", "starttls", True, "required", "normalise", True),
        ("alt", "starttls", False, "optional", "reject", False),
    ],
)
def test_modes_are_presets(mode: str, tls: str, required: bool, auth: str, ends: str, tickets: bool) -> None:
    switches = Listener.model_validate({"address": ":25", "mode": mode}).switches()
    assert (switches.tls, switches.tls_required, switches.auth) == (tls, required, auth)
    assert (switches.bare_line_ends, switches.session_tickets) == (ends, tickets)
    assert switches.chunking
    assert switches.smtputf8
    assert switches.pipelining


def test_each_switch_can_be_overridden() -> None:
    table = {
        "address": [":587", "[::1]:588"], "mode": "submission", "tls": "off", "auth": "optional",
        "bare_line_ends": "reject", "chunking": False, "smtputf8": False, "pipelining": False,
        "session_tickets": False, "client_certificates": "optional",
    }  # fmt: skip
    switches = Listener.model_validate(table).switches()
    assert switches.tls_required is False
    for name in set(table) - {"address", "mode"}:
        assert getattr(switches, name) == table[name]


@pytest.mark.parametrize("mode", ["LMTP", "SMTP", ""])
def test_modes_that_do_not_exist_are_refused(mode: str) -> None:
    with pytest.raises(ValueError, match="mode"):
        Listener.model_validate({"address": ":25", "mode": mode})


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        (":25", ("tcp", "", 25)),
        ("127.0.0.1:25", ("tcp", "127.0.0.1", 25)),
        ("[::1]:25", ("tcp", "::1", 25)),
        ("unix:/run/x.sock", ("unix", "/run/x.sock", 0)),
        ("systemd", ("systemd", "", 0)),
        ("systemd:smtp", ("systemd", "smtp", 0)),
    ],
)
def test_addresses_are_taken_apart(address: str, parts: tuple[str, str, int]) -> None:
    assert split_address(address) == parts


@pytest.mark.parametrize("address", ["25", "::1:25", "host:", "host:70000", "host:٢", "unix:", "", "systemdx"])
def test_addresses_that_are_none_are_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"must look|needs a path"):
        split_address(address)


def test_lmtp_stays_away_from_port_25() -> None:
    listeners = {"mta": {"address": ["127.0.0.1:25", "127.0.0.1:24", "unix:/run/x"], "mode": "lmtp"}}
    with pytest.raises(ConfigError) as raised:
        from_tables({"hostname": "mx.test", "listeners": listeners})
    assert ["port 25" in str(problem) for problem in raised.value.problems] == [True]
