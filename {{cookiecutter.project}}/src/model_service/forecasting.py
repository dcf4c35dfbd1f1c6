"""The answer of /v1/forecast, made the same way by the service, the command line and the run after a load."""

import contextlib
import math
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import Any

import numpy as np

from model_service import features, periods, registry
from model_service.arrays import Floats
from model_service.artifact import Model
from model_service.contract import Contract
from model_service.errors import ServiceError
from model_service.experiments import described_change
from model_service.store import read
from model_service.store.connection import Connection


class NoDataYet(ServiceError):
    """Nothing was known at the as-of time."""

    def __init__(self, known_at: datetime, connection: Connection, held: "Vintages") -> None:
        self.first_usable = first = read.first_usable(connection, list(held.held), held.version.loads)
        lacks = ", ".join(name for name, one in held.held.items() if not one.period.size)
        hint = f"the first usable date is {first:%Y-%m-%d}" if first else f"nothing was loaded of {lacks}"
        super().__init__(f"nothing was known at {utc_text(known_at)}: {hint}")


class UnknownHorizon(ServiceError):
    """The model was not trained for that horizon."""

    def __init__(self, asked: list[int], trained: list[int]) -> None:
        self.detail = f"not trained for {asked}; trained: {trained}"
        super().__init__(f"horizon: {self.detail}")


class InputsMissing(ServiceError):
    """The store holds too little of some input's series at the as-of time."""


class NotFinite(InputsMissing):
    """The model makes no finite forecast of the inputs."""


@dataclass(frozen=True)
class KnownInputs:
    """What was known at a pair of clocks: rows of the vintages, the model's inputs [F] made of them, the target's last
    known period, and the newest knowledge among them."""

    at: datetime
    version: read.DataVersion
    rows: features.Rows
    row: Floats
    last: int
    until: datetime


@dataclass(frozen=True)
class Vintages:
    """Every vintage of the series needed that was known at some time: one read, for what was known at any time before.

    rows: as read. held: the same by series.
    """

    contract: Contract
    version: read.DataVersion
    rows: features.Rows
    held: dict[str, features.History]

    def at(self, at: datetime) -> KnownInputs | None:
        """What was known at `at`; None where that was nothing of some series."""
        origin = periods.microseconds(at)
        if not all(one.at(origin)[1].size for one in self.held.values()):
            return None
        first, values = self.held[self.contract.target.series].at(origin)
        newest = max(int(one.known[one.known <= origin].max()) for one in self.held.values())
        row, last = features.rows(self.contract, self.held, [origin])[0], first + values.size - 1
        return KnownInputs(at, self.version, self.rows, row, last, periods.instant(newest))

    def days(self) -> list[datetime]:
        """The ends of the days, UTC, on which something became known, from the first vintage of the last series on."""
        first = max(one.first_vintage for one in self.held.values())
        days = np.unique(np.concatenate([one.known for one in self.held.values()]) // features.DAY)
        return [periods.instant(int(end)) for end in (days + 1) * features.DAY - 1 if end >= first]


def utc_text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def parse_as_of(text: str) -> datetime:
    """An instant, UTC when it names no offset; a plain date means the end of that day. Raises ValueError."""
    with contextlib.suppress(ValueError):
        return datetime.combine(date.fromisoformat(text), time.max, UTC)
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise ValueError(
            f"as_of {text!r} is neither a date (2016-07-01) nor an instant (2016-07-01T12:00:00Z)"
        ) from None


def answer(
    contract: Contract,
    model: Model,
    connection: Connection,
    known_at: datetime | None,
    data_version: str | None,
    horizons: list[int] | None,
) -> dict[str, Any]:
    """The body of /v1/forecast; `known_at` None means now, `horizons` None all trained ones.

    Raises UnknownHorizon, NoDataYet, InputsMissing, read.UnknownDataVersion, psycopg.OperationalError.
    """
    wanted = requested_horizons(model, horizons)
    return answer_from(contract, model, read_inputs(contract, model, connection, known_at, data_version), wanted)


def read_inputs(
    contract: Contract, model: Model, connection: Connection, known_at: datetime | None, data_version: str | None
) -> KnownInputs:
    """What `model` makes its answer of, by both clocks; raises as `answer` does."""
    check_fit(contract, model)
    version = read.data_version(connection, data_version)
    return known_inputs(contract, connection, known_at or datetime.now(UTC), version)


def answer_from(contract: Contract, model: Model, known: KnownInputs, wanted: list[int]) -> dict[str, Any]:
    """The answer for `wanted` horizons from what was known; raises InputsMissing."""
    require_complete(contract, known.row, f"at {utc_text(known.at)}")
    return compose_answer(contract, model, known, wanted, model.predict(known.row[None, :]))


def compose_answer(
    contract: Contract, model: Model, known: KnownInputs, wanted: list[int], forecasts: Floats
) -> dict[str, Any]:
    """The answer for `wanted` horizons, of what the model makes of what was known [1, H]; raises NotFinite."""
    made, at = dict(zip(model.horizons, forecasts[0].tolist(), strict=True)), utc_text(known.at)
    if not np.isfinite(forecasts).all():
        raise NotFinite(f"the inputs at {at} give no finite forecast: look at the series' newest values")
    clocks = {"known_at": at, "data_version": known.version.version}
    return {
        **answer_head(contract, clocks, utc_text(known.until)),
        "model": _model(model),
        "hindsight": _hindsight(model, known.at),
        "forecasts": [_forecast(contract, model.card["intervals"], h, known.last, made[h]) for h in wanted],
        "degraded": None,
    }


def vintages(contract: Contract, connection: Connection, until: datetime, version: read.DataVersion) -> Vintages:
    """Reads what the inputs and the target are made of."""
    rows = read.vintages(connection, features.reach(contract), until, version.loads)
    return Vintages(contract, version, rows, features.histories(contract, rows))


def known_inputs(contract: Contract, connection: Connection, at: datetime, version: read.DataVersion) -> KnownInputs:
    """What was known at `at`; raises NoDataYet where nothing was of some series."""
    held = vintages(contract, connection, at, version)
    if (known := held.at(at)) is None:
        raise NoDataYet(at, connection, held)
    return known


def require_complete(contract: Contract, row: Floats, when: str) -> None:
    """Raises InputsMissing that names the inputs of which too little is held."""
    starts = features.apply_transform(contract.target.transform, row[:1], row[:1])  # NaN: no change starts there
    found = [*starts, *row[1:]]
    if missing := [name for name, value in zip(features.inputs(contract), found, strict=True) if np.isnan(value)]:
        raise InputsMissing(f"too little is held {when} for {', '.join(missing)}: load more of the series' past"
                            " (a logarithm also needs values above 0)")  # fmt: skip


def answer_head(contract: Contract, as_of: dict[str, str], known_until: str) -> dict[str, Any]:
    """What every answer begins with; `as_of` holds both clocks."""
    return {
        "service": contract.service.name,
        "target": contract.target.series,
        "unit": contract.series[contract.target.series].unit,
        "as_of": as_of,
        "inputs_known_until": known_until,
    }


def fallback_answers(
    contract: Contract,
    head: dict[str, Any],
    intervals: dict[str, list[dict[str, Any]]],
    last: int,
    forecast: list[float],
    anchor: float,
) -> dict[str, Any]:
    """What a process answers that never reached its database: the forecast made at training, and the last value."""
    of = {"forecasts": (intervals["model"], forecast), "baseline": (intervals["baseline"], [anchor] * len(forecast))}
    return head | {
        name: [_forecast(contract, spread, h, last, v) for h, v in zip(contract.target.horizons, values, strict=True)]
        for name, (spread, values) in of.items()
    }


def degraded(model: Model, held: dict[str, Any], reason: str, source: str) -> dict[str, Any]:
    """An answer from what is held: an earlier body or `model.held`; `source` is `last_forecast` or `baseline`."""
    kept = model.held if source == "baseline" else held
    return {
        **{name: kept[name] for name in ("service", "target", "unit", "as_of", "inputs_known_until")},
        "model": _model(model),
        "hindsight": _hindsight(model, datetime.fromisoformat(kept["as_of"]["known_at"])),
        "forecasts": kept["baseline" if source == "baseline" else "forecasts"],
        "degraded": {"reason": reason, "source": source},
    }


def _hindsight(model: Model, at: datetime) -> bool:
    """Whether the model saw anything that became known after `at`; being trained later is none by itself."""
    return datetime.fromisoformat(model.card["inputs_known_until"]) > at


def unlike(contract: Contract, card: dict[str, Any], version: object) -> str:
    """What service.toml says now and the model of `card` was not trained for, in one line; or nothing."""
    was = card["target"] | {"horizons": sorted(card["horizons"]), "inputs": card["inputs"]}
    now = vars(contract.target) | {"horizons": sorted(contract.target.horizons), "inputs": features.inputs(contract)}
    names = [name for name in ("series", "transform", "horizons", "inputs") if was.get(name) != now[name]]
    says = "; ".join(f"{name} {described_change(was.get(name), now[name])}" for name in names)
    commit = card.get("git_commit") or "uncommitted"
    at = "" if commit == "uncommitted" else f" of commit {commit}"
    mend = f"since it was trained; run `train`, or restore service.toml{at}"
    return f"service.toml no longer fits model {version}: {says} {mend}" if says else ""


def check_fit(contract: Contract, model: Model) -> None:
    """Raises ServiceError where inputs would mean other things than in training, or the answer another target.

    Of other horizons there is nothing to raise: it is asked for its own, and these are what they were.
    """
    own = contract.target.model_copy(update={"horizons": model.horizons})
    if says := unlike(contract.model_copy(update={"target": own}), model.card, model.version):
        raise ServiceError(says)


def requested_horizons(model: Model, horizons: list[int] | None) -> list[int]:
    """The horizons that are asked for, each once; all of the model's for None. Raises UnknownHorizon."""
    if unknown := [horizon for horizon in horizons or [] if horizon not in model.horizons]:
        raise UnknownHorizon(unknown, model.horizons)
    return list(dict.fromkeys(horizons or model.horizons))


def _model(model: Model) -> dict[str, Any]:
    return model.name | {"trained_as_of": model.card["trained_as_of"]["known_at"]}


def _forecast(
    contract: Contract, intervals: list[dict[str, Any]], horizon: int, last: int, value: float
) -> dict[str, Any]:
    frequency = contract.series[contract.target.series].frequency
    return {
        "horizon": horizon,
        "valid_time": periods.date_of(frequency, last + horizon).isoformat(),
        "value": value,
        "intervals": [
            {"level": one["level"], "lower": value + one["lower"], "upper": value + one["upper"]}
            for one in intervals
            if one["horizon"] == horizon and np.isfinite(one["lower"])  # of too few errors there is none
        ],
    }


def champion(connection: Connection) -> Model:
    """The registry's champion, ready to answer; raises registry.NoModel."""
    if (found := registry.champion(connection)) is None:
        raise registry.NoModel
    return as_model(found)


def as_model(found: registry.Registered) -> Model:
    """A registered model, ready to answer."""
    return Model(found.files, str(found.version))


def table(body: dict[str, Any]) -> str:
    """An answer for people: one line a horizon, under what it was made from."""
    clocks = body["as_of"]
    lines = [
        f"{body['target']} ({body['unit']}), model {body['model']['version']}, as of {clocks['known_at']},",
        f"data version {clocks['data_version']}",
        *["hindsight: the model was trained on what became known later"] * body["hindsight"],
    ]
    if body["degraded"]:
        lines.append(f"degraded ({body['degraded']['reason']}): by {body['degraded']['source']}, not made anew")
    lines.append(f"{'horizon':>7}  {'period':10}  {'value':>10}  intervals")
    widths = [i["upper"] - i["lower"] for one in body["forecasts"] for i in one["intervals"] if i["upper"] > i["lower"]]
    digits = max(2, 1 - math.floor(math.log10(min(widths, default=1))))  # two of the narrowest interval's width
    for one in body["forecasts"]:
        ends = [(i["level"], *(f"{i[end]:.{digits}f}" for end in ("lower", "upper"))) for i in one["intervals"]]
        spread = "  ".join(f"{level:.0%} [{lower}, {upper}]" for level, lower, upper in ends)
        lines.append(f"{one['horizon']:>7}  {one['valid_time']:10}  {one['value']:>10.{digits}f}  {spread}")
    return "\n".join(lines)
