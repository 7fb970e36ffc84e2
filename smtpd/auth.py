"""AUTH (RFC 4954): SASL mechanisms, and the credential providers they ask.

A mechanism talks to the client through an `Exchange` and ends with a login or with `Refused`.
Which login a name and a password stand for is decided by providers: the users file of
`smtpd/users.py`, or anything else behind the entry-point group `smtpd.auth_providers`.
"""

from __future__ import annotations

import asyncio
import binascii
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from smtpd import replies
from smtpd.options import Options
from smtpd.replies import Refused
from smtpd.workers import CLIENT, Busy

if TYPE_CHECKING:
    from smtpd.log import Log
    from smtpd.services import Services

MAX_CREDENTIAL = 1024  # octets of a name or a password; RFC 4616 §2 asks for 255

CHECK_SECONDS = 60.0  # for one provider: clients wait a minute or two, and one that is not there must not keep them


class Exchange(Protocol):
    """What a mechanism sees of the conversation. It awaits nothing else: a conversation is no asyncio task."""

    user: str
    """The name that is tried, as the client wrote it; mechanisms set it for the log."""
    client: str | None
    """The client's address; None when nobody knows it."""

    async def challenge(self, data: bytes) -> bytes:
        """Send `334` with `data`, return the decoded response; raises Refused when there is none."""

    async def ask[T](self, work: Coroutine[Any, Any, T]) -> T:
        """Run something that awaits asyncio things, such as a question to a provider."""


class Mechanism(ABC):
    """One SASL mechanism: stateless, so one object serves all connections."""

    name: ClassVar[str] = ""
    plaintext: ClassVar[bool] = False
    """The password crosses the wire readably: never without TLS (RFC 4954 §4)."""

    @abstractmethod
    async def authenticate(self, exchange: Exchange, initial: bytes | None, authenticator: Authenticator) -> str:
        """Have the dialog, return the canonical login; `initial` is the decoded initial response."""


class Plain(Mechanism):
    """PLAIN (RFC 4616): one response, `authorization identity NUL name NUL password`."""

    name = "PLAIN"
    plaintext = True

    async def authenticate(self, exchange: Exchange, initial: bytes | None, authenticator: Authenticator) -> str:
        """See `Mechanism`; acting for somebody else is not offered."""
        response = await exchange.challenge(b"") if initial is None else initial
        parts = response.split(b"\0")
        if len(parts) != 3:  # RFC 4616 §2: exactly two NULs
            raise Refused(replies.AUTH_BAD_RESPONSE)
        identity, user = (_decode_text(part) for part in parts[:2])
        exchange.user = user
        password = _decode_text(parts[2])
        if identity and prepare_name(identity) != prepare_name(user):
            raise Refused(replies.AUTH_FAILED)
        return await exchange.ask(authenticator.check_password(user, password, client=exchange.client))


class Login(Mechanism):
    """LOGIN (draft-murchison-sasl-login): two prompts; many clients send the name with the command."""

    name = "LOGIN"
    plaintext = True

    async def authenticate(self, exchange: Exchange, initial: bytes | None, authenticator: Authenticator) -> str:
        """See `Mechanism`; an empty initial response counts as none."""
        exchange.user = user = _decode_text(initial or await exchange.challenge(b"Username:"))
        password = _decode_text(await exchange.challenge(b"Password:"))
        return await exchange.ask(authenticator.check_password(user, password, client=exchange.client))


_MECHANISMS: dict[str, Mechanism] = {mechanism.name: mechanism for mechanism in (Plain(), Login())}


def find_mechanism(name: str, *, tls: bool) -> Mechanism:
    """The mechanism of this name in any case; raises Refused when there is none or it needs TLS first."""
    mechanism = _MECHANISMS.get(name.upper())
    if mechanism is None:
        raise Refused(replies.AUTH_UNKNOWN_MECHANISM)
    if mechanism.plaintext and not tls:
        raise Refused(replies.AUTH_NEEDS_TLS)
    return mechanism


def decode_initial(raw: bytes) -> bytes:
    """Decode the initial response behind AUTH; a single "=" is an empty one (RFC 4954 §4)."""
    return b"" if raw == b"=" else decode_response(raw)


def decode_response(raw: bytes) -> bytes:
    """Decode a response line: strict alphabet and padding (RFC 4648 §3), an empty line is an empty response."""
    try:
        return binascii.a2b_base64(raw, strict_mode=True)
    except binascii.Error:
        raise Refused(replies.AUTH_BAD_BASE64) from None


def _decode_text(raw: bytes) -> str:
    """Octets that no user can have, such as a password in Latin-1, fail like a wrong password."""
    if len(raw) > MAX_CREDENTIAL:
        raise Refused(replies.AUTH_FAILED)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise Refused(replies.AUTH_FAILED) from None


def prepare_name(name: str) -> str | None:
    """Bring a user name into the form that is compared and stored; None when no name can look like this.

    The profile UsernameCaseMapped (RFC 8265 §3.3) without its tables of unassigned characters and its
    rule for writing directions: wide and narrow forms become plain ones, letters lower case, then NFC.
    """
    text = unicodedata.normalize("NFC", "".join(map(_plain_width, name)).lower())
    if not text or any(unicodedata.category(character)[0] in "CZ" for character in text):
        return None
    return text


def prepare_password(password: str) -> str | None:
    """Bring a password into the form that is hashed and compared; None when it is empty or holds controls.

    The profile OpaqueString (RFC 8265 §4.2): every kind of space becomes U+0020, then NFC.
    """
    text = "".join(" " if unicodedata.category(character) == "Zs" else character for character in password)
    text = unicodedata.normalize("NFC", text)
    if not text or any(unicodedata.category(character) in _NOT_IN_PASSWORDS for character in text):
        return None
    return text


_NOT_IN_PASSWORDS = frozenset({"Cc", "Cs", "Co", "Cn", "Zl", "Zp"})


def _plain_width(character: str) -> str:
    kind, _, points = unicodedata.decomposition(character).partition(" ")
    return chr(int(points, 16)) if kind in ("<wide>", "<narrow>") else character


class ProviderOptions(Options):
    """What every provider can be told; its own options come on top."""

    type: str
    """Entry-point name of the provider."""


class CredentialProvider:
    """Somebody who knows logins. Override `check_password`; the rest are no-ops.

    Mechanisms that never see a password will ask a provider in other ways; those become further
    methods with a default that says "not here", so a provider written today keeps working.
    """

    Options: ClassVar[type[ProviderOptions]] = ProviderOptions

    def __init__(self, name: str, options: ProviderOptions, services: Services) -> None:
        self.name = name
        self.options = options
        self.services = services

    async def start(self) -> None:
        """Get ready before the first connection; an exception keeps the server from starting."""

    async def stop(self) -> None:
        """Give everything back."""

    async def health(self) -> str | None:
        """None when logins can be checked, else one sentence saying why not."""
        return None

    async def check_password(self, user: str, password: str) -> str | None:
        """The canonical login when name and password are right, else None, which must take as long.

        Both come prepared (`prepare_name`, `prepare_password`). An exception means that the question
        could not be decided, as no answer within CHECK_SECONDS does: the client hears 454, never 535.
        """
        raise NotImplementedError(type(self).__name__)


class Authenticator:
    """All providers of `[smtpd.auth]`, asked in their order; somebody else starts and stops them."""

    def __init__(self, providers: Sequence[CredentialProvider], *, log: Log) -> None:
        self.providers = tuple(providers)
        self._log = log
        self._broken: set[str] = set()

    def mechanisms(self, tls: bool) -> tuple[str, ...]:
        """Names to advertise: none without providers, no plaintext mechanism without TLS (RFC 4954 §4)."""
        if not self.providers:
            return ()
        return tuple(mechanism.name for mechanism in _MECHANISMS.values() if tls or not mechanism.plaintext)

    async def check_password(self, user: str, password: str, *, client: str | None = None) -> str:
        """The canonical login; raises Refused with AUTH_FAILED, or AUTH_BACKEND_DOWN when it is undecided.

        `client` is the address it comes from: checks of one client do not keep those of others waiting.
        """
        token = CLIENT.set(client)
        try:
            return await self._ask_providers(user, password)
        finally:
            CLIENT.reset(token)

    async def _ask_providers(self, user: str, password: str) -> str:
        name, secret = prepare_name(user), prepare_password(password)
        if name is None or secret is None:
            raise Refused(replies.AUTH_FAILED)
        undecided = False
        for provider in self.providers:
            try:
                async with asyncio.timeout(CHECK_SECONDS):
                    login = _login_of(await provider.check_password(name, secret))
            except Busy:
                undecided = True
            except (GeneratorExit, KeyboardInterrupt):
                raise
            except BaseException as error:  # one that breaks, by sys.exit() too, must not look like a wrong password
                caller = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError) and caller is not None and caller.cancelling():
                    raise
                undecided = True
                self._report_broken(provider.name, error)
            else:
                self._broken.discard(provider.name)
                if login is not None:
                    return login
        raise Refused(replies.AUTH_BACKEND_DOWN if undecided else replies.AUTH_FAILED)

    def _report_broken(self, provider: str, error: BaseException) -> None:
        if provider not in self._broken:
            self._broken.add(provider)
            self._log.error("auth-provider-broken", provider=provider, exception=error)


def _login_of(answer: object) -> str | None:
    """TypeError for what is no login: a False that means "wrong" would let everybody in."""
    if answer is None or (isinstance(answer, str) and answer):
        return answer
    raise TypeError(f"check_password returned {type(answer).__name__} where a login or None is due")
