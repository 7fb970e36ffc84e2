"""Lookups in the DNS: `Resolver` is what plug-ins see, `make_resolver` makes the real one, `smtpd.zone` a fake one."""

from smtpd.dns.answer import (
    INVALID,
    NODATA,
    NXDOMAIN,
    TYPES,
    Answer,
    Mx,
    Record,
    Soa,
    Status,
    Tlsa,
    Txt,
    Type,
    normal_name,
    tempfail,
)
from smtpd.dns.options import DnsOptions
from smtpd.dns.recording import RecordingResolver
from smtpd.dns.resolver import CachingResolver, LimitedResolver, Resolver, make_resolver

__all__ = [
    "INVALID",
    "NODATA",
    "NXDOMAIN",
    "TYPES",
    "Answer",
    "CachingResolver",
    "DnsOptions",
    "LimitedResolver",
    "Mx",
    "Record",
    "RecordingResolver",
    "Resolver",
    "Soa",
    "Status",
    "Tlsa",
    "Txt",
    "Type",
    "make_resolver",
    "normal_name",
    "tempfail",
]
