from hypothesis import given
from hypothesis import strategies as some
from manual_clock import ManualClock

from smtpd.dns import NXDOMAIN, Answer, tempfail
from smtpd.dns.answer import text_record
from smtpd.dns.cache import Cache, Key, cost_of

ONE = Answer("ok", ("192.0.2.1",))
TWO = Answer("ok", ("192.0.2.2",))
KEY: Key = ("a.example", "A")


def key(number: int) -> Key:
    return (f"{number}.example", "A")


def big(octets: int) -> Answer:
    return Answer("ok", (text_record(b"x" * octets),))


def test_answer_is_there_until_its_time_is_over() -> None:
    clock = ManualClock()
    cache = Cache(10, clock)
    cache.put(KEY, ONE, 60)
    clock.now += 59.9
    assert cache.get(KEY) is ONE
    clock.now += 0.1
    assert cache.get(KEY) is None
    assert len(cache) == 0


def test_newer_answer_replaces_the_older_one() -> None:
    cache = Cache(10, ManualClock())
    cache.put(KEY, ONE, 60)
    cache.put(KEY, TWO, 60)
    assert cache.get(KEY) is TWO
    assert cache.taken == 1


def test_answer_for_no_time_at_all_is_not_kept_and_neither_is_the_one_before() -> None:
    cache = Cache(10, ManualClock())
    cache.put(KEY, ONE, 60)
    cache.put(KEY, TWO, 0)
    assert cache.get(KEY) is None


def test_what_is_asked_for_again_outlives_what_strangers_fill_the_cache_with() -> None:
    cache = Cache(10, ManualClock())
    cache.put(KEY, ONE, 60)
    for number in range(1000):
        assert cache.get(KEY) is ONE
        cache.put(key(number), NXDOMAIN, 60)
    assert len(cache) == 10


def test_cache_full_of_wanted_answers_takes_new_ones() -> None:
    cache = Cache(100, ManualClock())
    for number in range(100):
        cache.put(key(number), ONE, 60)
        cache.get(key(number))
    cache.put(KEY, TWO, 60)
    assert cache.get(KEY) is TWO


def test_big_answers_count_as_several() -> None:
    cache = Cache(11, ManualClock())
    for number in range(10):
        cache.put(key(number), ONE, 60)
    cache.put(KEY, big(4096), 60)
    assert cost_of(big(4096)) == 10
    assert len(cache) == 2
    assert cache.taken == 11


def test_answer_bigger_than_everything_is_not_kept_and_drives_nothing_out() -> None:
    cache = Cache(10, ManualClock())
    cache.put(KEY, ONE, 60)
    cache.put(key(1), big(65000), 60)
    assert cache.get(KEY) is ONE
    assert cache.get(key(1)) is None


def test_cache_of_no_entries_keeps_nothing() -> None:
    cache = Cache(0, ManualClock())
    cache.put(KEY, ONE, 60)
    assert cache.get(KEY) is None


def test_old_answer_counts_again_in_an_emergency_until_it_is_too_old() -> None:
    clock = ManualClock()
    cache = Cache(10, clock, stale=100)
    cache.put(KEY, ONE, 60)
    clock.now += 61
    assert cache.get(KEY) is None
    revived = cache.revive(KEY, 30)
    assert revived is not None
    assert (revived.records, revived.stale, revived.ttl) == (ONE.records, True, 30)
    assert cache.get(KEY) == revived
    clock.now += 30
    assert cache.get(KEY) is None
    assert cache.revive(KEY, 30) == revived
    clock.now += 68
    assert cache.revive(KEY, 30) is not None
    clock.now += 1
    assert cache.get(KEY) is None
    assert cache.revive(KEY, 30) is None
    assert len(cache) == 0


def test_failure_is_never_kept_for_an_emergency() -> None:
    clock = ManualClock()
    cache = Cache(10, clock, stale=100)
    cache.put(KEY, tempfail("timeout"), 1)
    assert cache.revive(KEY, 30) is None
    clock.now += 2
    assert cache.revive(KEY, 30) is None
    cache.get(KEY)
    assert len(cache) == 0


def test_without_stale_seconds_nothing_comes_back() -> None:
    clock = ManualClock()
    cache = Cache(10, clock)
    cache.put(KEY, ONE, 60)
    clock.now += 61
    assert cache.revive(KEY, 30) is None


def test_flush_forgets_one_name_with_all_its_types_or_everything() -> None:
    cache = Cache(10, ManualClock())
    cache.put(KEY, ONE, 60)
    cache.put(("a.example", "MX"), ONE, 60)
    cache.put(key(1), ONE, 60)
    cache.put(key(2), ONE, 60)
    assert cache.flush("a.example") == 2
    assert cache.get(KEY) is None
    assert cache.get(key(1)) is ONE
    assert cache.flush() == 2
    assert (len(cache), cache.taken) == (0, 0)


STEPS = some.lists(
    some.tuples(
        some.sampled_from(["put", "get", "revive", "flush", "wait"]), some.integers(0, 12), some.integers(0, 9)
    ),
    max_size=200,
)


@given(STEPS)
def test_cache_stays_within_its_bounds_and_gives_only_what_was_put_last_and_is_not_over(
    steps: list[tuple[str, int, int]],
) -> None:
    clock = ManualClock()
    cache = Cache(8, clock, stale=5)
    last: dict[Key, tuple[Answer, float]] = {}
    for what, number, amount in steps:
        match what:
            case "put":
                answer = Answer("ok", (text_record(b"x" * (300 * amount)), str(len(last))))
                last[key(number)] = (answer, clock.now + amount)
                cache.put(key(number), answer, amount)
            case "get":
                got = cache.get(key(number))
                assert got is None or clock.now < last[key(number)][1] + 5
                if got is not None and not got.stale:
                    assert got is last[key(number)][0]
                    assert clock.now < last[key(number)][1]
            case "revive":
                revived = cache.revive(key(number), 2)
                assert revived is None or revived.records == last[key(number)][0].records
                assert revived is None or clock.now < last[key(number)][1] + 5
            case "flush":
                cache.flush(key(number)[0])
                assert cache.get(key(number)) is None
            case _:
                clock.now += amount
        assert 0 <= cache.taken <= 8
        assert len(cache) <= cache.taken
    cache.flush()
    assert (len(cache), cache.taken) == (0, 0)
