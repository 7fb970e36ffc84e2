"""What no table can know alone: names that lead nowhere, and settings that contradict each other."""

import stat
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path as FilePath

from smtpd.addresses import AddressError, parse_address
from smtpd.config.listeners import split_address
from smtpd.config.models import Config
from smtpd.config.problems import Finding, Path, closest
from smtpd.config.rights import lacks
from smtpd.config.validation import Draft
from smtpd.config.values import placeholders
from smtpd.domains import covering_key, find_dead_ends
from smtpd.recipient_map import RecipientMap
from smtpd.replies import all_replies
from smtpd.rewriting import DENY


def find_mistakes(config: Config, draft: Draft, *, files: bool) -> Iterator[Finding]:
    """Everything the server must not start with; `files`: also look whether files are there."""
    yield from _agents(config, draft)
    yield from _recipients(config, draft)
    yield from _filters(config, draft)
    yield from _addresses(config)
    yield from _circles(config)
    yield from _tls(config, draft)
    yield from _auth(config, draft)
    yield from _postmaster(config, draft)
    yield from _replies(config)
    if files:
        yield from _files(config)


def find_oddities(config: Config, draft: Draft) -> Iterator[Finding]:
    """What works, but is probably not meant."""
    if config.max_recipients < 100:
        yield Finding(("max_recipients",), "is less than the 100 that RFC 5321 §4.5.3.1.8 asks for")
    if not config.postmaster and draft.is_whole("postmaster"):
        yield Finding(("postmaster",), "is not set; RFC 5321 §4.5.1 wants mail to postmaster to be read")
    if not config.domains and not config.relay and draft.is_whole("domains"):
        yield Finding(("domains",), "names no domain, so no mail is accepted")
    if not config.listeners and not draft.names["listeners"] and draft.is_whole("listeners"):
        yield Finding(("listeners",), "names no listener, so nothing is served")
    if "*" in config.domains:
        yield Finding(("domains", "*"), "takes mail for every domain in the world, from anybody")
    used = {*config.domains.values(), config.relay.agent if config.relay else ""}
    used |= {target.agent for target in config.recipients.values()}
    for name in draft.names["agents"] - used:
        yield Finding(("agents", name), "no domain, recipient or relay uses this agent")
    for name in draft.names["auth"] - set(config.auth.providers):
        if draft.is_whole("auth", name):
            yield Finding(("auth", name), "is not in providers, so it is never asked")


def _unknown(path: Path, name: str, known: frozenset[str], kind: str) -> Finding:
    return Finding(path, f'there is no {kind} "{name}"', closest(name, known))


def _agents(config: Config, draft: Draft) -> Iterator[Finding]:
    known = draft.names["agents"]
    for domain, agent in config.domains.items():
        if agent not in known:
            yield _unknown(("domains", domain), agent, known, "agent")
    for pattern, target in config.recipients.items():
        if target.agent and target.agent not in known:
            yield _unknown(("recipients", pattern), target.agent, known | {DENY}, "agent")
    if config.relay is not None and config.relay.agent not in known:
        yield _unknown(("relay", "agent"), config.relay.agent, known, "agent")


def _recipients(config: Config, draft: Draft) -> Iterator[Finding]:
    if config.subaddress_folders and not config.subaddress_separator:
        yield Finding(("subaddress_folders",), "needs a subaddress_separator")
    if not draft.is_whole("domains"):
        return
    recipients = RecipientMap(
        config.recipients,
        separator=config.subaddress_separator,
        case_sensitive=config.case_sensitive_local_parts,
    )
    for key, message in find_dead_ends(config.domains, recipients):
        yield Finding(("recipients", key), message)


def _filters(config: Config, draft: Draft) -> Iterator[Finding]:
    known = draft.names["listeners"]
    for name, options in config.filters.items():
        for number, listener in enumerate(options.listeners):
            if listener not in known:
                yield _unknown(("filters", name, "listeners", number), listener, known, "listener")
        try:
            domains = list(options.recipient_domains()) if draft.is_whole("domains") else []
        except (Exception, SystemExit) as error:  # whatever a stranger's options raise
            yield Finding(("filters", name), f"cannot be examined: {type(error).__name__}: {error}")
            continue
        for place, domain in domains:
            if covering_key(config.domains, domain) is None:
                ours = [key for key in config.domains if "*" not in key]
                guess = closest(domain, ours)
                yield Finding(("filters", name, *place), f"{domain} is not in [smtpd.domains]", guess)


def _addresses(config: Config) -> Iterator[Finding]:
    taken: dict[tuple[str, str, int], str] = {}
    for name, listener in config.listeners.items():
        for address in listener.address:
            place = split_address(address)
            if listener.mode == "lmtp" and place[0] == "tcp" and place[2] == 25:
                yield Finding(("listeners", name, "address"), "must not be port 25 with LMTP (RFC 2033 §5)")
            if place[0] == "tcp" and not place[2]:
                continue  # port 0: the system picks a free one
            if place in taken:
                yield Finding(("listeners", name, "address"), f"{address} belongs to listener {taken[place]}")
            taken.setdefault(place, name)


def _circles(config: Config) -> Iterator[Finding]:
    """Agents that hand mail to ourselves, as far as it can be seen without asking anybody."""
    listeners = {split_address(address): name for name, it in config.listeners.items() for address in it.address}
    for name, options in config.agents.items():
        try:
            hop = options.next_hop()
        except (Exception, SystemExit) as error:  # whatever a stranger's options raise
            yield Finding(("agents", name), f"cannot be examined: {type(error).__name__}: {error}")
            continue
        try:
            kind, host, port = split_address(hop)
        except ValueError:
            continue  # "" for none, or what only the agent can read
        for (our_kind, our_host, our_port), listener in listeners.items():
            if (kind, port) == (our_kind, our_port) and _leads_to(host, our_host, config.hostname.lower()):
                message = f"is listener {listener} of this server, so mail would go round in circles"
                yield Finding(("agents", name, "address"), message)


def _leads_to(host: str, bound_to: str, hostname: str) -> bool:
    host, bound_to = host.lower(), bound_to.lower()
    if host in (bound_to, hostname):
        return host == bound_to or bound_to in ("", "0.0.0.0", "::")  # noqa: S104 - a look, nothing is bound
    for address in ("127.0.0.1", "::1") if host == "localhost" else (host,):
        try:
            ip = ip_address(address)
        except ValueError:
            return False
        everywhere = ("", "0.0.0.0") if ip.version == 4 else ("", "::")  # noqa: S104
        if bound_to == address or (ip.is_loopback and bound_to in everywhere):
            return True
    return False


def _tls(config: Config, draft: Draft) -> Iterator[Finding]:
    certificate = (config.tls is not None and bool(config.tls.cert_file)) or not draft.is_whole("tls")
    authority = (config.tls is not None and bool(config.tls.client_ca_file)) or not draft.is_whole("tls")
    for name, listener in config.listeners.items():
        path = ("listeners", name)
        switches = listener.switches()
        if switches.tls == "off":
            if switches.tls_required:
                yield Finding((*path, "tls_required"), 'cannot be true while tls = "off"')
            if switches.client_certificates != "off":
                yield Finding((*path, "client_certificates"), 'needs TLS, but tls = "off"')
        elif not certificate:
            yield Finding(path, 'needs cert_file and key_file in [smtpd.tls], or tls = "off"')
        elif switches.client_certificates != "off" and not authority:
            yield Finding((*path, "client_certificates"), "needs client_ca_file in [smtpd.tls]")
    if draft.is_whole("tls") and config.tls is not None:
        yield from _pair(("tls",), config.tls.cert_file, config.tls.key_file)
    if draft.is_whole("metrics"):
        yield from _pair(("metrics",), config.metrics.cert_file, config.metrics.key_file)


def _pair(path: Path, certificate: str | None, key: str | None) -> Iterator[Finding]:
    if certificate and not key:
        yield Finding((*path, "key_file"), "must be set, as cert_file is")
    if key and not certificate:
        yield Finding((*path, "cert_file"), "must be set, as key_file is")


def _auth(config: Config, draft: Draft) -> Iterator[Finding]:
    known = draft.names["auth"]
    for number, provider in enumerate(config.auth.providers):
        if provider not in known:
            yield _unknown(("auth", "providers", number), provider, known, "table [smtpd.auth.…] for")
    for name, listener in config.listeners.items():
        switches = listener.switches()
        if switches.auth == "off":
            continue
        if switches.tls == "off":
            yield Finding(("listeners", name, "auth"), 'passwords need TLS, but tls = "off"')
        if not config.auth.providers and draft.is_whole("auth"):
            yield Finding(("listeners", name), 'clients log in here: name providers in [smtpd.auth], or auth = "off"')


def _postmaster(config: Config, draft: Draft) -> Iterator[Finding]:
    if not config.postmaster:
        return
    try:
        address = parse_address(config.postmaster)
    except AddressError as error:
        yield Finding(("postmaster",), f"is no address: {error.problem}")
        return
    if not address.domain:
        yield Finding(("postmaster",), "must have a domain")
    elif draft.is_whole("domains") and covering_key(config.domains, address.domain) is None:
        yield Finding(("postmaster",), f"its domain {address.domain} is not in [smtpd.domains]")


def _replies(config: Config) -> Iterator[Finding]:
    ours = {reply.key: reply for reply in all_replies().values()}
    for key, text in config.replies.items():
        if key not in ours:
            yield Finding(("replies", key), "unknown key", closest(key, ours))
            continue
        known = placeholders(ours[key].text)
        for name in sorted(placeholders(text) - known):
            yield Finding(("replies", key), f"has no placeholder {{{name}}}", closest(name, known))


def named_files(config: Config) -> Iterator[tuple[Path, str]]:
    """Files of certificates, keys and authorities that somebody else has to make."""
    tables: list[tuple[Path, object]] = [(("metrics",), config.metrics)]
    if config.tls is not None:
        tables.append((("tls",), config.tls))
        tables += [(("tls", "certificates", number), pair) for number, pair in enumerate(config.tls.certificates)]
    for path, table in tables:
        for key in ("cert_file", "key_file", "client_ca_file"):
            if name := getattr(table, key, None):
                yield (*path, key), name


def _files(config: Config) -> Iterator[Finding]:
    for path, name in named_files(config):
        if lacks(FilePath(name), stat.S_ISREG):
            yield Finding(path, f"there is no such file: {name}")
    if config.spool is not None and lacks(FilePath(config.spool), stat.S_ISDIR):
        yield Finding(("spool",), f"there is no such directory: {config.spool}")
