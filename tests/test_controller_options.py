"""What options of aiosmtpd's controllers come to, and that none is silently ignored."""

import inspect
import re
import ssl
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP
from pydantic import ValidationError

from smtpd.config import Config, Listener
from smtpd.controller_options import Translated, check_hooks, translate

PAGE = Path(__file__).resolve().parent.parent / "docs" / "aiosmtpd.md"
SILENT = {"self", "handler", "loop"}
OPTIONS = inspect.signature(SMTP.__init__).parameters.keys() - SILENT
CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
LISTENER = {"address": "127.0.0.1:0", "mode": "smtp"}


class Keeper:
    async def handle_DATA(self, *_: object) -> str:  # noqa: N802 - aiosmtpd's name
        return "250 Ok"


def told(
    *,
    config: Config | None = None,
    listener: str = "",
    handler: object = None,
    ssl_context: ssl.SSLContext | None = None,
    **options: Any,
) -> Translated:
    config = config or Config(hostname="mx.test")
    return translate(options, config=config, listener=listener, handler=handler, ssl_context=ssl_context)


def rules(**arguments: Any) -> Listener:
    translated = told(**arguments)
    return translated.config.listeners[translated.listener]


def with_listeners(**tables: dict[str, Any]) -> Config:
    return Config.model_validate({
        "hostname": "mx.test", "listeners": {name: {**LISTENER, **table} for name, table in tables.items()}
    })  # fmt: skip


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_every_option_of_aiosmtpd_is_known_and_may_be_said_with_its_default(name: str) -> None:
    default: Any = inspect.signature(SMTP.__init__).parameters[name].default
    assert told(**{name: default}).config.hostname == "mx.test"


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        ("decode_data", True, "envelope.content"),
        ("ident", "ACME", "replies="),
        ("authenticator", print, "auth.providers"),
        ("auth_callback", print, "auth.providers"),
        ("auth_require_tls", False, "behind TLS only"),
        ("auth_exclude_mechanism", ["LOGIN"], "auth.providers"),
        ("command_call_limit", 20, "limits.errors_per_session"),
        ("proxy_protocol_timeout", 5.0, "listeners.NAME.proxy_protocol"),
    ],
)
def test_option_without_a_twin_names_what_to_use(name: str, value: Any, instead: str) -> None:
    with pytest.raises(TypeError, match=re.escape(instead)):
        told(**{name: value})


def test_unknown_option_is_a_mistake() -> None:
    with pytest.raises(TypeError, match="no option 'data_size'"):
        told(data_size=5)


@pytest.mark.parametrize(
    ("options", "key", "value"),
    [
        ({"data_size_limit": 5000}, "max_message_size", 5000),
        ({"data_size_limit": None}, "max_message_size", 0),
        ({"enable_SMTPUTF8": False}, "smtputf8", False),
        ({"tls_context": CONTEXT}, "tls", "starttls"),
        ({"ssl_context": CONTEXT}, "tls", "implicit"),
        ({"require_starttls": True}, "tls_required", True),
        ({"auth_required": True}, "auth", "required"),
        ({}, "tls", "off"),
        ({}, "auth", "off"),
        ({}, "max_message_size", None),
    ],
)
def test_option_with_a_twin_is_laid_over_the_listener(options: dict[str, Any], key: str, value: object) -> None:
    assert getattr(rules(**options), key) == value


def test_login_that_is_not_required_stays_possible() -> None:
    config = with_listeners(one={"mode": "submission"})
    assert rules(config=config, auth_required=False).switches().auth == "optional"
    assert rules(config=config).switches().auth == "required"


def test_hostname_and_timeout_are_laid_over_the_configuration() -> None:
    config = Config.model_validate({"hostname": "mx.test", "timeouts": {"command": 300, "data": 200}})
    translated = told(config=config, hostname="other.test", timeout=7).config
    assert translated.hostname == "other.test"
    assert (translated.timeouts.command, translated.timeouts.data) == (7.0, 200.0)


@pytest.mark.parametrize("options", [{"hostname": "no host"}, {"data_size_limit": -1}, {"timeout": -1}])
def test_values_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        told(**options)


def test_listener_has_to_be_named_where_there_are_several() -> None:
    config = with_listeners(one={}, two={"smtputf8": False})
    assert rules(config=config, listener="two").smtputf8 is False
    with pytest.raises(TypeError, match="one of one, two"):
        told(config=config)
    with pytest.raises(TypeError, match="no listener 'three'"):
        told(config=config, listener="three")


def test_the_only_listener_needs_no_name() -> None:
    assert told(config=with_listeners(one={})).listener == "one"


def test_proxy_headers_that_nobody_would_read_are_a_mistake() -> None:
    with pytest.raises(TypeError, match=r"listeners\.one\.proxy_protocol"):
        told(config=with_listeners(one={"proxy_protocol": ["127.0.0.1/32"]}))


def test_two_kinds_of_tls_are_a_mistake() -> None:
    with pytest.raises(TypeError, match="no STARTTLS for tls_context"):
        told(ssl_context=CONTEXT, tls_context=CONTEXT)


def test_certificate_of_the_configuration_is_for_starttls() -> None:
    config = Config.model_validate({"hostname": "mx.test", "tls": {"cert_file": "a", "key_file": "b"}})
    assert rules(config=config).tls == "starttls"


def test_without_a_configuration_everything_goes_to_the_handler() -> None:
    config = translate({}, config=None, listener="", handler=Keeper(), ssl_context=None).config
    assert config.domains == {"*": "handler"}
    assert not config.metrics.enabled


@pytest.mark.parametrize(
    "tables",
    [
        {"domains": {"example.test": "handler"}},
        {"domains": {"example.test": "other"}, "recipients": {"a@example.test": "handler"}},
        {"domains": {"example.test": "other"}, "relay": {"agent": "handler"}},
    ],
)
def test_configuration_may_say_what_goes_to_the_handler(tables: dict[str, Any]) -> None:
    config = Config.model_validate({"hostname": "mx.test", **tables})
    assert told(config=config, handler=Keeper()).config.domains == config.domains


def test_handler_that_would_get_no_mail_is_a_mistake() -> None:
    config = Config.model_validate({"hostname": "mx.test", "domains": {"example.test": "other"}})
    with pytest.raises(TypeError, match="no mail goes to the handler"):
        told(config=config, handler=Keeper())
    assert told(config=config).config.domains == {"example.test": "other"}


@pytest.mark.parametrize("hook", ["handle_EHLO", "handle_MAIL", "handle_exception", "handle_PROXY", "auth_PLAIN"])
def test_hook_that_would_never_be_called_is_a_mistake(hook: str) -> None:
    with pytest.raises(TypeError, match=f"Curious has {hook}, but only"):
        check_hooks(type("Curious", (Keeper,), {hook: lambda *_: None})())


def test_handler_that_keeps_nothing_is_a_mistake() -> None:
    with pytest.raises(TypeError, match="object has no handle_DATA"):
        check_hooks(object())


def test_names_that_only_look_like_hooks_are_none() -> None:
    more = {"handle_message": lambda *_: None, "handle_RCPT": lambda *_: None, "auth_url": "http://localhost"}
    check_hooks(type("Plain", (Keeper,), more)())


def test_page_has_every_option() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("| aiosmtpd |")[2].partition("\n\n")[0]
    cells = re.findall(r"^\| ([^|]*) \|", table, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", " ".join(cells))) == OPTIONS - {"hostname"} | {"server_hostname", "ssl_context"}
