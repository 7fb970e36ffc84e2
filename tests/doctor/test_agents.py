import os
from pathlib import Path

import pytest
from patients import configuration, levels, only, patient

from smtpd.doctor.agents import check_agents


async def test_an_agent_that_works_is_good(directory: Path) -> None:
    maildir = {"type": "maildir", "path": str(directory), "recipients": "any"}
    findings = await check_agents(patient(config=configuration(agents={"mail": maildir})))
    assert levels(findings) == ["ok", "ok"]
    assert [finding.subject for finding in findings] == ["agent store", "agent mail"]
    assert os.listdir(directory) == []


async def test_an_agent_with_nobody_behind_it_is_a_problem(directory: Path) -> None:
    lmtp = {"type": "lmtp", "address": f"unix:{directory}/nobody"}
    findings = await check_agents(patient(config=configuration(agents={"mail": lmtp})))
    assert levels(findings) == ["ok", "problem"]
    assert "cannot take mail now" in findings[1].meaning


async def test_an_agent_that_cannot_start_does_not_keep_the_others_from_being_asked(directory: Path) -> None:
    pipe = {"type": "pipe", "command": [str(directory / "nothing")]}
    findings = await check_agents(patient(config=configuration(agents={"program": pipe})))
    assert levels(findings) == ["ok", "problem"]
    assert "cannot start" in findings[1].meaning


async def test_root_starts_no_agent_of_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    config = configuration(user="nobody")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    finding = only(await check_agents(patient(config=config)))
    assert (finding.level, finding.advice) == ("info", "Run this command as nobody.")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert levels(await check_agents(patient(config=config))) == ["ok"]
