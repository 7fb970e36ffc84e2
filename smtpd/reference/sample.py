"""config.toml at the top of the repository: every option there is, ready for production once names are changed."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from smtpd import plugins
from smtpd.config.listeners import PRESETS, Listener
from smtpd.config.models import (
    AuthOptions,
    Certificate,
    Config,
    DeliveryOptions,
    Limits,
    LogOptions,
    MetricsOptions,
    Relay,
    StateOptions,
    Timeouts,
    TlsOptions,
)
from smtpd.dns.options import DnsOptions
from smtpd.options import FilterOptions, Options
from smtpd.reference.describe import UNSET, Option, options_of, summary, to_toml, toml_key
from smtpd.reference.own import manual, own_plugins
from smtpd.reference.pages import own_options
from smtpd.rewriting import Target

_WIDTH = 100

_INTRODUCTION = """\
Every option there is. A line that starts with "#" and a name is an option with its default, or an example where there
is no default; take the "#" away to change it. Change the names, then run `smtpd check --config config.toml`.
Made from the code by `python -m smtpd.reference`; a test compares.
"""

_EXAMPLES: Mapping[str, object] = {
    "spool": "/var/lib/smtpd/spool",
    "group": "smtpd",
    "trusted_networks": ["192.0.2.0/24"],
    "ciphers": "ECDHE+AESGCM:ECDHE+CHACHA20",
    "client_ca_file": "/etc/smtpd/certs/clients-ca.crt",
    "ca_file": "/etc/smtpd/certs/store-ca.crt",
    "token": "change-me",
    "token_file": "/etc/smtpd/metrics-token",
    "cert_file": "/etc/smtpd/certs/metrics.crt",
    "key_file": "/etc/smtpd/certs/metrics.key",
    "act_at": "rcpt",
    "unless": ["authenticated"],
    "listeners": ["smtp"],
    "max_message_size": "50M",
}
"""What stands behind an option without a default."""

_AGENT_VALUES: Mapping[str, Mapping[str, object]] = {
    "maildir": {"path": "/var/mail"},
    "discard": {"allow_discard": True},
    "lmtp": {"address": "unix:/run/dovecot/lmtp"},
    "handler": {"handler": "aiosmtpd.handlers:Mailbox", "arguments": ["/var/mail/all"]},
    "relay": {
        "address": "smtp.example.net:587",
        "tls": "starttls",
        "user": "mail.example.com",
        "password_file": "/etc/smtpd/smarthost-password",
    },
    "pipe": {"command": ["/usr/bin/procmail", "-d", "{user}"]},
}
_PROVIDER_VALUES: Mapping[str, Mapping[str, object]] = {"file": {"path": "/etc/smtpd/users"}}
_FILTER_VALUES: Mapping[str, Mapping[str, object]] = {
    "sender_login": {"mode": "observe"},
    "early_talker": {"listeners": ["smtp", "alt"]},
    "sender_domain": {"mode": "observe"},
    "arc_seal": {
        "mode": "off", "domain": "example.com", "selector": "arc", "key_file": "/etc/smtpd/arc.key",
        "agents": ["smarthost"],
    },
}  # fmt: skip
_PLUGIN_EXAMPLES: Mapping[str, object] = {"password": "change-me"}
_MAILSTORE = "maildir"
_AGENT_TABLES: Mapping[str, str] = {_MAILSTORE: "mailstore", "relay": "smarthost"}
_USERS = "file"


@dataclass(frozen=True, slots=True)
class _Section:
    """One table of the sample; `active` are its real lines, everything else of `options` is commented out."""

    header: str
    text: str
    options: Sequence[Option] = ()
    active: Mapping[str, object] = field(default_factory=dict)
    examples: Mapping[str, object] = field(default_factory=dict)
    commented: bool = False
    """The table itself is only an example."""


def sample_config() -> str:
    """config.toml."""
    parts = [_comment(_INTRODUCTION)]
    parts += [_render(section) for section in _sections()]
    return "\n".join(parts)


def _sections() -> Iterator[_Section]:
    yield _root()
    yield _plain("[smtpd.limits]", Limits)
    yield _plain("[smtpd.timeouts]", Timeouts)
    yield from _listeners()
    certificate = {"cert_file": "/etc/smtpd/certs/mail.crt", "key_file": "/etc/smtpd/certs/mail.key"}
    yield _plain("[smtpd.tls]", TlsOptions, certificate, leave_out=("certificates",))
    other = {"cert_file": "/etc/smtpd/certs/mx2.crt", "key_file": "/etc/smtpd/certs/mx2.key"}
    yield _plain("[[smtpd.tls.certificates]]", Certificate, other, commented=True)
    yield from _routing()
    yield _plain("[smtpd.delivery]", DeliveryOptions)
    yield _plain("[smtpd.state]", StateOptions, {"url": "sqlite:/var/lib/smtpd/state.db"})
    yield from _agents()
    yield from _filters()
    yield _plain("[smtpd.dns]", DnsOptions)
    yield _plain("[smtpd.auth]", AuthOptions, {"providers": ["users"]})
    for name, provider in own_plugins(plugins.PROVIDERS).items():
        yield _plugin("auth", "users" if name == _USERS else name, name, provider, _PROVIDER_VALUES, name != _USERS)
    yield _plain("[smtpd.metrics]", MetricsOptions)
    yield _plain("[smtpd.log]", LogOptions)
    text = "Texts said instead of ours, by the key in docs/replies.md. Codes cannot be changed."
    example = Option("no-such-user", "", to_toml("Nobody here is called {address}"), "")
    yield _Section("[smtpd.replies]", text, [example])


def _root() -> _Section:
    tables = {name for name, found in Config.model_fields.items() if (found.description or "").startswith("See ")}
    options = [option for option in options_of(Config) if option.name not in {*tables, *_ROUTING, "replies"}]
    active = {"hostname": "mail.example.com", "postmaster": "postmaster@example.com", "user": "smtpd"}
    return _Section("[smtpd]", "", options, active, _EXAMPLES)


def _plain(
    header: str,
    table: type[Options],
    active: Mapping[str, object] | None = None,
    *,
    leave_out: Sequence[str] = (),
    commented: bool = False,
) -> _Section:
    options = [option for option in options_of(table) if option.name not in leave_out]
    return _Section(header, summary(table), options, active or {}, _EXAMPLES, commented)


def _listeners() -> Iterator[_Section]:
    places: tuple[tuple[str, str, str], ...] = (
        ("smtp", ":25", "Mail from other servers."),
        ("smtps", ":465", "Mail from users' programs, TLS from the first byte."),
        ("submission", ":587", "Mail from users' programs, STARTTLS first."),
        ("alt", ":2525", "Mail from servers and programs that cannot reach port 25."),
    )
    options = options_of(Listener)
    for mode, address, text in places:
        active = {"address": address, "mode": mode}
        preset = PRESETS[mode]  # type: ignore[index]  # the four literals above
        shown = {option.name: getattr(preset, option.name, None) for option in options}
        examples = {**_EXAMPLES, **{name: value for name, value in shown.items() if value is not None}}
        first = mode == "smtp"
        chosen = options if first else [option for option in options if option.name in active]
        more = "" if first else " It takes the same options as [smtpd.listeners.smtp]."
        chosen = chosen if first else [Option(option.name, "", option.default, "") for option in chosen]
        yield _Section(f"[smtpd.listeners.{mode}]", text + more, chosen, active, examples)


_ROUTING = ("domains", "recipients")


def _routing() -> Iterator[_Section]:
    sentences = {option.name: option.sentence for option in options_of(Config)}
    yield _Section("[smtpd.domains]", sentences["domains"], (), {"example.com": "mailstore"})
    examples: dict[str, object] = {
        "nobody@example.com": "deny",
        "old-*@example.com": "deny",
        "info@example.com": "alice@example.com",
        r"/(?P<user>[a-z]+)-(?P<folder>[a-z]+)@example\.com/": {"mailbox": "{user}@example.com", "folder": "{folder}"},
        "@example.com": {"agent": "mailstore", "mailbox": "{user}@mail.internal"},
    }
    options = [Option(name, "", to_toml(target), "") for name, target in examples.items()]
    yield _Section("[smtpd.recipients]", sentences["recipients"], options)
    values = {"agent": "mailstore", "mailbox": "shared@example.com", "folder": "Sales"}
    yield _plain('[smtpd.recipients."sales@example.com"]', Target, values, commented=True)
    yield _plain("[smtpd.relay]", Relay, {"agent": "smarthost"}, commented=True)


def _agents() -> Iterator[_Section]:
    for name, agent in own_plugins(plugins.AGENTS).items():
        yield _plugin("agents", _AGENT_TABLES.get(name, name), name, agent, _AGENT_VALUES, name != _MAILSTORE)


def _plugin(
    group: str,
    table: str,
    kind: str,
    plugin: type,
    values: Mapping[str, Mapping[str, object]],
    commented: bool,
) -> _Section:
    options = [option for option in own_options(plugin) if option.name != "type"]
    options.insert(0, Option("type", "", "", ""))
    active = {"type": kind, **values.get(kind, {})}
    return _Section(f"[smtpd.{group}.{table}]", _first_paragraph(plugin), options, active, _PLUGIN_EXAMPLES, commented)


def _filters() -> Iterator[_Section]:
    first = True
    for name, plugin in own_plugins(plugins.FILTERS).items():
        options = own_options(plugin, None if first else FilterOptions)
        options = [option for option in options if option.name != "type" or first]
        text = _first_paragraph(plugin)
        if first:
            text += " The options from `type` to `listeners` are those of every filter."
        active = _FILTER_VALUES.get(name, {})
        yield _Section(f"[smtpd.filters.{name}]", text, options, active, {**_EXAMPLES, "type": name})
        first = False


def _first_paragraph(plugin: type) -> str:
    return manual(plugin).partition("\n\n")[0]


def _render(section: _Section) -> str:
    off = "#" if section.commented else ""
    lines = [_comment(section.text), f"{off}{section.header}\n"] if section.text else [f"{section.header}\n"]
    left = dict(section.active)
    for option in section.options:
        if option.sentence:
            lines.append(_comment(option.sentence))
        if option.name in left:
            lines.append(f"{off}{toml_key(option.name)} = {to_toml(left.pop(option.name))}\n")
        else:
            value = option.default
            if value in (UNSET, "") or (value == '""' and option.name in section.examples):
                value = to_toml(section.examples.get(option.name, ""))
            lines.append(f"#{toml_key(option.name)} = {value}\n")
    lines += [f"{off}{toml_key(name)} = {to_toml(value)}\n" for name, value in left.items()]
    return "".join(lines)


def _comment(text: str) -> str:
    if not text:
        return ""
    lines = textwrap.wrap(" ".join(text.split()), _WIDTH, break_long_words=False, break_on_hyphens=False)
    return "".join(f"# {line}\n" for line in lines)
