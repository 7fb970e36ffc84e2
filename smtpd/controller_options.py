"""Options of aiosmtpd's controllers in our words: the configuration that does the same. Pure.

What means the same is laid over the configuration. For everything else there is a TypeError that says what to use:
an option that was silently ignored would be a hole sooner or later.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from smtpd.config import Config, Listener

HANDLER = "handler"
"""The name of the agent that gives mail to a controller's handler."""

# The value with which an option does no harm, and what to use instead of others.
_WITHOUT_TWIN: Mapping[str, tuple[object, str]] = {
    "decode_data": (False, "a handler gets octets, and decodes `envelope.content` itself"),
    "ident": (None, 'say `replies={"greeting": "{hostname} ..."}` in the configuration'),
    "authenticator": (None, "name in `auth.providers` of the configuration who checks passwords"),
    "auth_callback": (None, "name in `auth.providers` of the configuration who checks passwords"),
    "auth_require_tls": (True, "passwords are taken behind TLS only"),
    "auth_exclude_mechanism": (None, "there are those that `auth.providers` of the configuration can check"),
    "command_call_limit": (None, "see `limits.errors_per_session` and `limits.messages_per_session`"),
    "proxy_protocol_timeout": (None, "`listeners.NAME.proxy_protocol` is for the sockets of smtpd.Server"),
}
_TWINS = frozenset((
    "hostname", "timeout", "data_size_limit", "enable_SMTPUTF8", "tls_context", "require_starttls", "auth_required",
))  # fmt: skip
_HOOK = re.compile(r"handle_(?:[A-Z]+|exception)|auth_\w+")
_CALLED = frozenset(("handle_DATA", "handle_RCPT"))


@dataclass(frozen=True, slots=True)
class Translated:
    """What a controller's arguments come to."""

    config: Config
    listener: str
    """The one whose rules hold for the controller's connections; its address counts for nothing."""
    context: ssl.SSLContext | None
    """The program's own, for TLS from the first octet or for STARTTLS; then `[smtpd.tls]` is for nothing."""


def translate(
    options: Mapping[str, Any],
    *,
    config: Config | None,
    listener: str,
    handler: object,
    ssl_context: ssl.SSLContext | None,
) -> Translated:
    """Lay options of aiosmtpd's SMTP class over the configuration (None: what aiosmtpd does without one).

    TypeError: something means nothing here. pydantic's ValidationError: a value cannot be.
    """
    _refuse_what_has_no_twin(options)
    if handler is not None:
        check_hooks(handler)
    config = config or _default_config()
    context = _context(options, ssl_context)
    chosen, rules = _choose(config, listener)
    tables: dict[str, object] = {**dict(config), **_domains(config, handler)}
    if options.get("hostname"):
        tables["hostname"] = options["hostname"]
    if "timeout" in options:
        tables["timeouts"] = {**dict(config.timeouts), "command": float(options["timeout"])}
    rules = Listener.model_validate({**dict(rules), **_switches(options, rules, implicit=ssl_context is not None)})
    tables["listeners"] = {**config.listeners, chosen: rules}
    return Translated(Config.model_validate(tables), chosen, context)


def check_hooks(handler: object) -> None:
    """TypeError when a handler wants what it would not get."""
    kind = type(handler).__name__
    hooks = {name for name in dir(handler) if _HOOK.fullmatch(name) and callable(getattr(handler, name))}
    if "handle_DATA" not in hooks:
        raise TypeError(f"{kind} has no handle_DATA, so it keeps no mail")
    if others := ", ".join(sorted(hooks - _CALLED)):
        raise TypeError(f"{kind} has {others}, but only handle_RCPT and handle_DATA are called: write a Filter")


def _refuse_what_has_no_twin(options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        if name in _TWINS:
            continue
        if name not in _WITHOUT_TWIN:
            raise TypeError(f"there is no option {name!r}")
        harmless, instead = _WITHOUT_TWIN[name]
        if value != harmless:
            raise TypeError(f"{name} means nothing here: {instead}")


def _default_config() -> Config:
    return Config.model_validate({
        "hostname": socket.getfqdn(),
        "drain_timeout": 5.0,
        "metrics": {"enabled": False},
        "log": {"to": "stderr", "level": "warning"},
    })  # fmt: skip


def _context(options: Mapping[str, Any], ssl_context: ssl.SSLContext | None) -> ssl.SSLContext | None:
    for_starttls: ssl.SSLContext | None = options.get("tls_context")
    if ssl_context is not None and for_starttls is not None:
        raise TypeError("ssl_context is TLS from the first octet, so there is no STARTTLS for tls_context")
    return ssl_context or for_starttls


def _choose(config: Config, name: str) -> tuple[str, Listener]:
    if not name and len(config.listeners) > 1:
        raise TypeError(f"which listener's rules hold? Say listener= one of {', '.join(config.listeners)}")
    if name and name not in config.listeners:
        raise TypeError(f"there is no listener {name!r} in the configuration")
    if not config.listeners:
        tls = "starttls" if config.tls is not None and config.tls.cert_file else "off"
        auth = "optional" if config.auth.providers else "off"
        return "smtp", Listener.model_validate({"address": "127.0.0.1:0", "mode": "smtp", "tls": tls, "auth": auth})
    chosen = name or next(iter(config.listeners))
    if config.listeners[chosen].proxy_protocol:
        raise TypeError(f"`listeners.{chosen}.proxy_protocol` is for the sockets of smtpd.Server")
    return chosen, config.listeners[chosen]


def _domains(config: Config, handler: object) -> dict[str, object]:
    """As with aiosmtpd everything goes to the handler, unless the configuration says what does."""
    targets = {*config.domains.values(), *(target.agent for target in config.recipients.values())}
    if handler is None or HANDLER in targets or (config.relay is not None and config.relay.agent == HANDLER):
        return {}
    if config.domains:
        raise TypeError(f'no mail goes to the handler: say domains={{"example.com": "{HANDLER}"}} in the configuration')
    return {"domains": {"*": HANDLER}}


def _switches(options: Mapping[str, Any], rules: Listener, *, implicit: bool) -> dict[str, object]:
    """The keys of the listener that options change."""
    keys: dict[str, object] = {}
    if implicit:
        keys["tls"] = "implicit"
    elif options.get("tls_context") is not None:
        keys["tls"] = "starttls"
    if "require_starttls" in options:
        keys["tls_required"] = bool(options["require_starttls"])
    if "auth_required" in options:
        otherwise = "optional" if rules.switches().auth == "required" else rules.auth
        keys["auth"] = "required" if options["auth_required"] else otherwise
    if "data_size_limit" in options:
        keys["max_message_size"] = options["data_size_limit"] or 0  # there None is no limit
    if "enable_SMTPUTF8" in options:
        keys["smtputf8"] = bool(options["enable_SMTPUTF8"])
    return keys
