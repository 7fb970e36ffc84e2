import math
import random
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from smtpd import replies
from smtpd.metrics import (
    OPENMETRICS_TYPE,
    SERVER_METRICS,
    Counter,
    Gauge,
    Histogram,
    Meters,
    Metrics,
    Slots,
)
from smtpd.series import MAX_SERIES

HITS = Counter("hits_total", "Hits.", ("color",))
LEVEL = Gauge("level", "Level.")
SIZES = Histogram("sizes", "Sizes.", (), (1.0, 10.0))


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def meters(metrics: Metrics) -> Meters:
    return Meters(metrics, "smtp", ["Example.com", "*.wild.test"], Slots(2))


def test_same_description_gives_the_same_series(metrics: Metrics) -> None:
    metrics.counter(HITS).labels("red").inc()
    metrics.counter(HITS).labels("red").inc(2)
    assert value(metrics, "hits_total", color="red") == 3


def test_another_metric_of_the_same_name_is_refused(metrics: Metrics) -> None:
    metrics.counter(HITS)
    for other in (Counter("hits_total", "Other.", ("color",)), Counter("hits_total", "Hits.")):
        with pytest.raises(ValueError, match="two different metrics"):
            metrics.counter(other)
    with pytest.raises(ValueError, match="two different metrics"):
        metrics.gauge(Gauge("hits", "In OpenMetrics this is the counter's name."))


def test_two_servers_count_apart() -> None:
    first, second = Metrics(), Metrics()
    first.counter(HITS).labels("red").inc()
    second.counter(HITS).labels("blue").inc()
    assert value(second, "hits_total", color="red") is None


def test_counters_never_go_down(metrics: Metrics) -> None:
    with pytest.raises(ValueError, match="only grows"):
        metrics.counter(HITS).labels("red").inc(-1)


def test_wrong_number_of_label_values_is_an_error(metrics: Metrics) -> None:
    with pytest.raises(ValueError, match="color"):
        metrics.counter(HITS).labels("red", "round")


def test_bad_descriptions_are_refused() -> None:
    with pytest.raises(ValueError, match="_total"):
        Counter("hits", "Hits.")
    with pytest.raises(ValueError, match="ascending"):
        Histogram("sizes", "Sizes.", (), (2.0, 1.0))


def test_gauges_go_up_and_down(metrics: Metrics) -> None:
    gauge = metrics.gauge(LEVEL).labels()
    gauge.set(5)
    gauge.inc()
    gauge.inc(-3)
    assert value(metrics, "level") == 3


def test_gauge_functions_are_asked_at_each_scrape(metrics: Metrics) -> None:
    items: list[int] = []
    metrics.gauge(LEVEL).labels().set_function(lambda: len(items))
    items.append(1)
    assert value(metrics, "level") == 1


def test_a_broken_gauge_function_leaves_all_other_numbers_readable(metrics: Metrics) -> None:
    metrics.counter(HITS).labels("red").inc()
    metrics.gauge(LEVEL).labels().set_function(lambda: 1 / 0)
    broken = value(metrics, "level")
    assert broken is not None
    assert math.isnan(broken)
    assert value(metrics, "hits_total", color="red") == 1


def test_histogram_bounds_belong_to_their_bucket(metrics: Metrics) -> None:
    histogram = metrics.histogram(SIZES).labels()
    for size in (0.5, 1.0, 1.5, 10.0, 11.0):
        histogram.observe(size)
    assert [value(metrics, "sizes_bucket", le=bound) for bound in ("1.0", "10.0", "+Inf")] == [2, 4, 5]
    assert value(metrics, "sizes_count") == 5
    assert value(metrics, "sizes_sum") == 24


def test_text_can_be_read_back(metrics: Metrics) -> None:
    metrics.counter(HITS).labels('a "quoted"\nline\\').inc()
    metrics.histogram(SIZES).labels().observe(3)
    body, content_type = metrics.exposition()
    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    assert content_type.startswith("text/plain; version=0.0.4")
    assert families["hits"].samples[0].labels == {"color": 'a "quoted"\nline\\'}
    assert families["sizes"].type == "histogram"


def test_openmetrics_is_spoken_when_asked_for(metrics: Metrics) -> None:
    metrics.counter(HITS).labels("red").inc()
    body, content_type = metrics.exposition("application/openmetrics-text;version=1.0.0;q=0.9,text/plain;q=0.1")
    assert content_type == OPENMETRICS_TYPE
    assert body.endswith(b"# EOF\n")


@pytest.mark.parametrize(
    "accept", ["text/plain;version=x;escaping=\x00", "application/openmetrics-text;version=9z", ",;,"]
)
def test_odd_accept_fields_never_break_or_reach_the_answer(metrics: Metrics, accept: str) -> None:
    assert metrics.exposition(accept)[1].isprintable()
    assert "9z" not in metrics.exposition(accept)[1]


def test_too_many_series_of_one_metric_become_one(metrics: Metrics) -> None:
    family = metrics.counter(HITS)
    for number in range(MAX_SERIES + 50):
        family.labels(str(number)).inc()
    assert len(family) == MAX_SERIES + 1
    assert value(metrics, "hits_total", color="other") == 50


def test_every_metric_the_server_promises_exists_with_its_labels() -> None:
    described = {description.name: description.labels for description in SERVER_METRICS}
    assert described == {
        "smtpd_connections_total": ("listener", "ip"),
        "smtpd_connections_active": ("listener",),
        "smtpd_connections_refused_total": ("listener", "reason"),
        "smtpd_proxy_headers_total": ("listener", "kind"),
        "smtpd_dropped_total": ("reason",),
        "smtpd_tls_connections_total": ("listener", "version"),
        "smtpd_messages_received_total": ("listener", "recipient_domain"),
        "smtpd_messages_rejected_total": ("listener", "reason", "recipient_domain"),
        "smtpd_messages_size_bytes": ("listener",),
        "smtpd_auth_attempts_total": ("listener", "mechanism", "result"),
        "smtpd_command_duration_seconds": ("command",),
        "smtpd_delivery_duration_seconds": ("result",),
    }


def test_every_server_metric_shows_after_its_meter_moved(metrics: Metrics, meters: Meters) -> None:
    meters.connected("192.0.2.1")
    meters.refused_connection("total")
    meters.dropped("http")
    meters.proxy_header("proxied")
    meters.tls("TLSv1.3")
    meters.auth("plain", "ok")
    meters.commands["MAIL"](0.002)
    meters.received(["example.com"], 4096)
    meters.rejected(replies.NO_SUCH_USER.key, "example.com")
    meters.deliveries["accepted"](0.5)
    shown = {
        sample.name
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.value
    }
    for description in SERVER_METRICS:
        assert {description.name, f"{description.name}_count"} & shown, description.name


def test_connections_come_and_go(metrics: Metrics, meters: Meters) -> None:
    meters.connected("192.0.2.1")
    meters.connected("192.0.2.1")
    meters.disconnected()
    assert value(metrics, "smtpd_connections_active", listener="smtp") == 1
    assert value(metrics, "smtpd_connections_total", listener="smtp", ip="192.0.2.1") == 2


def test_addresses_beyond_the_slots_are_other(metrics: Metrics, meters: Meters) -> None:
    for number in (1, 2, 3, 4, 1):
        meters.connected(f"192.0.2.{number}")
    name = "smtpd_connections_total"
    counted = [value(metrics, name, listener="smtp", ip=ip) for ip in ("192.0.2.1", "192.0.2.3", "other")]
    assert counted == [2, None, 2]


def test_listeners_share_the_slots(metrics: Metrics) -> None:
    slots = Slots(1)
    Meters(metrics, "smtp", [], slots).connected("192.0.2.1")
    Meters(metrics, "alt", [], slots).connected("192.0.2.2")
    assert value(metrics, "smtpd_connections_total", listener="alt", ip="other") == 1


def test_no_slots_switch_the_label_off() -> None:
    slots = Slots(0)
    assert [slots.label("192.0.2.1"), slots.label("192.0.2.1")] == ["other", "other"]


@pytest.mark.parametrize(
    ("domain", "label"),
    [
        ("example.com", "example.com"),
        ("EXAMPLE.com", "example.com"),
        ("a.b.wild.test", "*.wild.test"),
        ("wild.test", "other"),
        ("notexample.com", "other"),
        ("", "other"),
        ("[192.0.2.1]", "other"),
    ],
)
def test_only_configured_domains_are_labels(metrics: Metrics, meters: Meters, domain: str, label: str) -> None:
    meters.received([domain], 1)
    assert value(metrics, "smtpd_messages_received_total", listener="smtp", recipient_domain=label) == 1


def test_a_catch_all_domain_is_its_own_label(metrics: Metrics) -> None:
    Meters(metrics, "smtp", ["*", "*.b.test"], Slots(0)).received(["x.b.test", "any.test"], 1)
    for label in ("*", "*.b.test"):
        assert value(metrics, "smtpd_messages_received_total", listener="smtp", recipient_domain=label) == 1


def test_a_message_counts_once_for_each_domain_and_once_for_its_size(metrics: Metrics, meters: Meters) -> None:
    meters.received(["example.com", "example.com", "a.wild.test", "b.wild.test"], 5000)
    for label in ("example.com", "*.wild.test"):
        assert value(metrics, "smtpd_messages_received_total", listener="smtp", recipient_domain=label) == 1
    assert value(metrics, "smtpd_messages_size_bytes_count", listener="smtp") == 1


def test_reasons_of_plug_ins_are_bounded(metrics: Metrics, meters: Meters) -> None:
    for number in range(1000):
        meters.rejected(f"invented-{number}", None)
    assert len(list(series(metrics, "smtpd_messages_rejected"))) == 201
    meters.rejected("no-such-user", "example.com")
    found = value(
        metrics, "smtpd_messages_rejected_total", listener="smtp", reason="no-such-user", recipient_domain="example.com"
    )
    assert found == 1


def test_a_reload_continues_the_same_series(metrics: Metrics, meters: Meters) -> None:
    meters.received(["example.com"], 1)
    Meters(metrics, "smtp", ["example.com", "new.test"], Slots(2)).received(["example.com"], 1)
    assert value(metrics, "smtpd_messages_received_total", listener="smtp", recipient_domain="example.com") == 2


def series(metrics: Metrics, name: str) -> Iterator[tuple[object, float]]:
    for family in metrics.registry.collect():
        if family.name.startswith(name):
            for sample in family.samples:
                yield (sample.name, tuple(sorted(sample.labels.items()))), sample.value


def strange_client(meters: Meters, chance: random.Random) -> None:
    """Do what one random stranger can do; the work per client is kept small, there are a million."""
    number = chance.getrandbits(32)
    word = f"{number:x}"
    meters.connected(word)
    kind = number % 8
    if kind == 0:
        meters.received((word, "example.com"), number % 100_000)
    elif kind == 1:
        meters.rejected("no-such-user" if number & 8 else word, f"{word}.wild.test" if number & 16 else word)
    elif kind == 2:
        meters.auth(word, "failed")
    elif kind == 3:
        meters.commands[word](0.01)
    elif kind == 4:
        meters.tls(word)
    elif kind == 5:
        meters.dropped(word)
    elif kind == 6:
        meters.refused_connection(word)
    meters.disconnected()


def test_a_million_strangers_cannot_multiply_or_shrink_series(metrics: Metrics) -> None:
    meters = Meters(metrics, "smtp", ["example.com", "*.wild.test"], Slots(100))
    chance = random.Random(20)
    before: dict[object, float] = {}
    for _ in range(20):
        for _ in range(50_000):
            strange_client(meters, chance)
        now = dict(series(metrics, "smtpd_"))
        assert all(now[key] >= amount for key, amount in before.items())
        before = now
    assert len(meters._by_ip) == 100  # what is kept for speed is bounded, too
    families = {family.description.name: len(family) for family in metrics.families()}
    assert families["smtpd_connections_total"] == 101
    assert families["smtpd_messages_received_total"] == 2
    assert families["smtpd_messages_rejected_total"] <= (200 + 2) * 3
    assert families["smtpd_auth_attempts_total"] == 1
    assert families["smtpd_tls_connections_total"] == 1
    assert families["smtpd_dropped_total"] <= 51
    assert families["smtpd_connections_refused_total"] <= 51
    assert sum(now for key, now in before.items() if "smtpd_connections_total" in str(key)) == 1_000_000


@pytest.mark.parametrize("domains", [["example.com", "*.wild.test"], ["*", "example.com"], ["other"], []])
@pytest.mark.parametrize("domain", ["example.com", "EXAMPLE.com", "a.wild.test", "wild.test", "other", "", "*"])
def test_one_recipient_counts_like_any_number(domains: list[str], domain: str) -> None:
    counted = []
    for count in (lambda meters: meters.received_one(domain, 5000), lambda meters: meters.received([domain], 5000)):
        metrics = Metrics()
        meters = Meters(metrics, "smtp", domains, Slots(0))
        for other in (domain, "example.com", "unknown.test", "other"):
            meters.received([other], 1)
        count(meters)
        counted.append(dict(series(metrics, "smtpd_messages")))
    assert counted[0] == counted[1]


def test_a_verb_nobody_knows_counts_as_other_and_is_not_kept(metrics: Metrics, meters: Meters) -> None:
    known = len(meters.commands)
    meters.commands["MAIL"](0.1)
    meters.commands["XYZZY"](0.1)
    meters.commands["GRUE"](0.1)
    assert value(metrics, "smtpd_command_duration_seconds_count", command="MAIL") == 1
    assert value(metrics, "smtpd_command_duration_seconds_count", command="other") == 2
    assert len(meters.commands) == known
