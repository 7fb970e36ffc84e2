"""Whether the delivery agents work now, asked of agents that are started and stopped again; they get no message."""

from __future__ import annotations

import asyncio
import os

from smtpd import plugins
from smtpd.delivery import DeliveryAgent
from smtpd.doctor.examination import Examination
from smtpd.doctor.finding import Finding
from smtpd.log import Log
from smtpd.metrics import Metrics
from smtpd.services import Services

_ADVICE = "Start what stands behind it, or correct its table; until then senders hear 4xx and try again."


async def check_agents(examination: Examination) -> list[Finding]:
    """One finding for each agent; none is started by root on behalf of another user, as it may make files."""
    config = examination.config
    if not config.agents:
        return [Finding("warning", "agents", "There are none: mail has nowhere to go.", "See docs/agents.md.")]
    if config.user is not None and os.geteuid() == 0:
        text = f"They were not tried: what root may do says nothing about user {config.user}."
        return [Finding("info", "agents", text, f"Run this command as {config.user}.")]
    from smtpd.config import LogOptions

    log = Log(LogOptions(to="stderr", level="error", format="console"))
    services = Services(config.hostname, log, Metrics(), resolver=examination.resolver)
    try:
        return list(await asyncio.gather(*(_check(examination, name, services) for name in config.agents)))
    finally:
        log.close()


async def _check(examination: Examination, name: str, services: Services) -> Finding:
    subject = f"agent {name}"
    options = examination.config.agents[name]
    try:
        agent = plugins.find(plugins.AGENTS, options.type)(name, options, services)
        assert isinstance(agent, DeliveryAgent)
        illness = await _illness(agent, examination.timeout / 2)
    except TimeoutError:
        text = f"It did not say in {examination.timeout / 2:g} s whether it works."
        return Finding("problem", subject, text, _ADVICE)
    except (Exception, SystemExit) as error:  # whatever a plug-in raises: it could not start in the server either
        return Finding("problem", subject, f"It cannot start: {type(error).__name__}: {error}", _ADVICE)
    if illness is not None:
        return Finding("problem", subject, f"It cannot take mail now: {illness}", _ADVICE)
    return Finding("ok", subject, f"It is there and takes mail (type {options.type}).")


async def _illness(agent: DeliveryAgent, seconds: float) -> str | None:
    async with asyncio.timeout(seconds):
        await agent.start()
        try:
            return await agent.health()
        finally:
            await agent.stop()
