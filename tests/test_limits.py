import pytest
from hypothesis import given
from hypothesis import strategies as some

from smtpd.limits import ConnectionLimits, ContentBudget, DataRate


def test_connections_beyond_the_total_are_refused_until_one_ends() -> None:
    limits = ConnectionLimits(total=2, per_ip=0)
    assert [limits.admit("192.0.2.1"), limits.admit("192.0.2.2"), limits.admit("192.0.2.3")] == [None, None, "total"]
    limits.release("192.0.2.1")
    assert limits.admit("192.0.2.3") is None


def test_one_address_cannot_take_all_connections() -> None:
    limits = ConnectionLimits(total=0, per_ip=1)
    assert limits.admit("192.0.2.1") is None
    assert limits.admit("192.0.2.1") == "address"
    assert limits.admit("192.0.2.2") is None


def test_zero_means_no_limit() -> None:
    limits = ConnectionLimits(total=0, per_ip=0)
    assert {limits.admit("192.0.2.1") for _ in range(5000)} == {None}


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
    ],
)
def test_ipv6_clients_count_by_their_network(first: str, second: str, together: bool) -> None:
    limits = ConnectionLimits(total=0, per_ip=1)
    limits.admit(first)
    assert (limits.admit(second) == "address") is together


@given(some.lists(some.tuples(some.integers(0, 5), some.booleans()), max_size=200))
def test_nothing_is_remembered_of_clients_that_left(steps: list[tuple[int, bool]]) -> None:
    limits = ConnectionLimits(total=10, per_ip=3)
    connected: list[str] = []
    for number, arrives in steps:
        ip = f"192.0.2.{number}"
        if arrives and limits.admit(ip) is None:
            connected.append(ip)
        elif not arrives and ip in connected:
            connected.remove(ip)
            limits.release(ip)
    assert limits.active == len(connected)
    assert limits.clients == len(set(connected))


def test_release_without_admission_is_an_error() -> None:
    with pytest.raises(ValueError, match="admitted"):
        ConnectionLimits(total=0, per_ip=0).release("192.0.2.1")


def test_a_connection_can_move_to_another_address() -> None:
    limits = ConnectionLimits(total=2, per_ip=1)
    assert limits.admit("192.0.2.1") is None
    assert limits.admit("192.0.2.2") is None
    assert limits.move("192.0.2.1", "192.0.2.2") == "address"
    assert limits.move("192.0.2.1", "192.0.2.3") is None
    assert (limits.active, limits.clients) == (2, 2)
    limits.release("192.0.2.3")
    assert limits.admit("192.0.2.1") is None
    with pytest.raises(ValueError, match=r"192\.0\.2\.3"):
        limits.release("192.0.2.3")


def test_moving_inside_one_network_is_no_move() -> None:
    limits = ConnectionLimits(total=0, per_ip=1)
    limits.admit("2001:db8::1")
    assert limits.move("2001:db8::1", "2001:db8::2") is None
    assert (limits.active, limits.clients) == (1, 1)


def test_content_budget_takes_all_or_nothing() -> None:
    budget = ContentBudget(100)
    assert budget.take(60)
    assert not budget.take(41)
    assert budget.take(40)
    budget.give(100)
    assert budget.used == 0


def test_content_budget_without_limit_still_counts() -> None:
    budget = ContentBudget(0)
    assert budget.take(1 << 40)
    assert budget.used == 1 << 40


def test_giving_back_more_than_was_taken_is_an_error() -> None:
    with pytest.raises(ValueError, match="given back"):
        ContentBudget(10).give(1)


def test_slow_content_shows_at_the_end_of_a_window() -> None:
    rate = DataRate(10, 1000.0, window=60)
    assert not rate.too_slow(1059.9, 599)
    assert rate.too_slow(1060.0, 0)


def test_content_at_the_minimum_rate_is_fast_enough() -> None:
    assert not DataRate(10, 1000.0, window=60).too_slow(1060.0, 600)


def test_a_fast_start_does_not_pay_for_a_stall_later() -> None:
    rate = DataRate(10, 0.0, window=60)
    assert not rate.too_slow(60.0, 1_000_000)
    assert rate.too_slow(120.0, 1)


def test_no_minimum_rate_means_never_too_slow() -> None:
    assert not DataRate(0, 0.0).too_slow(1e9, 0)
