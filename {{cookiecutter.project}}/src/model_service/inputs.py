"""What a model is made from, as `[[feature]]` of `service.toml` declares it; `features` makes it."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt, model_validator

from model_service.mistakes import OWN, Misfits, Section

_LAGGED = {"transform", "lags", "direction"}
FEATURE_KEYS: dict[str, tuple[set[str], set[str]]] = {  # what each kind of feature must say, and may
    "level": ({"series"}, _LAGGED),
    **dict.fromkeys(("difference", "log_difference"), ({"series"}, {*_LAGGED, "span"})),
    **dict.fromkeys(("deviation", "mean"), ({"series", "window"}, _LAGGED)),
    "calendar": ({"calendar"}, set()),
    "own": ({"own", "series", "window"}, {"direction"}),
}


def _own(given: str) -> str:
    if not re.fullmatch(OWN, given):
        raise ValueError(f"{given!r} names no function: write it as module:function")
    return given


def _lag(given: int) -> int:
    if given < 0:
        raise ValueError(f"{given} lies after the last value known at the origin, in the future: give 0 or more")
    return given


class Feature(Section):
    """Inputs made of a series by `transform`, of the `calendar`, or by a function of one's `own`."""

    series: Annotated[tuple[str, ...], BeforeValidator(lambda one: (one,) if isinstance(one, str) else one)] = ()
    transform: Literal["level", "difference", "log_difference", "deviation", "mean"] = "level"
    span: PositiveInt = 1  # of a difference
    window: PositiveInt = 1  # of a mean, of the deviation from it, and of what one's own function is given
    lags: Annotated[tuple[Annotated[int, AfterValidator(_lag)], ...], Field(min_length=1)] = (0,)
    calendar: Literal["year", "week"] | None = None  # sine and cosine of where in it the target's last period lies
    own: Annotated[str, AfterValidator(_own)] | None = None  # module:function
    direction: Literal["up", "down"] | None = None  # what the forecast does when the inputs go up

    @model_validator(mode="after")
    def _keys_fit(self) -> "Feature":
        kind = "own" if self.own else "calendar" if self.calendar else self.transform
        needed, optional = FEATURE_KEYS[kind]
        taken = needed | optional
        given = self.model_fields_set
        wrong = [(key, f"does not go with {kind}, which takes {', '.join(sorted(taken))}") for key in given - taken]
        wrong += [(key, f"is missing: {kind} needs it") for key in needed - given]
        if self.series[1:] and not self.own:
            wrong.append(("series", f"{kind} takes one: write an entry for each"))
        if wrong:
            raise Misfits(((key,), says) for key, says in sorted(wrong))
        return self

    @property
    def names(self) -> list[str]:
        """`SERIES.transformSIZE.lagN`, `calendar.CYCLE.sin` or `SERIES+SERIES.functionSIZE`; no SIZE where it is 1."""
        if self.calendar:
            return [f"calendar.{self.calendar}.{wave}" for wave in ("sin", "cos")]
        size = "" if (longest := max(self.span, self.window)) == 1 else str(longest)
        if self.own:
            return [f"{'+'.join(self.series)}.{self.own.partition(':')[2]}{size}"]
        return [f"{self.series[0]}.{self.transform}{size}.lag{lag}" for lag in self.lags]

    @property
    def reach(self) -> int:
        """How many of each series' last values it is made of."""
        return max(self.lags) + max(self.window, self.span + self.transform.endswith("difference"))
