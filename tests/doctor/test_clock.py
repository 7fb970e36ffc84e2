import pytest
from patients import only, patient

from smtpd.doctor.clock import check_clock
from smtpd.doctor.kernel_clock import ClockState, read_clock


@pytest.mark.parametrize(
    ("state", "level", "said"),
    [
        (ClockState(True, 0.01), "ok", "to 0.01 s"),
        (ClockState(True, 90.0), "warning", "90 s wrong"),
        (ClockState(False, 16.0), "warning", "nothing keeps it in step"),
        (None, "info", "cannot be known"),
    ],
)
async def test_the_clock_is_judged_by_what_the_kernel_says(state: ClockState | None, level: str, said: str) -> None:
    finding = only(await check_clock(patient(clock=lambda: state)))
    assert finding.level == level
    assert said in finding.meaning


async def test_a_clock_before_the_installation_is_wrong_whatever_the_kernel_says() -> None:
    finding = only(await check_clock(patient(now=lambda: 86400.0, clock=lambda: ClockState(True, 0.0))))
    assert finding.level == "problem"


def test_the_kernel_of_this_machine_gives_a_sensible_answer_or_none() -> None:
    state = read_clock()
    assert state is None or 0 <= state.max_error < 1e6
