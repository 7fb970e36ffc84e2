from delivery_agents.breaker import Breaker


class Scene:
    def __init__(self) -> None:
        self.now = 100.0
        self.changes: list[bool] = []
        self.breaker = Breaker(limit=3, seconds=5.0, clock=lambda: self.now, changed=self.changes.append)

    def fail(self, times: int) -> None:
        for _ in range(times):
            self.breaker.failed()


def test_some_failures_change_nothing() -> None:
    scene = Scene()
    scene.fail(2)
    assert scene.breaker.admits()
    assert scene.changes == []


def test_only_failures_in_a_row_count() -> None:
    scene = Scene()
    scene.fail(2)
    scene.breaker.succeeded()
    scene.fail(2)
    assert scene.breaker.admits()


def test_too_many_failures_open_it_once() -> None:
    scene = Scene()
    scene.fail(5)
    assert not scene.breaker.admits()
    assert scene.changes == [True]


def test_one_attempt_passes_after_a_while() -> None:
    scene = Scene()
    scene.fail(3)
    scene.now += 4.9
    assert not scene.breaker.admits()
    scene.now += 0.1
    assert [scene.breaker.admits() for _ in range(3)] == [True, False, False]


def test_attempt_that_fails_means_waiting_again() -> None:
    scene = Scene()
    scene.fail(3)
    scene.now += 7
    assert scene.breaker.admits()
    scene.now += 1
    scene.breaker.failed()
    scene.now += 4.5
    assert not scene.breaker.admits()
    scene.now += 0.5
    assert scene.breaker.admits()


def test_attempt_that_nobody_reports_on_does_not_block_the_next() -> None:
    scene = Scene()
    scene.fail(3)
    for _ in range(3):
        scene.now += 5
        assert scene.breaker.admits()


def test_success_closes_it() -> None:
    scene = Scene()
    scene.fail(3)
    scene.breaker.succeeded()
    assert scene.breaker.admits()
    assert scene.changes == [True, False]
    scene.fail(2)
    assert scene.breaker.admits()
