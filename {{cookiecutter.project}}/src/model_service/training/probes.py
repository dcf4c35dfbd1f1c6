"""Rules that need more than losses: the candidate itself, its graph, and the table it was made from."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from model_service.training import backtest, serialize
from model_service.training.estimators import Fitted
from model_service.training.gate import Rule, at_most

Say = Callable[[str], None]


@dataclass(frozen=True)
class Candidate:
    """A training before the gate has seen it.

    fitted: on everything known at the last case. graph: the same in ONNX. again: of a second fit to the same data.
    """

    tested: backtest.Backtest
    fitted: Fitted
    graph: bytes
    again: bytes


def rules(made: Candidate, say: Say) -> list[Rule]:
    return [_parity(made), _determinism(made), _leak(made, say)]


def _parity(made: Candidate) -> Rule:
    table = made.tested.table
    off = serialize.parity(made.fitted, made.graph, table.inputs[table.complete], table.contract.train.seed)
    return at_most("onnx_parity", off, serialize.PARITY, "largest relative error of the ONNX graph")


def _determinism(made: Candidate) -> Rule:
    return at_most("determinism", int(made.graph != made.again), 0, "bytes differ between two fits of the same data:")


def _leak(made: Candidate, say: Say) -> Rule:
    """Origins across the backtest, and the last one, each forecast twice: with and without what was not known there."""
    tested = made.tested
    places = sorted({*np.linspace(tested.places[0], tested.places[-1], 4).astype(int).tolist()})
    say(f"leak test at {len(places)} origins")
    return at_most("leak", len(backtest.leaked(tested.table, places)), 0, "forecasts that saw the future:")
