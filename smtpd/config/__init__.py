"""The configuration: what `[smtpd]` may hold, and how it is read, checked and explained."""

from smtpd.config.listeners import Listener, Switches, split_address
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

__all__ = [
    "AuthOptions",
    "Certificate",
    "Config",
    "Limits",
    "Listener",
    "LogOptions",
    "MetricsOptions",
    "Relay",
    "Switches",
    "Timeouts",
    "TlsOptions",
    "split_address",
]
