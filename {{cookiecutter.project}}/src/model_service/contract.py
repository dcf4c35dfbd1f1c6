"""`service.toml`, typed and validated: what is loaded, modelled, gated and served."""

import re
import tomllib
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from model_service.errors import UsageError
from model_service.inputs import Feature
from model_service.mistakes import OWN, Misfits, Place, Section, did_you_mean, validate, why_not_callable

Frequency = Literal["day", "weekday", "week", "month", "quarter", "half_year", "year"]
Transform = Literal["level", "difference", "log_difference"]
Action = Literal["block", "mark", "warn"]  # what follows when a load fails a check
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]

END_SECONDS = 10.0  # of a stop, from the last answer to the end in any case: the audit trail has six, the server one
ESTIMATORS = ("ridge", "elastic_net", "random_forest", "gradient_boosting")
CADENCE_DAYS = {"day": 1, "weekday": 1, "week": 7, "month": 31, "quarter": 92, "half_year": 184, "year": 366}


def _slug(text: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9-]*", text):
        raise ValueError("lower-case letters, digits and dashes, a letter first")
    return text


def _estimator(text: str) -> str:
    if text not in ESTIMATORS and not re.fullmatch(OWN, text):
        raise ValueError(f"{text!r} is none of {', '.join(ESTIMATORS)}, nor one's own as module:Class"
                         + did_you_mean(text, list(ESTIMATORS)))  # fmt: skip
    return text


class Service(Section):
    name: Annotated[str, AfterValidator(_slug)]
    description: str = ""
    task: Literal["forecast"] = "forecast"


class Image(Section):
    repository: str
    base: str


class Source(BaseModel):
    """A provider: `kind` names a module of loader/sources/; the other keys belong to it and it checks them."""

    model_config = ConfigDict(frozen=True, extra="allow")
    kind: str
    max_vanished: Share = 0.05  # of what was held, that a complete payload may lack
    cadence_days: Positive | None = None  # between two times that something new becomes known
    poll_seconds: Positive | None = None  # between two looks of `load --follow`

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Limit(Section):
    """How far a check lets it go: `jump = 10`, or `jump = { limit = 10, action = "block" }`."""

    limit: Annotated[float, Field(ge=0)]
    action: Action = "mark"

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, given: Any) -> Any:
        return given if isinstance(given, Mapping) else {"limit": given}


class Parts(Section):
    """Series that sum to the one that names them, within `tolerance` in its unit."""

    series: Annotated[tuple[str, ...], Field(min_length=1)]
    tolerance: Annotated[float, Field(ge=0)]
    action: Action = "mark"


class Check(Section):
    """A rule in SQL over `latest (series, valid_time, known_from, value)`: the rows that it returns offend."""

    name: str
    sql: str
    action: Action = "mark"


class Series(Section):
    """`range` and `allowed` hold for each cell; the others for what a load makes known."""

    source: str
    frequency: Frequency
    unit: str
    release_lag_days: int
    range: tuple[FiniteFloat, FiniteFloat] | None = None
    allowed: Annotated[tuple[FiniteFloat, ...], Field(min_length=1)] | None = None
    jump: Limit | None = None  # a change between neighbours, in multiples of the usual one
    flat: Limit | None = None  # so many newest values alike
    shift: Limit | None = None  # what a load usually revises its cells by, in multiples of the usual change
    max_missing: Limit | None = None  # share of the periods that have no value
    parts: Parts | None = None

    @model_validator(mode="after")
    def _range_holds_something(self) -> "Series":
        if self.range and self.range[0] > self.range[1]:
            raise ValueError(f"range: {self.range[0]:g} is above {self.range[1]:g}")
        return self


class Target(Section):
    series: str
    transform: Transform = "difference"
    horizons: Annotated[tuple[Annotated[PositiveInt, Field(strict=True)], ...], Field(min_length=1)]
    truth: Literal["latest"] = "latest"


class Train(Section):
    estimator: Annotated[str, AfterValidator(_estimator)] = "ridge"  # one of ESTIMATORS, or one's own module:Class
    first_origin: date
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 1
    search: Annotated[int, Field(ge=0, le=200)] = 0  # settings tried at each refit; 0: those of the estimator
    search_seconds: Positive = 60  # at each refit; cut by it, two trainings may differ


class Gate(Section):
    """Limits of the gate's rules. Ratios of errors are ratios of RMSE."""

    level: Annotated[float, Field(gt=0, lt=0.5)] = 0.05  # of each one-sided test
    max_rmse_ratio: Positive = 1.02  # to the best baseline, at each horizon
    min_rmse_ratio: Share = 0.2  # at the best horizon: a better model is more likely to know the answer
    max_slice_ratio: Positive = 1.25  # to the best baseline of a slice, horizons averaged
    max_champion_ratio: Positive = 1.05  # to the champion; that it is not more must be shown at `level`
    coverage_slack: Share = 0.15  # how far an interval's coverage may stay below its level
    max_perturbation: Positive = 0.5  # in the target's usual change, from inputs moved by a tenth of their spread
    max_wrong_direction: Share = 0.1  # of the forecast's way, against a feature's declared direction
    max_useless: Share = 0.7  # of the inputs not shown to matter: lags of one series stand in for each other
    max_change: Positive = 0.5  # from the champion's forecasts when it is trained anew, in RMSE
    max_overdue: Positive = 1.0  # of a series' next value, in one and a half of its source's cadence
    max_incomplete: Share = 0.1  # of the origins, or of the last 24
    max_beyond_range: Positive = 0.25  # of the newest inputs outside all earlier ones, in the range of those
    max_model_bytes: PositiveInt = 20_000_000
    max_latency_ratio: Positive = 2.0  # to the champion's when it is trained anew
    sign_off: bool = False  # what passes waits for `promote VERSION --sign-off NAME`


class Serving(Section):
    max_instances: PositiveInt = 1000
    max_body_bytes: PositiveInt = 1_000_000
    timeout_seconds: Positive = 2.0  # of every request, from its arrival
    concurrency: PositiveInt = 4  # answers in the making off the event loop: by the database, and by the model
    queue: NonNegativeInt = 64  # requests in line behind each of the two; who comes then gets 429
    drain_seconds: Annotated[float, Field(ge=0)] = 1.5  # not ready any more, but answering, before a stop
    cache_bytes: NonNegativeInt = 16_000_000  # of answers made before
    fallback: tuple[Literal["last_forecast", "baseline"], ...] = ("last_forecast", "baseline")
    out_of_range: Literal["mark", "reject"] = "mark"

    @property
    def stop_seconds(self) -> float:
        """From SIGTERM to the end in any case."""
        return self.drain_seconds + self.timeout_seconds + END_SECONDS


class Alerts(Section):
    data_late_days: Positive = 45
    error_ratio: Share = 0.01
    latency_seconds: Positive = 0.25
    live_rmse_ratio: Positive = 1.5


class Retrain(Section):
    """When `train --if-needed` trains: each limit is enough by itself, once anything new became known."""

    new_loads: PositiveInt = 1
    drift_share: Share = 0.1
    live_rmse_ratio: Positive = 1.3
    age_days: Positive = 180


class Contract(Section):
    """The whole of `service.toml`. Series keep the order of the file."""

    service: Service
    image: Image
    source: dict[str, Source]
    series: dict[str, Series]
    check: tuple[Check, ...] = ()
    target: Target
    feature: Annotated[tuple[Feature, ...], Field(min_length=1)]
    train: Train
    gate: Gate = Gate()
    serving: Serving = Serving()
    alerts: Alerts = Alerts()
    retrain: Retrain = Retrain()

    @model_validator(mode="after")
    def _fits_together(self) -> "Contract":
        if found := list(self._misfits()):
            raise Misfits(found)
        return self

    def _misfits(self) -> Iterator[tuple[Place, str]]:
        for name, series in self.series.items():
            yield from _unknown(series.source, self.source, "series", name, "source")
            for part in series.parts.series if series.parts else ():
                yield from _unknown(part, self.series, "series", name, "parts", "series")
        yield from _unknown(self.target.series, self.series, "target", "series")
        for number, feature in enumerate(self.feature):
            for one in feature.series:
                yield from _unknown(one, self.series, "feature", number, "series")
            if feature.own and (missing := why_not_callable(feature.own)):
                yield ("feature", number, "own"), f"feature.{number}.own: {missing}"
        if twice := _twice([check.name for check in self.check]):
            yield ("check",), f"check: a name stands there twice: {twice}"
        if len(set(self.target.horizons)) < len(self.target.horizons):
            yield ("target", "horizons"), "target.horizons: a horizon stands there twice"
        if twice := _twice([name for feature in self.feature for name in feature.names]):
            yield ("feature",), f"feature: declared twice: {twice}"

    def of_source(self, source: str) -> dict[str, Series]:
        return {name: series for name, series in self.series.items() if series.source == source}

    def cadence_days(self, source: str) -> float:
        """As declared, or the period of its finest series."""
        periods = [CADENCE_DAYS[series.frequency] for series in self.of_source(source).values()]
        return self.source[source].cadence_days or min(periods, default=366)

    def poll_seconds(self, source: str) -> float:
        """As declared, or a hundredth of the cadence, at least a minute and at most six hours."""
        return self.source[source].poll_seconds or min(max(self.cadence_days(source) * 864, 60), 21_600)


def load(path: Path) -> Contract:
    """Reads `service.toml`. Raises UsageError: missing file, TOML syntax, unknown key, wrong value."""
    try:
        text = path.read_text("utf-8")
        data = tomllib.loads(text)
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist: it declares the series, the target and the features") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        hint = "; a name of more than A-Z, a-z, 0-9, _ and - goes in quotes" * ("Expected" in str(error))
        raise UsageError(f"{path.name} is not valid TOML: {error}{hint}") from None
    return validate(Contract, data, path.name, text=text)


def _unknown(name: str, names: Mapping[str, Any], *place: str | int) -> Iterator[tuple[Place, str]]:
    if name not in names:
        where = ".".join(str(part) for part in place)
        yield place, f"{where}: {name!r} is not declared{did_you_mean(name, names)}"


def _twice(names: list[str]) -> str:
    return ", ".join(sorted({name for name in names if names.count(name) > 1}))
