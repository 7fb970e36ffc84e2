from ipaddress import ip_address

import pytest
from spf_suite import DEFAULT_EXPLANATION, Case, Scenario, scenarios

from filters.spf_evaluation import Client, evaluate

CASES = [pytest.param(scenario, case, id=case.name) for scenario in scenarios() for case in scenario.cases]


def test_suite_is_whole() -> None:
    assert len(CASES) == 203


@pytest.mark.parametrize(("scenario", "case"), CASES)
async def test_suite_of_rfc_7208_passes(scenario: Scenario, case: Case) -> None:
    client = Client(ip_address(case.host), case.helo, "mx.test")
    found = await evaluate(client, *case.identity, scenario.zone())
    assert found.result in case.results, found
    if case.explanation is not None:
        assert found.explanation == case.explanation.replace(DEFAULT_EXPLANATION, "")
