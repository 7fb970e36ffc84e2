"""The configuration: what `[smtpd]` may hold, and how it is read, checked and explained."""

from smtpd.config.listeners import Listener, Switches, split_address
from smtpd.config.load import Report, check, developer_config, from_tables, load
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
from smtpd.config.problems import ConfigError, Problem
from smtpd.dns.options import DnsOptions

__all__ = [
    "AuthOptions",
    "Certificate",
    "Config",
    "ConfigError",
    "DnsOptions",
    "Limits",
    "Listener",
    "LogOptions",
    "MetricsOptions",
    "Problem",
    "Relay",
    "Report",
    "Switches",
    "Timeouts",
    "TlsOptions",
    "check",
    "developer_config",
    "from_tables",
    "load",
    "split_address",
]
