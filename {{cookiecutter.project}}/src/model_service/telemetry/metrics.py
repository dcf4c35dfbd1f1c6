"""What `/metrics` shows: requests, predictions, and how old and how current the model and its data are."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from model_service.artifact import Model, trained_at
from model_service.contract import Alerts
from model_service.freshness import Freshness

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})
REASONS = (
    "database_away", "database_timeout", "database_not_configured", "no_data", "inputs_failed", "model_failed",
    "model_timeout", "model_not_finite", "threads_lost", "timeout",
)  # fmt: skip
UNANSWERED = (*REASONS, "line_full", "line_slow", "stopping")
OUTCOMES = ("stored", "duplicate", "rejected", "dropped")


@dataclass(eq=False)
class Facts(Collector):
    """What was last seen of model and data; a figure that is not known has no series."""

    model: Model | None = None
    fresh: Sequence[Freshness] = ()
    quarantined: Mapping[str, int] | None = None
    live: Sequence[Mapping[str, Any]] = ()
    champion: str | None = None
    database_up: bool | None = None

    def collect(self) -> Iterator[Metric]:
        info = GaugeMetricFamily("model_info", "The model that answers", labels=["version", "digest"])
        trained = None
        if self.model:
            info.add_metric([self.model.version, self.model.digest], 1)
            trained = trained_at(self.model.card)
        yield info
        yield GaugeMetricFamily("model_age_seconds", "Since the newest knowledge it was trained on", _age(trained))
        newest = max((one.newest for one in self.fresh if one.newest), default=None)
        yield GaugeMetricFamily("data_age_seconds", "Since the newest value held became known", _age(newest))
        stale = GaugeMetricFamily(
            "dataset_stale", "1 when late or frozen; how many series are discontinued", labels=["dataset", "state"]
        )
        for one in self.fresh:
            for state, count in one.states.items():
                stale.add_metric([one.dataset, state], count)
        yield stale
        waiting = GaugeMetricFamily("quarantine_open", "Cells that nothing was done about", labels=["rule"])
        if self.quarantined is not None:
            for rule, count in {"vintage_conflict": 0, **self.quarantined}.items():
                waiting.add_metric([rule], count)
        yield waiting
        yield from _live(self.live)
        yield GaugeMetricFamily("database_up", "1 when the database answered last time", self.database_up)
        same = self.champion == self.model.digest if self.champion and self.model else None
        yield GaugeMetricFamily("champion_is_serving", "1 when the registry's champion is what answers", same)


class Metrics:
    """The service's own registry; labels are route templates: any number of URLs makes a bounded number of series."""

    def __init__(self, alerts: Alerts) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        self.facts = Facts()
        registry.register(self.facts)
        self._requests = Counter("http_requests", "Requests answered", ["method", "route", "status"], registry=registry)
        self._seconds = Histogram(
            "http_request_duration_seconds", "Time to answer", ["route"], buckets=SECONDS, registry=registry
        )
        self.settle: Callable[[], None] = lambda: None  # brings the counters up to date
        self._bound: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self.predictions = Counter("predictions", "Predictions given", ["route"], registry=registry)
        self.degraded = Counter("degraded", "Answers by a stand-in", ["reason"], registry=registry)
        self.unanswered = Counter("unanswered", "Requests that got 429 or 503", ["reason"], registry=registry)
        self.cache = Counter("cache_requests", "Answers asked for", ["cache", "outcome"], registry=registry)
        self.keys = Counter("api_key_requests", "Requests by the name of their key", ["key"], registry=registry)
        self.audit = Counter("audit_documents", "Audit documents by their fate", ["outcome"], registry=registry)
        for family, names in ((self.degraded, REASONS), (self.unanswered, UNANSWERED), (self.audit, OUTCOMES)):
            for name in names:
                family.labels(name)  # a rate sees the first one only if there was a nought before it
        limit = Gauge("alert_limit", "Limits of [alerts] in service.toml, in base units", ["name"], registry=registry)
        limit.labels("data_age_seconds").set(alerts.data_late_days * 86_400)
        for name in ("error_ratio", "latency_seconds", "live_rmse_ratio"):
            limit.labels(name).set(getattr(alerts, name))

    def of_slots(self, slots: Mapping[str, Callable[[str], float]]) -> None:
        """Gauges of what is in the making: by kind, what gives a figure by its name whenever it is scraped."""
        for name, says in (("busy", "Slots in use"), ("waiting", "Requests in line"), ("lost", "Threads given up")):
            gauge = Gauge(f"slots_{name}", says, ["kind"], registry=self.registry)
            for kind, figure in slots.items():
                gauge.labels(kind).set_function(functools.partial(figure, name))

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        bound = self._bound.get((method, route, status))
        if not bound:  # at most as many as there are series
            named = method if method in METHODS else "other"
            bound = self._requests.labels(named, route, str(status)), self._seconds.labels(route)
            if named == method:
                self._bound[method, route, status] = bound
        requests, duration = bound
        requests.inc()
        duration.observe(seconds)

    def text(self) -> bytes:
        self.settle()
        return generate_latest(self.registry)


def _live(errors: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    """Of `live.errors`: what is known of each horizon."""
    met = GaugeMetricFamily("live_forecasts", "Forecasts judged by what came true", labels=["horizon"])
    rmse = GaugeMetricFamily("live_rmse", "Error, in the target's unit", labels=["horizon", "release"])
    ratio = GaugeMetricFamily("live_rmse_ratio", "By latest release, against the backtest's", labels=["horizon"])
    coverage = GaugeMetricFamily("live_coverage", "Truths inside the intervals", labels=["horizon", "level"])
    for one in errors:
        horizon = str(one["horizon"])
        met.add_metric([horizon], one["n"])
        for release in ("first", "latest") if one["n"] else ():
            rmse.add_metric([horizon, release], one[f"rmse_{release}"])
        for level, share in one["coverage"].items():
            coverage.add_metric([horizon, level], share)
        if one["ratio"] is not None:
            ratio.add_metric([horizon], one["ratio"])
    yield from (met, rmse, ratio, coverage)


def _age(since: datetime | None) -> float | None:
    return (datetime.now(UTC) - since).total_seconds() if since else None
