"""The pages below docs/ that are made from code."""

from collections.abc import Iterable, Iterator

from smtpd import plugins
from smtpd.config.listeners import PRESETS, Listener
from smtpd.config.models import (
    AuthOptions,
    Certificate,
    Config,
    Limits,
    LogOptions,
    MetricsOptions,
    Relay,
    Timeouts,
    TlsOptions,
)
from smtpd.dns.options import DnsOptions
from smtpd.options import AgentOptions, FilterOptions, Options
from smtpd.policy import Filter
from smtpd.reference.describe import Option, one_line, options_of, summary
from smtpd.reference.own import Description, all_metrics, manual, metrics_of_plugin, own_plugins
from smtpd.replies import all_replies
from smtpd.rewriting import Target
from smtpd.series import Counter, Gauge

MADE = "<!-- Made from the code by `python -m smtpd.reference`; change the code, not this page. -->"

TABLES: tuple[tuple[str, type[Options]], ...] = (
    ("[smtpd]", Config),
    ("[smtpd.limits]", Limits),
    ("[smtpd.timeouts]", Timeouts),
    ("[smtpd.listeners.NAME]", Listener),
    ("[smtpd.tls]", TlsOptions),
    ("[[smtpd.tls.certificates]]", Certificate),
    ('[smtpd.recipients."ADDRESS"]', Target),
    ("[smtpd.relay]", Relay),
    ("[smtpd.dns]", DnsOptions),
    ("[smtpd.auth]", AuthOptions),
    ("[smtpd.metrics]", MetricsOptions),
    ("[smtpd.log]", LogOptions),
)

_CONFIG = """\
# Configuration

One TOML file; everything for this server stands below `[smtpd]`, other top-level tables are left alone.
`config.toml` in the repository shows every option, `docs/config.schema.json` is its JSON Schema, and
`smtpd check --config FILE` names every mistake at once with its line. Unknown keys are mistakes.

- Durations are seconds or text: `30`, `"30s"`, `"5m"`, `"1h"`, `"250ms"`. Sizes are bytes or text in powers
  of 1024: `26214400`, `"25M"`.
- Every key can be overridden from the environment: `SMTPD__TLS__CERT_FILE=/run/cert.pem` is
  `cert_file` in `[smtpd.tls]`. Two underscores go one table down, case does not matter, lists and whole tables are
  JSON: `SMTPD__DOMAINS='{"example.com": "mailstore"}'`.
- Every secret has a twin that ends in `_file` and reads it from a file with one line.
"""

_FILTERS = """\
# Filters

A filter runs only if its table `[smtpd.filters.NAME]` is there. It is named after its table, unless `type` says
otherwise, so there can be several of one kind. What a filter finds wrong is its business; what happens then
is yours.

## Options of every filter
"""

_AGENTS = """\
# Delivery agents

An agent has a table `[smtpd.agents.NAME]` with a `type`; `[smtpd.domains]`, `[smtpd.recipients]` and `[smtpd.relay]`
send recipients to it by that name. The client hears 250 after the agent has made the message safe, never before.
"""

_METRICS = """\
# Metrics

No label can be multiplied by strangers: `recipient_domain` is a domain of yours or `other`, `ip` has a fixed number of
slots (`ip_slots`) and then `other`, every other label comes from a closed set.
"""

_REPLIES = """\
# Replies

Every answer a client can ever see, by its key. The key is also the `reason` in the log and in metrics. Texts can be
changed below `[smtpd.replies]`, codes cannot. Behind the text of refusals stands a trace id in brackets.
"""


def config_page() -> str:
    """docs/config.md."""
    parts = [MADE, _CONFIG]
    for heading, table in TABLES:
        parts.append(f"## `{heading}`\n\n{summary(table)}\n\n{_table(options_of(table))}")
        if table is Listener:
            parts.append(_presets())
    for name, provider in own_plugins(plugins.PROVIDERS).items():
        parts.append(f'## `[smtpd.auth.NAME]` with `type = "{name}"`\n\n{manual(provider)}\n\n{_own(provider)}')
    return _page(parts)


def filters_page() -> str:
    """docs/filters.md."""
    parts = [MADE, _FILTERS + "\n" + _table(options_of(FilterOptions))]
    for name, plugin in own_plugins(plugins.FILTERS).items():
        facts = "\n".join(f"- {line}" for line in _facts(plugin))
        parts += [f"## {name}\n\n{manual(plugin)}", _own(plugin, FilterOptions), facts, _counted(plugin)]
    return _page(parts)


def agents_page() -> str:
    """docs/agents.md."""
    parts = [MADE, _AGENTS, "## Options of every agent", _table(options_of(AgentOptions))]
    for name, plugin in own_plugins(plugins.AGENTS).items():
        parts += [f"## {name}\n\n{manual(plugin)}", _own(plugin, AgentOptions), _counted(plugin)]
    return _page(parts)


def metrics_page() -> str:
    """docs/metrics.md."""
    return _page([MADE, _METRICS, _metric_table(all_metrics())])


def replies_page() -> str:
    """docs/replies.md."""
    rows = [(f"`{reply.key}`", f"{reply.code} {reply.status}".strip(), reply.text) for reply in all_replies().values()]
    return _page([MADE, _REPLIES, _rows(("key", "codes", "text"), rows)])


def own_options(plugin: type, common: type[Options] | None = None) -> list[Option]:
    """Options of a plug-in; without those that `common` has with the same default."""
    table: type[Options] = plugin.Options  # type: ignore[attr-defined]  # `plugins.find` looked
    shared = set(options_of(common)) if common else set()
    return [option for option in options_of(table) if option not in shared]


def _own(plugin: type, common: type[Options] | None = None) -> str:
    options = own_options(plugin, common)
    return _table(options) if options else "It has no options of its own."


def _facts(plugin: type) -> Iterator[str]:
    assert issubclass(plugin, Filter)
    if plugin.needs:
        yield f"Needs {', '.join(f'`{kind.__name__}`' for kind in plugin.needs)}."
    if plugin.gives:
        yield f"Gives {', '.join(f'`{kind.__name__}`' for kind in plugin.gives)}."
    if plugin.labels:
        yield f"Labels: {', '.join(f'`{label}`' for label in sorted(plugin.labels))}."
    if plugin.changes:
        yield "Changes the message, so it runs after all that only read it."


def _counted(plugin: type) -> str:
    found = metrics_of_plugin(plugin)
    return _metric_table(found) if found else ""


def _metric_table(metrics: Iterable[Description]) -> str:
    rows = []
    for metric in metrics:
        kind = "counter" if isinstance(metric, Counter) else "gauge" if isinstance(metric, Gauge) else "histogram"
        rows.append(
            (f"`{metric.name}`", kind, ", ".join(f"`{label}`" for label in metric.labels), one_line(metric.help))
        )
    return _rows(("metric", "kind", "labels", "meaning"), rows)


def _presets() -> str:
    switches = list(next(iter(PRESETS.values())).__dataclass_fields__)
    rows = [
        (f"`{switch}`", *(f"`{_toml(getattr(preset, switch))}`" for preset in PRESETS.values())) for switch in switches
    ]
    return "What the modes stand for:\n\n" + _rows(("switch", *PRESETS), rows)


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f'"{value}"'


def _table(options: Iterable[Option]) -> str:
    rows = []
    for option in options:
        default = "must be set" if not option.default else option.default
        shown = f"`{default}`" if option.default and default != "unset" else default
        rows.append((f"`{option.name}`", option.kind, shown, option.sentence))
    return _rows(("option", "value", "default", "meaning"), rows)


def _rows(heading: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [heading, ("---",) * len(heading), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    )


def _page(parts: Iterable[str]) -> str:
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"
