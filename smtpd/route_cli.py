"""`smtpd check --route ADDRESS`: where mail for a recipient goes, and why."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from smtpd.config import Config
    from smtpd.routing import Explanation

TAKEN, REFUSED, NO_CONFIGURATION = 0, 1, 2


def show_route(file: Path | None, text: str, *, authenticated: bool, as_json: bool) -> int:
    """Print the steps of the look-up and the answer; the exit status."""
    from smtpd.config import ConfigError, load
    from smtpd.model import Recipient

    try:
        config = load(file, os.environ)
    except ConfigError as error:
        click.echo(str(error), err=True)
        return NO_CONFIGURATION
    found = _explain(config, text, authenticated)
    told = _told(found, config)
    click.echo(json.dumps(told, indent=1) if as_json else _for_eyes(found, told))
    return TAKEN if isinstance(found.answer, Recipient) else REFUSED


def _explain(config: Config, text: str, authenticated: bool) -> Explanation:
    from smtpd import replies
    from smtpd.addresses import AddressError, parse_path
    from smtpd.routing import Explanation, Router

    path = text if text.startswith("<") else f"<{text}>"
    try:
        address, rest = parse_path(path, strict=config.strict_syntax)
        if rest or address.is_null:
            raise AddressError("something follows the address" if rest else "the empty path is for senders only")
    except AddressError as error:
        return Explanation((), replies.BAD_RECIPIENT_SYNTAX(problem=error.problem))
    return Router.from_config(config).explain(address, authenticated=authenticated)


def _told(found: Explanation, config: Config) -> dict[str, object]:
    from smtpd.model import Recipient

    answer = found.answer
    steps = [{"looked_for": step.looked_for, "found": step.found} for step in found.steps]
    if isinstance(answer, Recipient):
        return {
            "taken": True,
            "agent": answer.agent,
            "mailbox": str(answer.destination),
            "folder": answer.folder,
            "exempt": answer.exempt,
            "steps": steps,
        }
    reply = answer.encode(texts=config.replies).decode("ascii").rstrip("\r\n")
    return {"taken": False, "reason": answer.key, "reply": reply, "steps": steps}


def _for_eyes(found: Explanation, told: dict[str, object]) -> str:
    width = max((len(step.looked_for) for step in found.steps), default=0)
    lines = [f"{step.looked_for:{width}}  {step.found}" for step in found.steps]
    if told["taken"]:
        lines += [
            f'taken: agent "{told["agent"]}", mailbox {told["mailbox"]}, folder {told["folder"] or "none, the inbox"}'
        ]
        if told["exempt"]:
            lines[-1] += ", no filter may refuse it"
    else:
        lines.append(f"refused: {told['reply']}")
    return "\n".join(map(_printable, lines))


def _printable(line: str) -> str:
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii") for sign in line)
