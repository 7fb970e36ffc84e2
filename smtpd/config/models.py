"""The tables below `[smtpd]`: one name, one default, one sentence each."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, SecretStr, SerializeAsAny

from smtpd.config.listeners import Listener, split_address
from smtpd.config.values import (
    check_domain_key,
    check_hostname,
    check_log_target,
    check_recipient_key,
    check_reply_text,
)
from smtpd.dns.options import DnsOptions
from smtpd.options import AgentOptions, Bytes, FilterOptions, Networks, Options, Seconds, Strings, as_tuple
from smtpd.rewriting import WrittenTarget

Count = Annotated[int, Field(ge=0)]
Hostname = Annotated[str, AfterValidator(check_hostname)]
Separator = Annotated[str, Field(max_length=1, pattern=r"^[!-~]?$")]


class Limits(Options):
    """What one client, and all of them together, may use up; 0 always means no limit."""

    connections: Count = 2000
    """Connections open at once over all listeners (Postfix 100 processes, Exim 20)."""
    connections_per_ip: Count = 50
    """Connections open at once from one IPv4 address or one IPv6 /64 network (Postfix 50)."""
    messages_per_session: Count = 1000
    """Transactions in one connection, then 421 (Exim 1000)."""
    errors_per_session: Count = 20
    """Replies with 5xx in one connection, then 421 (Postfix 20)."""
    auth_failures_per_session: Count = 3
    """Failed or uncheckable logins in one connection, then 421 (Postfix counts them as errors, so 20)."""
    memory_for_content: Bytes = 256 << 20
    """Memory for the content of all messages in flight, bytes; above it content spills to disk at once."""
    content_in_memory: Bytes = 1 << 20
    """Memory for the content of one message, bytes; what is bigger spills to a temporary file."""
    min_data_rate: Count = 32
    """Slowest content accepted, bytes per second, measured over 60 s."""


class Timeouts(Options):
    """How long a silent client is waited for; the minima are those of RFC 5321 §4.5.3.2."""

    command: Seconds = 300.0
    """Between two commands, seconds (RFC 5321 §4.5.3.2.7: at least 5 minutes)."""
    data: Seconds = 180.0
    """Between two pieces of content, seconds (RFC 5321 §4.5.3.2.5: at least 3 minutes)."""
    tls_handshake: Seconds = 30.0
    """For the whole TLS handshake, seconds (Postfix 300)."""
    auth: Seconds = 120.0
    """For one answer of the client inside AUTH, seconds."""
    filters: Seconds = 60.0
    """For all filters together at the end of data, seconds; then 451, and nothing is delivered."""
    delivery: Seconds = 240.0
    """For the agents at the end of data, seconds; then 451, but what has begun is finished, and the retry of the
    same message is answered with how it ended (clients wait 10 minutes, RFC 5321 §4.5.3.2.6)."""


class DeliveryOptions(Options):
    """What is said when a message fares differently for its recipients, and when nobody knows how it fared."""

    mixed: Literal["combine", "split"] = "combine"
    """"combine" makes one reply of several (see docs/operating.md); "split" puts recipients of a second agent off
    with 452, so that they come in a transaction of their own."""
    guarantee: Literal["at-least-once", "at-most-once"] = "at-least-once"
    """What a retry means when the answer behind an agent never came: deliver (perhaps a second time), or refuse for
    good, saying that the message may have been delivered."""
    remember: Seconds = 5 * 86400.0
    """How long is kept who has a message already, when its sender was told to try again, seconds."""
    remember_refusals: Seconds = 4 * 3600.0
    """How long is kept whom a message was refused for after the data, when its sender was told to try again,
    seconds: on the retry it hears so at RCPT."""


def _check_state_url(url: str) -> str:
    if url != "memory:" and not (url.startswith("sqlite:") and len(url) > len("sqlite:")):
        raise ValueError('must be "memory:" or "sqlite:PATH", such as "sqlite:/var/lib/smtpd/state.db"')
    return url


class StateOptions(Options):
    """Where is kept what outlives a connection."""

    url: Annotated[str, AfterValidator(_check_state_url)] = "memory:"
    """"memory:" (gone after a restart) or "sqlite:PATH"."""


class Certificate(Options):
    """One more certificate; the names it is used for (SNI) are taken from it."""

    cert_file: str
    """PEM file: the certificate first, then the chain."""
    key_file: str
    """PEM file with the private key."""


class TlsOptions(Options):
    """Certificates and what is negotiated; files are watched and read again when they change."""

    cert_file: str = ""
    """PEM file: the certificate first, then the chain; used when the client names no host we know."""
    key_file: str = ""
    """PEM file with the private key."""
    min_version: Literal["TLS1.2", "TLS1.3"] = "TLS1.2"
    """Oldest version negotiated (RFC 8996 forbids what is older than TLS 1.2)."""
    ciphers: str | None = None
    """Ciphers for TLS 1.2 in OpenSSL's notation; unset: those of Python's `ssl` module."""
    certificates: Annotated[tuple[Certificate, ...], BeforeValidator(as_tuple)] = ()
    """Further certificates, tables with `cert_file` and `key_file`, chosen by the name clients ask for."""
    client_ca_file: str | None = None
    """PEM file of the authorities that sign client certificates."""
    reload_interval: Annotated[Seconds, Field(gt=0)] = 30.0
    """How often the files are looked at for changes, seconds."""


class Relay(Options):
    """Where mail of authenticated users for other domains goes; without this table nobody relays."""

    agent: str
    """Name of the agent's table. Only a login earns relaying, never an address."""


class AuthOptions(Options):
    """Who may log in. Every provider has a table of its own below this one."""

    model_config = ConfigDict(extra="allow")

    __pydantic_extra__: dict[str, Options]

    providers: Strings = ()
    """Names of provider tables (`[smtpd.auth.NAME]`), asked in this order."""

    @property
    def tables(self) -> Mapping[str, Options]:
        """Options of every provider by the name of its table, in file order."""
        return self.__pydantic_extra__


def _check_tcp_address(address: str) -> str:
    if split_address(address)[0] != "tcp":
        raise ValueError('must look like "127.0.0.1:9100"')
    return address


class MetricsOptions(Options):
    """The exporter for Prometheus, on an address of its own, with `/healthz` and `/readyz`."""

    enabled: bool = True
    """Whether the exporter runs."""
    address: Annotated[str, AfterValidator(_check_tcp_address)] = "127.0.0.1:9100"
    """Where it listens."""
    path: Annotated[str, Field(pattern=r"^/[!-~]*$")] = "/metrics"
    """Path of the metrics page."""
    token: SecretStr | None = None
    """Bearer token that must be sent; unset: everybody who can connect may read."""
    cert_file: str | None = None
    """PEM file of the exporter's own certificate; unset: plain HTTP."""
    key_file: str | None = None
    """PEM file with the private key of that certificate."""
    ip_slots: Count = 100
    """How many client addresses get an `ip` label of their own, the rest is "other"; 0 switches it off."""


class LogOptions(Options):
    """One line per transaction and per refusal."""

    format: Literal["json", "console"] = "json"
    """"json" for machines, "console" for eyes."""
    to: Annotated[str, AfterValidator(check_log_target)] = "stdout"
    """"stdout", "stderr", "syslog" or "file:PATH" (opened again when it was moved away)."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least important lines that are still written."""
    connections: bool = False
    """Whether opening and closing a connection is worth a line, too."""
    privacy: bool = False
    """Whether local parts of addresses and logins are written as a keyed hash."""


class Config(Options):
    """Everything below `[smtpd]`."""

    hostname: Hostname
    """Our own name in the greeting, EHLO and Received; it should resolve to this machine."""
    postmaster: str = ""
    """Where mail to <Postmaster> and postmaster@ every domain of ours goes; it must be a recipient here."""
    authserv_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]*$")] = ""
    """Our name in Authentication-Results (RFC 8601); fields of others that carry it are removed. Empty: `hostname`."""
    max_message_size: Bytes = 26214400
    """Biggest message, bytes, announced with SIZE (Postfix 10 240 000, Exim 50 MiB); 0 for no limit."""
    max_recipients: Annotated[int, Field(ge=1)] = 100
    """Recipients of one message, then 452 (RFC 5321 §4.5.3.1.8: at least 100; Postfix 1000, Exim 50 000)."""
    max_received: Annotated[int, Field(ge=1)] = 50
    """Received fields above which a message counts as looping (RFC 5321 §6.3: 100; Postfix 50, Exim 30)."""
    max_text_line: Annotated[Bytes, Field(ge=1000)] = 65536
    """Longest line of content, bytes (RFC 5321 §4.5.3.1.6: 1000, which real senders exceed; Postfix 2048)."""
    trusted_networks: Networks = ()
    """Networks whose clients count as "trusted" in filters' `unless`. It never earns relaying."""
    user: str | None = None
    """User to become after binding, when started as root; unset: stay."""
    group: str | None = None
    """Group to become; unset: the user's first group."""
    drain_timeout: Seconds = 30.0
    """How long messages in flight may finish when the server stops, seconds."""
    spool: str | None = None
    """Directory of content that does not stay in memory; unset: the system's for temporary files."""
    event_loop: Literal["auto", "uvloop", "asyncio"] = "auto"
    """"auto" takes uvloop when it is there."""
    strict_syntax: bool = False
    """Whether small liberties are refused: `MAIL FROM: <a@b>`, underscores in domains, local parts over 64 octets."""
    null_sender_single_recipient: bool = False
    """Whether a message from <> may have one recipient only; bounces never need more."""
    subaddress_separator: Separator = "+"
    """Character that starts the detail of `user+detail@domain`; empty: there are no details."""
    subaddress_folders: bool = False
    """Whether `user+detail@domain` is delivered into folder `detail` of `user@domain`; then whoever knows the address
    can make folders. What is no plain folder name goes to the inbox."""
    case_sensitive_local_parts: bool = False
    """Whether User@ and user@ are different recipients."""
    limits: Limits = Limits()
    """See `[smtpd.limits]`."""
    timeouts: Timeouts = Timeouts()
    """See `[smtpd.timeouts]`."""
    listeners: dict[str, Listener] = {}
    """See `[smtpd.listeners.NAME]`."""
    tls: TlsOptions | None = None
    """See `[smtpd.tls]`."""
    domains: dict[Annotated[str, AfterValidator(check_domain_key)], str] = {}
    """Domains of ours, each with the name of the agent its mail goes to: "example.com", "*.example.com"
    (every name below it), or "*" (anything; only sensible inside a closed network)."""
    recipients: dict[Annotated[str, AfterValidator(check_recipient_key)], WrittenTarget] = {}
    """Exceptions: "user@domain", "@domain" (everybody not named otherwise), a pattern such as "old-*@domain" or a
    regular expression for the whole address such as '/(?P<user>.+)-(?P<folder>[a-z]+)@example\\.com/', each with the
    name of an agent, "deny", another address of ours, or a table (`[smtpd.recipients."ADDRESS"]`)."""
    relay: Relay | None = None
    """See `[smtpd.relay]`."""
    dns: DnsOptions = DnsOptions()
    """See `[smtpd.dns]`."""
    delivery: DeliveryOptions = DeliveryOptions()
    """See `[smtpd.delivery]`."""
    state: StateOptions = StateOptions()
    """See `[smtpd.state]`."""
    agents: dict[str, SerializeAsAny[AgentOptions]] = {}
    """See docs/agents.md."""
    filters: dict[str, SerializeAsAny[FilterOptions]] = {}
    """See docs/filters.md."""
    auth: AuthOptions = AuthOptions()
    """See `[smtpd.auth]`."""
    metrics: MetricsOptions = MetricsOptions()
    """See `[smtpd.metrics]`."""
    log: LogOptions = LogOptions()
    """See `[smtpd.log]`."""
    replies: dict[str, Annotated[str, AfterValidator(check_reply_text)]] = {}
    """Texts said instead of ours, by the key in docs/replies.md; codes cannot be changed."""
