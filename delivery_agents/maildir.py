"""Store mail in Maildirs, durably: 250 is said when file and directory have reached the disk.

Every mailbox is a directory of its own; `path` says where. The names follow Maildir++, so Dovecot,
Courier and every mail reader that knows Maildir can work on them at the same time. Lines end in CRLF,
as received. Directories have lower-case names; octets that are not a-z, 0-9 or one of "._+=@~-" are percent-encoded,
as is a dot in front: jörg@bücher.example is in xn--bcher-kva.example/j%C3%B6rg.

A message for several mailboxes is stored once and linked into each of them. On top come Return-Path
and, only when there is a single recipient, Delivered-To: with several it would tell each of them about
the others. A message that was delivered to the same address before is refused, it is looping.

With `recipients = "existing"` a mailbox is a directory that is there, even an empty one: the first is made by
`mkdir -p /var/mail/example.com/alice`, with the server's user as its owner. A directory above mailboxes that has
nothing in it may not be mounted, so mail for those below it is put off (451). The one above all may not be missing
either; when that is so, or it is empty, `/readyz` and `smtpd doctor` say so.

What comes for `user+detail@domain` goes to `user@domain` unless a mailbox with the whole name is known.
If one of several mailboxes cannot be written, the message goes into none of them and the client hears
that it may try again.

The directory above all mailboxes is made at the start only. When it is gone later, moved away or not mounted, mail is
put off: what is stored in its place nobody would find again.

A message goes into the inbox, unless `folders` knows one of its labels or the recipient map names a folder.

A quota is looked at when the recipient is named, with the size the client has announced, and once more
when the message is there and has one recipient only; so a message to several can bring a mailbox over
its quota, once. The count is kept in `maildirsize` by the rules of Maildir++.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from delivery_agents.committer import Committer
from delivery_agents.directories import GROUP, OWNER, Box, make_directory
from delivery_agents.mailboxes import KnownRecipients, Layout, RecipientFile, check_template
from delivery_agents.quota import OverQuota, Quota
from delivery_agents.syncing import Syncer
from smtpd import replies, trace
from smtpd.addresses import Address, AddressError, parse_address
from smtpd.delivery import DeliveryAgent
from smtpd.model import Message, Recipient, Transaction
from smtpd.options import AgentOptions, Bytes, InputFile, Options, as_tuple
from smtpd.plugins import BrokenPlugin
from smtpd.replies import Reply
from smtpd.services import Services

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
# A header section may hold 1 MiB of such fields, and whoever delivers adds his own on top.
_DELIVERED_TO = re.compile(rb"\ndelivered-to[ \t]*:(?:[ \t]|\r\n(?=[ \t]))*([^\r\n]*)", re.IGNORECASE)
_MOST_DELIVERIES = 100
_FOLDER = re.compile(r"[A-Za-z0-9 _+=-]+(?:/[A-Za-z0-9 _+=-]+)*")


def _folder_name(folder: str) -> str:
    return "." + folder.replace("/", ".")


def _check_folders(folders: dict[str, str]) -> dict[str, str]:
    for name in folders.values():
        if _FOLDER.fullmatch(name) is None:
            raise ValueError('a folder is made of letters, digits, spaces and "_+=-", with "/" between levels')
    return folders


def _check_recipients(value: object) -> object:
    for address in value if isinstance(value, tuple) else ():
        parse_address(address)
    return value


class FileOfRecipients(Options):
    """Recipients that stand in a file."""

    file: InputFile
    """One address per line; lines that begin with "#" do not count. Read again when it has changed and nobody has
    written into it for two seconds; until then, and while it is empty, mail to those it does not have is put off."""


class MaildirOptions(AgentOptions):
    """Options of `maildir`."""

    path: Annotated[str, AfterValidator(check_template)]
    """Directory of a mailbox with the placeholders {domain} and {user}; without any, "/{domain}/{user}" is added."""
    recipients: Annotated[
        Literal["existing", "any"] | tuple[str, ...] | FileOfRecipients,
        BeforeValidator(as_tuple),
        AfterValidator(_check_recipients),
    ] = "existing"
    """Who gets mail: "existing" mailboxes only, "any" local part, a list of addresses, or { file = "PATH" };
    except with "existing" a missing mailbox is made."""
    case_sensitive: bool = False
    """Whether User@ and user@ have different mailboxes."""
    separator: Annotated[str, Field(max_length=1, pattern=r"^[!-~]?$")] = "+"
    """Character that starts the detail of `user+detail@domain`; empty: there are no details."""
    folders: Annotated[dict[str, str], AfterValidator(_check_folders)] = {}
    """Folder for messages with a label, such as { junk = "Junk" }; the first label that fits counts."""
    quota: Bytes = 0
    """Most that a mailbox may hold, bytes; 0: no limit."""
    quota_permanent: bool = False
    """Whether mail to a full mailbox is refused for good (552) instead of put off (452)."""
    access: Literal["owner", "group"] = "owner"
    """Who may read the files: 0600 and 0700, or for the "group" also 0660 and 0770."""
    fsync: Literal["file", "filesystem"] = "file"
    """What is synced: each file, or everything on the filesystem at once (only if it holds nothing else)."""

    def obstacles(self) -> Iterable[tuple[str, str]]:
        """Nothing can be stored anywhere; what is not there yet may be mounted later, or made."""
        layout = Layout(self.path, case_sensitive=self.case_sensitive)
        if problem := layout.obstacle(makes=self.recipients != "existing"):
            yield "path", problem
        if isinstance(self.recipients, FileOfRecipients):
            try:
                with suppress(OSError):  # said elsewhere
                    RecipientFile(layout, self.recipients.file, clock=time.monotonic, complain=print).load()
            except ValueError as error:
                yield "recipients", str(error)


class Maildir(DeliveryAgent):
    """Finds the mailboxes and has the committer store the message."""

    Options = MaildirOptions
    options: MaildirOptions

    def __init__(self, name: str, options: MaildirOptions, services: Services) -> None:
        super().__init__(name, options, services)
        self.options = options
        self._layout = Layout(options.path, case_sensitive=options.case_sensitive)
        self._known = self._known_recipients(options)
        self._folders = {label: _folder_name(folder) for label, folder in options.folders.items()}
        self._quota = Quota(options.quota) if options.quota else None
        self._access = GROUP if options.access == "group" else OWNER
        syncer = Syncer(self._layout.root)
        self._committer = Committer(
            services.hostname, syncer, sync=options.fsync, access=self._access, quota=self._quota
        )
        self.asks = options.recipients != "any" or self._quota is not None

    async def start(self) -> None:
        """Make the root (but not for existing mailboxes, they may be mounted later) and start the committer."""
        if isinstance(self._known, RecipientFile):
            try:
                self._known.load()
            except ValueError as error:
                raise BrokenPlugin(f"agent {self.name}: {error}") from error
        if self.options.recipients != "existing":
            make_directory(self._layout.root, self._access)
        self._committer.start()

    async def stop(self) -> None:
        """Store what was handed over, then end the committer."""
        await self._committer.stop()

    async def health(self) -> str | None:
        """Whether the committer works and the root can hold mail; not an empty one where mailboxes have to exist."""
        if not self._committer.is_running:
            return f"agent {self.name} is not running"
        if not os.access(self._layout.root, os.R_OK | os.X_OK):
            return f"{self._layout.root} cannot be read"
        if self.options.recipients == "existing" and (problem := self._layout.emptiness()):
            return problem
        return self._layout.fullness() or None

    async def verify(self, recipient: Recipient, mail: Transaction) -> Reply | None:
        """Whether the mailbox is known and has room for the announced size."""
        if self._known is not None:
            await self._known.refresh()
        try:
            return await self._look(recipient, max(mail.size or 0, 1))
        except OSError as error:
            self._tell(error, mail, ())
            return replies.BACKEND_DOWN

    async def deliver(self, mail: Transaction, message: Message) -> Reply | Mapping[Recipient, Reply]:
        """Store the message in all mailboxes or in none."""
        try:
            looping = _delivered_before(message, mail.recipients)
            boxes = self._boxes([recipient for recipient in mail.recipients if recipient not in looping], mail)
        except OSError as error:
            return self._reply(error, mail)
        top = trace.return_path(mail)
        if len(mail.recipients) == 1:
            top += trace.delivered_to(mail.recipients[0].destination.text)
        failure = await self._committer.store(top, message, boxes) if boxes else None
        reply = self._reply(failure, mail, boxes)
        if not looping:
            return reply
        return {
            recipient: replies.DELIVERED_BEFORE(address=recipient.address) if recipient in looping else reply
            for recipient in mail.recipients
        }

    async def _look(self, recipient: Recipient, size: int) -> Reply | None:
        path = self._find(recipient.destination)
        if path is None and not self._layout.is_there:
            raise FileNotFoundError(f"there is no directory {self._layout.root}")
        if path is None and self._known is not None and not self._known.is_complete:
            return replies.BACKEND_DOWN
        if path is None:
            return replies.NO_SUCH_USER(address=recipient.address)
        if self._quota is not None and await asyncio.to_thread(self._quota.is_full, path, size, recount=True):
            return self._full(recipient)
        return None

    def _reply(self, failure: Exception | None, mail: Transaction, boxes: Sequence[Box] = ()) -> Reply:
        if failure is None:
            return replies.ACCEPTED
        if isinstance(failure, OverQuota):
            return self._full(mail.recipients[0])
        if not isinstance(failure, OSError):
            raise failure
        self._tell(failure, mail, boxes)
        return replies.NO_SPACE if failure.errno in _NO_SPACE else replies.STORE_FAILED

    def _tell(self, failure: OSError, mail: Transaction, boxes: Sequence[Box]) -> None:
        """What failed and where: a path names a person, so it stands apart from the text, which everybody may read."""
        place = failure.filename
        if not isinstance(place, str) or not os.path.isabs(place):  # a name alone would tell nobody which disk is full
            place = boxes[0].path if len(boxes) == 1 else self._layout.root
        self.services.log.error(
            "mail-not-stored", agent=self.name, trace=mail.id, root=self._layout.root,
            mailboxes=[place, *getattr(failure, "__notes__", ())], problem=failure.strerror or str(failure),
        )  # fmt: skip

    def _full(self, recipient: Recipient) -> Reply:
        full = replies.MAILBOX_FULL_PERMANENTLY if self.options.quota_permanent else replies.MAILBOX_FULL
        return full(address=recipient.address)

    def _boxes(self, recipients: list[Recipient], mail: Transaction) -> list[Box]:
        boxes = [self._box(recipient, mail) for recipient in recipients]
        if len(boxes) > 1:
            # A mailbox gets one copy, and a symbolic link gives it a second name.
            boxes = list(dict.fromkeys(box._replace(path=os.path.realpath(box.path)) for box in boxes))
        return boxes

    def _box(self, recipient: Recipient, mail: Transaction) -> Box:
        address = recipient.destination
        # Taken at RCPT; if it went away since, storing fails and the client tries again.
        path = self._find(address) or self._layout.path(self._layout.user(address), address.domain)
        folder = ""
        if self._folders:
            labels = mail.labels_for(recipient)
            folder = next((name for label, name in self._folders.items() if label in labels), "")
        if not folder and recipient.folder and _FOLDER.fullmatch(recipient.folder) is not None:
            folder = _folder_name(recipient.folder)
        return Box(path, folder, "" if self.options.recipients == "existing" else self._layout.root)

    def _find(self, address: Address) -> str | None:
        """The mailbox's directory, None when there is no such mailbox; OSError when nobody can say."""
        layout, separator = self._layout, self.options.separator
        user, domain = layout.user(address), address.domain
        name, found, _ = user.partition(separator) if separator else (user, "", "")
        if self.options.recipients == "any":
            return layout.path(name if found and name else user, domain)
        for candidate in (user, name) if found and name else (user,):
            path = layout.path(candidate, domain)
            if (candidate, domain) in self._known if self._known is not None else layout.has(path):
                return path
        return None

    def _known_recipients(self, options: MaildirOptions) -> KnownRecipients | None:
        if isinstance(options.recipients, tuple):
            return KnownRecipients(self._layout, options.recipients)
        if isinstance(options.recipients, FileOfRecipients):
            return RecipientFile(self._layout, options.recipients.file, clock=time.monotonic, complain=self._complain)
        return None

    def _complain(self, exception: Exception) -> None:
        self.services.log.error("recipient-file-not-usable", agent=self.name, problem=str(exception))


def _delivered_before(message: Message, recipients: list[Recipient]) -> set[Recipient]:
    head = b"\n" + message.content.head()
    if b"\ndelivered-to" not in head.lower():
        return set()
    before = set()
    for found in islice(_DELIVERED_TO.finditer(head), _MOST_DELIVERIES):
        try:
            before.add(parse_address(found[1].decode("utf-8").strip().strip("<>")).key)
        except (AddressError, UnicodeDecodeError):
            continue  # not one that we have written
    return {recipient for recipient in recipients if recipient.destination.key in before}
