"""The store keeps its promises: two clocks, nothing lost, nothing twice, and nobody takes a row back."""

import random
import uuid
import zlib
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from desk import CELLS, Desk, Twin, Values, day
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import create_model

from model_service.contract import Contract, Source
from model_service.errors import ServiceError
from model_service.loader import run, sources
from model_service.store import connection as entrance
from model_service.store import judge, ledger, observations, raw, read, wire
from model_service.store.connection import DatabaseAway, connect
from model_service.store.migrate import migrate

PARTS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


class Store(Desk):
    """A desk and a connection to look at what came of it."""

    def __init__(self, url: str, root: Path, **how: Any) -> None:
        super().__init__(url, root, **how)
        self.connection = connect(url, "loader")

    def at(self, number: int, version: str | None = None) -> dict[tuple[int, int], float]:
        return self.known(self.connection, day(number), version)

    def daily(self, at: int, periods: list[str], value: float) -> dict[str, Any]:
        """Loads a vintage that gives both series this value on these days."""
        lines = [f"{self.name}_{series};{one};{value};{value}" for series in range(2) for one in periods]
        (self.root / f"{day(at):%Y-%m-%d}.csv").write_text("\n".join(["series;month;value;right", *lines]))
        return run.load(self.contract(), self.url, self.root, self.said.append)[-1]

    def version(self) -> str:
        return read.data_version(self.connection).version

    def count(self, sql: str) -> int:
        return self.connection.execute(sql).fetchone()[0]  # type: ignore[index,no-any-return]


@pytest.fixture
def make(url: str, tmp_path: Path) -> Iterator[Callable[..., Store]]:
    """Makes stores of datasets of their own; the last three stay connected."""
    made: list[Store] = []

    def _make(**how: Any) -> Store:
        made.append(Store(url, tmp_path, **how))
        for old in made[:-3]:
            old.connection.close()
        return made[-1]

    yield _make
    for store in made:
        store.connection.close()


@pytest.fixture
def store(make: Callable[..., Store]) -> Store:
    return make()


A, B, C = CELLS[:3]
DAILY = {"frequency": "day", "dates": "%Y-%m-%d"}


def test_only_what_changed_is_stored_and_every_cell_is_accounted_for(store: Store) -> None:
    first = store.load(0, {A: 5.0, B: 5.1})
    second = store.load(30, {A: 5.0, B: 5.2, C: 5.3})
    assert (first["fetched"], first["new"]) == (2, 2)
    assert (second["fetched"], second["new"], second["changed"], second["same"]) == (3, 1, 1, 1)
    assert store.count("SELECT count(*) FROM observation") == 4


def test_a_cell_that_a_later_batch_of_a_payload_states_again_is_the_same(
    make: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(vintages=False, more='vintage = { column = "known" }')
    lines = [f"{store.name}_0;2000-{month};5;{known}" for known in ("2010-01-01", "2010-02-01") for month in (1, 2)]
    (store.root / "all.csv").write_text("\n".join(["series;month;value;known", *lines]))
    monkeypatch.setattr("model_service.loader._BATCH", 2)
    done = run.load(store.contract(), store.url, store.root, store.said.append)[0]
    assert (done["new"], done["same"]) == (2, 2)


def test_each_as_of_answers_with_what_was_known_then(store: Store) -> None:
    store.load(0, {A: 5.0})
    store.load(30, {A: 5.5})
    assert store.at(29) == {A: 5.0}
    assert store.at(30) == {A: 5.5}


def test_a_late_vintage_does_not_show_through_where_a_later_one_was_unchanged(store: Store) -> None:
    store.load(0, {A: 5.0})
    store.load(60, {A: 5.0})
    store.load(30, {A: 7.0})
    assert [store.at(number)[A] for number in (10, 40, 70)] == [5.0, 7.0, 5.0]


def rows_looked_at(plan: dict[str, Any]) -> float:
    """Of a plan that was run, those that were joined and those that were thrown away."""
    each = sum(plan.get(part, 0) for part in ("Actual Rows", "Rows Removed by Join Filter", "Rows Removed by Filter"))
    return float(plan["Actual Loops"] * each) + sum(map(rows_looked_at, plan.get("Plans", [])))


def test_a_late_vintage_looks_at_each_cell_a_few_times(
    make: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each touched cell was looked for among all that later ones stated: of 10,000 a hundred million."""
    store, honest = make(**DAILY), observations.Landing._do
    looked: list[float] = []

    def explained(self: observations.Landing, statement: str, **asked: Any) -> Any:
        if statement != judge.INSERT_LATE:
            return honest(self, statement, **asked)
        done = honest(self, f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", **asked)
        looked.append(rows_looked_at(done.fetchone()[0][0]["Plan"]))  # type: ignore[index]
        return done

    monkeypatch.setattr(observations.Landing, "_do", explained)
    periods = [f"{date(1980, 1, 1) + timedelta(days=number)}" for number in range(5000)]
    for at, value in ((0, 5.0), (60, 5.0), (30, 7.0)):
        store.daily(at, periods, value)
        (store.root / f"{day(at):%Y-%m-%d}.csv").unlink()
    assert store.count("SELECT count(*) FROM observation o JOIN load USING (load_id) WHERE kind = 'late'") == 10_000
    assert looked[-1] < 50 * 10_000


values = st.dictionaries(st.sampled_from(CELLS), st.sampled_from([1.5, 2.5, 3.5]), max_size=6)
fetch = st.tuples(st.just("fetch"), st.integers(0, 5), values, values, values)
redo = st.tuples(st.sampled_from(["correct", "retry"]), st.integers(0, 5))


@pytest.mark.parametrize("complete", [False, True], ids=["payloads in parts", "complete payloads"])
@given(history=st.lists(st.one_of(fetch, fetch, redo), min_size=2, max_size=8))
@settings(max_examples=20, deadline=None, suppress_health_check=PARTS)
def test_any_history_answers_as_its_statements_do(
    make: Callable[..., Store], complete: bool, history: list[Any]
) -> None:
    """Late, restated, corrected and quarantined vintages, in any order; and no pair of clocks changes its answer."""
    store, twin = make(complete=complete, more="max_vanished = 1.0"), Twin(complete)
    loads: list[tuple[int, int, Values, dict[Any, float]]] = []
    answers = {}
    for step in history:
        if step[0] == "fetch":
            _, at, good, bad, right = step
            bad = {cell: value for cell, value in bad.items() if cell not in good}
            if not (good or bad or right):
                continue
            done = store.load(at, good, bad, right)
            if done["outcome"] == "loaded":
                twin.state(day(at), done["load_id"], good, set(bad))
                loads.append((done["load_id"], at, right, bad))
        elif loads:
            load, at, right, bad = loads[step[1] % len(loads)]
            if step[0] == "correct" and store.correct(load)["outcome"] == "loaded":
                twin.state(day(at), load, right)
                bad.clear()
            elif step[0] == "retry" and (done := store.retry(load))["outcome"] == "loaded":
                twin.state(day(at), done["load_id"], bad, set(CELLS))
                twin.replayed[done["load_id"]] = load
                bad.clear()
        if loads:
            for number in range(7):
                answers[store.version(), number] = store.at(number)
                assert store.at(number) == twin.known(day(number))
    assert all(store.at(number, version) == answer for (version, number), answer in answers.items())


@given(st.lists(values, min_size=2, max_size=5), st.randoms(use_true_random=False))
@settings(max_examples=15, deadline=None, suppress_health_check=PARTS)
def test_vintages_loaded_in_any_order_answer_the_same(
    make: Callable[..., Store], vintages: list[Values], shuffle: random.Random
) -> None:
    order = [number for number, one in enumerate(vintages) if one]
    answers = []
    for sequence in (order, shuffle.sample(order, len(order))):
        twin = make()
        for number in sequence:
            twin.load(number, vintages[number])
        answers.append([twin.at(number) for number in order])
    assert answers[0] == answers[1]


def test_a_pair_of_clocks_names_one_answer_for_ever(
    make: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """500 loads of two datasets later, some late, restated, corrected, and some whose commits crossed."""
    one, other, chance = make(), make(), random.Random(1)
    answers: dict[tuple[str, str, int], Any] = {}
    committed: list[int] = []
    honest = ledger.advance

    def crossed(*given: Any) -> None:
        monkeypatch.setattr(ledger, "advance", honest)
        other.load(moment(), {cell: float(chance.randrange(9)) for cell in CELLS})
        honest(*given)

    def moment() -> int:
        return max(0, number // 2 - chance.choice([0, 0, 0, 1, 5]))

    for number in range(500):
        if number % 10 == 5:  # not the first: who makes a chunk of a hypertable holds others up until COMMIT
            monkeypatch.setattr(ledger, "advance", crossed)  # the other dataset draws later and commits earlier
        if number % 25 == 24:
            one.correct(chance.choice(committed[-20:]))
        else:
            some = chance.sample(CELLS, 3)
            right = {cell: float(chance.randrange(9)) for cell in some}
            done = one.load(moment(), {cell: float(chance.randrange(9)) for cell in some}, right=right)
            committed += [done["load_id"]] * (done["outcome"] == "loaded")
        if number in (8, 50, 120, 300):
            for desk in (one, other):
                for at in (1, 20, 200):
                    answers[desk.name, desk.version(), at] = desk.at(at)
    assert len({version for _, version, _ in answers}) == 4
    for (name, version, at), answer in answers.items():
        assert (one if name == one.name else other).at(at, version) == answer
    assert any(one.at(at) != answer for (name, _, at), answer in answers.items() if name == one.name)


def test_a_vintage_stated_again_with_another_value_is_quarantined_and_the_first_stays_in_force(store: Store) -> None:
    store.load(0, {A: 5.0})
    store.load(30, {A: 5.0})
    again = store.load(30, {A: 6.0})
    assert (again["changed"], again["quarantined"]) == (0, 1)
    assert store.at(30) == {A: 5.0}
    rows = store.connection.execute("SELECT rule, raw FROM quarantine").fetchall()
    assert rows == [("vintage_conflict", "6.0")]
    assert store.load(30, {A: 5.0})["outcome"] == "nothing new"


def test_what_was_refused_stays_refused_when_an_older_vintage_comes_late(store: Store) -> None:
    store.load(60, {A: 5.0})
    store.load(90, {A: 5.0})
    store.load(90, {A: 6.0})
    store.load(30, {A: 5.0})
    assert [store.at(number)[A] for number in (40, 70, 100)] == [5.0, 5.0, 5.0]


def test_a_correction_leaves_the_old_version_its_old_values(store: Store) -> None:
    load = store.load(0, {A: 500.0, B: 1.0}, right={A: 5.0})["load_id"]
    store.load(30, {A: 500.0, B: 1.0}, right={A: 5.0, B: 1.0})
    before = store.version()
    corrected = store.correct(load)
    assert (corrected["changed"], corrected["vanished"]) == (1, 1)
    assert store.at(10) == {A: 5.0}
    assert store.at(30) == {A: 500.0, B: 1.0}, "that vintage has a correction of its own to wait for"
    assert store.at(10, before) == {A: 500.0, B: 1.0}


def test_a_correction_of_the_first_statement_counts_whoever_repeated_it(store: Store) -> None:
    load = store.load(30, {A: 5.0}, right={A: 7.0})["load_id"]
    store.load(30, {A: 5.0, B: 1.0})
    assert (store.correct(load)["changed"], store.at(30)) == (1, {A: 7.0, B: 1.0})


def test_what_a_correction_of_the_first_statement_lacks_has_vanished_whoever_repeated_it(
    make: Callable[..., Store],
) -> None:
    store = make(complete=True, more="max_vanished = 1.0")
    load = store.load(30, {A: 5.0, B: 6.0}, right={A: 5.0})["load_id"]
    store.load(30, {A: 5.0, B: 6.0})
    assert (store.correct(load)["vanished"], store.at(30)) == (1, {A: 5.0})


def test_a_day_may_be_known_from_its_first_moment(make: Callable[..., Store]) -> None:
    assert make(**DAILY).daily(0, ["2010-01-01"], 5.0)["new"] == 2


def test_what_a_complete_payload_lacks_has_vanished_and_is_new_when_it_returns(make: Callable[..., Store]) -> None:
    store = make(complete=True, more="max_vanished = 0.5")
    store.load(0, {A: 5.0, B: 6.0, C: 7.0})
    gone = store.load(30, {A: 5.0, B: 6.0})
    assert read.newest_known_from(store.connection) == day(30), "up to then a training reads: it must read this, too"
    back = store.load(60, {A: 5.0, B: 6.0, C: 7.0})
    assert (gone["vanished"], back["new"]) == (1, 1)
    assert [C in store.at(number) for number in (10, 40, 70)] == [True, False, True]


def test_what_another_kind_of_source_loaded_is_read_again_by_that_kind(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.load(60, {A: 5.0})
    by_csv, options = sources.reader(store.contract(), store.name)
    other = SimpleNamespace(
        PARSER_VERSION=1,
        Options=create_model("Options", place=str, __config__={"extra": "forbid"}),
        fetch=lambda _, ask: by_csv.fetch(options, ask),
        parse=lambda payload, _, series: by_csv.parse(payload, options, series),
    )
    real = sources.of
    monkeypatch.setattr(sources, "of", lambda kind, where: other if kind == "other" else real(kind, where))
    moved = {store.name: Source.model_validate({"kind": "other", "place": "elsewhere"})}
    store.write(30, {A: 4.0})
    run.load(store.contract().model_copy(update={"source": moved}), store.url, store.root, store.said.append)
    assert [store.at(number) for number in (40, 70)] == [{A: 4.0}, {A: 5.0}]


def test_a_vintage_that_reaches_further_and_lacks_a_cell_is_stored_and_counted(make: Callable[..., Store]) -> None:
    store = make(complete=True, more="max_vanished = 1.0")
    store.load(0, {A: 5.0, B: 5.1})
    done = store.load(30, {B: 5.1, C: 5.3})
    assert store.at(30) == {B: 5.1, C: 5.3}
    assert (done["fetched"], done["new"], done["same"], done["vanished"]) == (2, 1, 1, 1)


def test_a_quarantined_cell_has_not_vanished(make: Callable[..., Store]) -> None:
    store = make(complete=True)
    store.load(0, {A: 5.0, B: 6.0})
    done = store.load(30, {A: 5.0}, bad={B: 6.5})
    assert (done["vanished"], done["quarantined"]) == (0, 1)
    assert store.at(30) == {A: 5.0, B: 6.0}


def test_a_payload_that_lacks_too_much_is_blocked_and_can_be_run_again(make: Callable[..., Store]) -> None:
    store = make(complete=True)
    store.load(0, {A: 5.0, B: 6.0, C: 7.0})
    blocked = store.load(30, {A: 5.0})
    assert blocked["outcome"] == "blocked"
    assert store.at(30) == {A: 5.0, B: 6.0, C: 7.0}
    assert read.newest_known_from(store.connection) == day(0)
    assert store.count("SELECT count(*) FROM check_result WHERE rule = 'max_vanished' AND NOT ok") == 1
    store.more = "max_vanished = 1.0"
    assert store.load(30, {A: 5.0})["vanished"] == 2
    assert store.at(30) == {A: 5.0}


def test_without_vintages_what_was_quarantined_counts_from_when_it_came(make: Callable[..., Store]) -> None:
    store, whole = make(vintages=False, complete=True), make(vintages=False, complete=True)
    moments = []
    for good, bad in (({A: 1.5}, {B: 2.5}), ({A: 1.5, B: 2.5}, {}), ({A: 3.5, B: 2.5}, {})):
        store.load(0, good, bad)
        moments.append(store.connection.execute("SELECT max(observed_at) FROM load").fetchone()[0])  # type: ignore[index]
        whole.load(0, {**good, **bad})
    first = store.count(f"SELECT min(load_id) FROM load WHERE dataset = '{store.name}'")
    assert store.retry(first)["new"] == 1
    assert [store.known(store.connection, moment) for moment in moments] == [
        {A: 1.5, B: 2.5}, {A: 1.5, B: 2.5}, {A: 3.5, B: 2.5}]  # fmt: skip


def test_a_file_that_looks_as_it_did_is_not_read_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.load(0, {A: 5.0})
    monkeypatch.setattr(raw, "sha256_of", lambda path: pytest.fail(f"{path} was read"))
    again = run.load(store.contract(), store.url, store.root, store.said.append)
    assert [one["outcome"] for one in again] == ["nothing new"]


def test_a_figure_that_does_not_add_up_cannot_be_committed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = observations.Landing.stage

    def boast(self: observations.Landing, batches: Any) -> None:
        honest(self, batches)
        self.fetched += 1

    monkeypatch.setattr(observations.Landing, "stage", boast)
    with pytest.raises(psycopg.errors.CheckViolation, match="every_cell_accounted_for"):
        store.load(0, {A: 5.0})
    assert store.count("SELECT count(*) FROM observation") == 0


@pytest.mark.parametrize("held", [0, 1], ids=["into an empty store", "onto what is held"])
def test_a_row_lost_on_its_way_stops_the_load(store: Store, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if held:
        store.load(0, {A: 5.0, B: 5.1})
    honest = wire.copy_in
    monkeypatch.setattr(wire, "copy_in", lambda connection, table, rows: honest(connection, table, rows[1:]))
    with pytest.raises(psycopg.errors.CheckViolation):
        store.load(30, {A: 6.0, B: 6.1})
    assert store.count("SELECT count(*) FROM load") == held


def test_a_row_lost_between_stage_and_verdict_stops_the_load(
    make: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(complete=True)
    store.load(0, {A: 5.0, B: 5.1})
    lossy = judge.LAND_ONE.replace("FROM stage s", "FROM (SELECT * FROM stage WHERE line > 2) s")
    assert lossy != judge.LAND_ONE
    monkeypatch.setattr(judge, "LAND_ONE", lossy)
    with pytest.raises(psycopg.errors.CheckViolation):
        store.load(30, {A: 6.0, B: 6.1})
    assert store.count("SELECT count(*) FROM load") == 1


@pytest.mark.parametrize(
    "loss", [("%(load)s", "%(load)s + 1000"), ("outcome <> 'same'", "outcome <> 'same' AND false")]
)
def test_a_row_that_is_not_there_is_missed_by_the_recount(
    make: Callable[..., Store], loss: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(complete=True)
    store.load(0, {A: 5.0})
    monkeypatch.setattr(judge, "LAND_ONE", judge.LAND_ONE.replace(*loss))
    with pytest.raises(ServiceError, match="nothing was committed"):
        store.load(30, {A: 6.0})


PHASES = [
    (observations.Landing, "stage"), (observations.Landing, "land"), (observations.Landing, "late"),
    (ledger, "write"), (ledger, "advance"), (ledger, "name_data_version"),
]  # fmt: skip


def test_a_row_that_goes_astray_is_missed_by_the_recount(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.load(0, {A: 5.0, B: 5.1})
    honest = wire.copy_in

    def astray(connection: Any, table: str, rows: Any) -> int:
        return honest(connection, table, rows) if table == "stage" else len(rows)

    monkeypatch.setattr(wire, "copy_in", astray)
    with pytest.raises(ServiceError, match="nothing was committed"):
        store.load(30, {A: 6.0, B: 5.1})


@pytest.mark.parametrize(("place", "phase"), PHASES, ids=[phase for _, phase in PHASES])
def test_a_crash_leaves_nothing_behind(store: Store, monkeypatch: pytest.MonkeyPatch, place: Any, phase: str) -> None:
    honest = getattr(place, phase)

    def crash(*given: Any, **named: Any) -> None:
        honest(*given, **named)
        raise KeyboardInterrupt

    monkeypatch.setattr(place, phase, crash)
    with pytest.raises(KeyboardInterrupt):
        store.load(0, {A: 5.0})
    tables = ("observation", "load", "quarantine", "watermark", "data_version", "check_result", "resource")
    assert [store.count(f"SELECT count(*) FROM {table}") for table in tables] == [0] * 7
    assert store.count("SELECT count(*) FROM attempt WHERE outcome = 'failed'") == 1
    monkeypatch.setattr(place, phase, honest)
    assert store.load(0, {A: 5.0})["new"] == 1


def test_a_copy_that_was_overtaken_cannot_commit(store: Store, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = store.load(0, {A: 5.0})["load_id"]
    honest = ledger.advance

    def overtaken(connection: Any, dataset: str, cursor: str, load_id: int, expected: int | None) -> None:
        honest(connection, dataset, cursor, load_id, first - 1)

    monkeypatch.setattr(ledger, "advance", overtaken)
    with pytest.raises(ServiceError, match="another copy went ahead"):
        store.load(30, {A: 6.0})
    assert store.at(30) == {A: 5.0}


def test_a_claimed_dataset_is_left_to_the_copy_that_holds_it(url: str) -> None:
    with connect(url, "loader") as one, connect(url, "loader") as two, ledger.claim(one, "macro") as free:
        one.execute("INSERT INTO attempt (dataset, runner) VALUES ('macro', 'host:1')")
        with ledger.claim(two, "macro") as holder:
            assert free is None
            assert holder is not None
            assert holder.startswith("host:1 since")
        one.execute("INSERT INTO attempt (dataset, runner, finished_at) VALUES ('macro', 'host:2', now())")
        with ledger.claim(two, "macro") as holder:
            assert holder == "another copy", "a run that died earlier holds nothing"


INSERT_ONLY = [
    "observation", "load", "raw_object", "promotion", "quarantine", "quarantine_action", "check_result", "resource",
    "data_version", "model", "forecast", "training_run", "transition",
]  # fmt: skip


@pytest.mark.parametrize("statement", ["DELETE FROM {}", "UPDATE {0} SET {1} = {1}", "TRUNCATE {}"])
def test_the_loader_cannot_take_a_row_back(store: Store, statement: str) -> None:
    store.load(0, {A: 5.0})
    for table in INSERT_ONLY:
        column = store.connection.execute(
            "SELECT column_name FROM information_schema.columns WHERE table_name = %s AND is_identity = 'NO' LIMIT 1",
            [table],
        ).fetchone()
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            store.connection.execute(statement.format(table, column[0]))  # type: ignore[index]


def test_the_reader_reads_and_nothing_else(url: str, store: Store) -> None:
    store.load(0, {A: 5.0})
    with connect(url, "reader") as reader:
        assert reader.execute("SELECT count(*) FROM observation").fetchone() == (1,)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            reader.execute("INSERT INTO watermark VALUES ('x', 'y', 1)")


def test_a_second_migration_changes_nothing(url: str, contract: Contract) -> None:
    assert migrate(url, contract) == []


def test_a_newer_schema_will_do_and_an_older_one_is_refused(
    store: Store, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = entrance.migrations()
    monkeypatch.setattr(entrance, "migrations", lambda: known[:-1])
    assert store.load(0, {A: 5.0})["new"] == 1
    monkeypatch.setattr(entrance, "migrations", lambda: [*known, "0099_of_tomorrow.sql"])
    with pytest.raises(DatabaseAway, match=r"it lacks 0099_of_tomorrow\.sql: run `python -m model_service migrate`"):
        store.load(30, {A: 6.0})


@pytest.mark.parametrize("how", [{}, DAILY], ids=["monthly", "a daily dataset that joins a monthly service"])
def test_observation_is_a_hypertable_of_few_chunks_where_timescaledb_is_there(
    make: Callable[..., Store], how: dict[str, str]
) -> None:
    store = make(**how)
    found = store.connection.execute("SELECT true FROM pg_extension WHERE extname = 'timescaledb'").fetchone()
    if found is None:
        pytest.skip("plain PostgreSQL: TEST_DATABASE_URL names no TimescaleDB")
    first = date(1930, 1, 1)
    days = {f"{first + timedelta(days=number):{store.dates}}" for number in range(80 * 365)}
    assert store.daily(0, sorted(days), 5.0)["new"] == 2 * len(days)
    chunks = store.count("SELECT count(*) FROM timescaledb_information.chunks WHERE hypertable_name = 'observation'")
    assert 1 < chunks <= 100


def test_a_series_that_changes_its_unit_is_refused(store: Store) -> None:
    store.load(0, {A: 5.0})
    declared = store.contract().of_source(store.name)
    other = {name: one.model_copy(update={"unit": "persons"}) for name, one in declared.items()}
    with pytest.raises(ServiceError, match="give the new one a new name"):
        observations.series_ids(store.connection, store.name, other)


def test_a_database_that_is_away_is_named_without_its_password() -> None:
    with pytest.raises(DatabaseAway) as error:
        connect("postgresql://me:s3cret@127.0.0.1:1/none")
    assert "does not answer" in str(error.value)
    assert "s3cret" not in str(error.value)


def test_kept_bytes_that_were_damaged_are_not_taken_for_the_providers(store: Store, url: str) -> None:
    load = store.load(0, {A: 5.0}, right={A: 6.0})["load_id"]
    with psycopg.connect(url, autocommit=True) as admin:
        for damaged in (zlib.compress(b"series;month;value;right\n"), b"no zlib"):
            admin.execute("UPDATE raw_object SET bytes = %s", [damaged])
            with pytest.raises(ServiceError, match="do not have that hash"):
                store.correct(load)
    assert store.at(0) == {A: 5.0}


@pytest.mark.parametrize("step", ["keep", "parse"])
def test_a_file_that_is_written_to_while_it_is_loaded_is_not_loaded(
    store: Store, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = raw.keep

    def meanwhile(connection: Any, path: Path, *given: Any) -> None:
        content = path.read_bytes()
        if step != "keep":
            honest(connection, path, *given)
        path.write_bytes(content.replace(b"5.0", b"9.0"))
        if step == "keep":
            honest(connection, path, *given)

    monkeypatch.setattr(raw, "keep", meanwhile)
    with pytest.raises(ServiceError, match=r"2010-01-01\.csv: was written to while it was read"):
        store.load(0, {A: 5.0})
    assert store.count("SELECT count(*) FROM load") == 0
    monkeypatch.setattr(raw, "keep", honest)
    load = store.load(0, {A: 5.0}, right={A: 6.0})["load_id"]
    store.correct(load)
    assert store.at(0) == {A: 6.0}


def test_bytes_are_kept_in_parts_and_come_back_as_they_were(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raw, "PART_BYTES", 7)
    path = tmp_path / "payload"
    path.write_bytes(content := uuid.uuid4().bytes * 3)
    raw.keep(store.connection, path, raw.sha256_of(path), "text/plain")
    assert store.count("SELECT count(*) FROM raw_object") == 7
    with raw.opened(store.connection, raw.sha256_of(path)) as (again, media_type):
        assert (again.read_bytes(), media_type) == (content, "text/plain")
