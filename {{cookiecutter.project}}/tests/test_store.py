"""The store keeps its promises: two clocks, nothing lost, nothing twice, and nobody takes a row back."""

import hashlib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_service.contract import Contract
from model_service.errors import ServiceError
from model_service.loader import Cell, Reject
from model_service.loader.run import claim
from model_service.store import ledger, read
from model_service.store.connection import DatabaseAway, connect
from model_service.store.migrate import migrate

DATASET = "us_macro"
SERIES = ("UNRATE", "PAYEMS")
START = datetime(2020, 1, 1, tzinfo=UTC)
Values = dict[tuple[str, int], float]


def vintage_day(day: int) -> datetime:
    return START + timedelta(days=day)


def month(number: int) -> datetime:
    return datetime(2000 + number // 12, number % 12 + 1, 1, tzinfo=UTC)


def cells(day: int, values: Values) -> list[Cell | Reject]:
    return [
        Cell(name, month(number), vintage_day(day), value, line)
        for line, ((name, number), value) in enumerate(values.items(), 2)
    ]


class Store:
    """Loads vintages made by hand, keeping their records as the raw store would keep their bytes."""

    def __init__(self, connection: psycopg.Connection[Any], contract: Contract, dataset: str = DATASET) -> None:
        self.connection, self.dataset = connection, dataset
        self.names = SERIES if dataset == DATASET else tuple(f"{name} of {dataset}" for name in SERIES)
        declared = {name: contract.series[own] for name, own in zip(self.names, SERIES, strict=True)}
        ids = ledger.series_ids(connection, dataset, declared)
        self.ids = {own: ids[name] for name, own in zip(self.names, SERIES, strict=True)}
        self.kept: dict[str, list[Cell | Reject]] = {}

    def load(self, day: int, values: Values, name: str = "", bad: list[Reject] | None = None) -> ledger.Counts:
        key = hashlib.sha256(f"{self.dataset}:{name or day}:{sorted(values.items())}".encode()).hexdigest()
        self.kept[key] = [*cells(day, values), *(bad or [])]
        request = {"file": name or f"{day}.csv", "vintage": vintage_day(day).isoformat()}
        entry = ledger.Entry(self.dataset, key, request, key, "rules", 1, datetime.now(UTC))
        return ledger.commit(self.connection, entry, self.ids, self.kept[key], self.reparse)

    @contextmanager
    def reparse(self, sha256: str, _: dict[str, str]) -> Iterator[list[Cell | Reject]]:
        yield self.kept[sha256]

    def known(self, day: int, version: str | None = None) -> Values:
        """What the store answers for the end of that day: the newest value of each cell."""
        loads = read.data_version(self.connection, version).loads
        rows = read.vintages(self.connection, self.names, vintage_day(day), loads)
        start = datetime(1970, 1, 1, tzinfo=UTC)
        answer: Values = {}
        for name, own in zip(self.names, SERIES, strict=True):
            for valid, _, value in rows[name]:
                at = start + timedelta(days=valid)
                answer[own, (at.year - 2000) * 12 + at.month - 1] = value  # type: ignore[assignment]
        return answer

    def count(self, sql: str) -> int:
        return self.connection.execute(sql).fetchone()[0]  # type: ignore[index,no-any-return]


@pytest.fixture
def store(loader: psycopg.Connection[Any], contract: Contract) -> Store:
    return Store(loader, contract)


def test_only_what_changed_is_stored_and_every_cell_is_accounted_for(store: Store) -> None:
    first = store.load(0, {("UNRATE", 1): 5.0, ("UNRATE", 2): 5.1})
    second = store.load(30, {("UNRATE", 1): 5.0, ("UNRATE", 2): 5.2, ("UNRATE", 3): 5.3})
    assert (first.fetched, first.new) == (2, 2)
    assert (second.fetched, second.new, second.changed, second.same) == (3, 1, 1, 1)
    assert store.count("SELECT count(*) FROM observation") == 4


def test_each_as_of_answers_with_what_was_known_then(store: Store) -> None:
    store.load(0, {("UNRATE", 1): 5.0})
    store.load(30, {("UNRATE", 1): 5.5})
    assert store.known(29) == {("UNRATE", 1): 5.0}
    assert store.known(30) == {("UNRATE", 1): 5.5}


def test_a_pair_of_clocks_answers_the_same_after_a_backfill(store: Store) -> None:
    store.load(30, {("UNRATE", 1): 5.5})
    version = read.data_version(store.connection).version
    store.load(0, {("UNRATE", 1): 5.0, ("PAYEMS", 1): 1.0})
    assert store.known(40, version) == {("UNRATE", 1): 5.5}
    assert store.known(40) == {("UNRATE", 1): 5.5, ("PAYEMS", 1): 1.0}
    assert read.data_version(store.connection).version != version


def test_a_late_vintage_does_not_show_through_where_a_later_one_was_unchanged(store: Store) -> None:
    store.load(0, {("UNRATE", 1): 5.0})
    store.load(60, {("UNRATE", 1): 5.0})
    store.load(30, {("UNRATE", 1): 7.0})
    assert [store.known(day)["UNRATE", 1] for day in (10, 40, 70)] == [5.0, 7.0, 5.0]


values = st.dictionaries(
    st.tuples(st.sampled_from(SERIES), st.integers(0, 3)), st.sampled_from([1.0, 2.0, 3.0]), max_size=6
)


@given(st.lists(values, min_size=2, max_size=5), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_vintages_loaded_in_any_order_answer_the_same(
    loader: psycopg.Connection[Any], contract: Contract, vintages: list[Values], random: Any
) -> None:
    order = list(range(len(vintages)))
    random.shuffle(order)
    answers = []
    for sequence in (sorted(order), order):
        twin = Store(loader, contract, uuid.uuid4().hex)
        for day in sequence:
            twin.load(day, vintages[day])
        answers.append([twin.known(day) for day in range(len(vintages))])
    assert answers[0] == answers[1]


def test_a_vintage_stated_again_with_another_value_is_quarantined_and_the_first_stays_in_force(store: Store) -> None:
    store.load(0, {("UNRATE", 1): 5.0})
    store.load(30, {("UNRATE", 1): 5.0})
    again = store.load(30, {("UNRATE", 1): 6.0})
    assert (again.changed, again.quarantined) == (0, 1)
    assert store.known(30) == {("UNRATE", 1): 5.0}
    rows = store.connection.execute("SELECT rule, raw, series FROM quarantine").fetchall()
    assert rows == [("vintage_conflict", "6", "UNRATE")]


def test_what_was_refused_stays_refused_when_an_older_vintage_comes_late(store: Store) -> None:
    store.load(60, {("UNRATE", 1): 5.0})
    store.load(90, {("UNRATE", 1): 5.0})
    store.load(90, {("UNRATE", 1): 6.0})
    store.load(30, {("UNRATE", 1): 5.0})
    assert [store.known(day)["UNRATE", 1] for day in (40, 70, 100)] == [5.0, 5.0, 5.0]


def test_a_vintage_stated_again_in_another_file_is_still_the_same_vintage(store: Store) -> None:
    store.load(0, {("UNRATE", 1): 5.0})
    store.load(30, {("UNRATE", 1): 5.0})
    assert store.load(30, {("UNRATE", 1): 6.0}, name="copy.csv").quarantined == 1


def test_a_cell_that_was_bad_at_first_can_be_corrected(store: Store) -> None:
    store.load(0, {("UNRATE", 1): 5.0})
    store.load(30, {("UNRATE", 2): 5.1}, bad=[Reject("UNRATE", 3, "oops", "number", "not a number")])
    corrected = store.load(30, {("UNRATE", 1): 5.5, ("UNRATE", 2): 5.1})
    assert (corrected.changed, corrected.same, corrected.quarantined) == (1, 1, 0)
    assert store.known(30)["UNRATE", 1] == 5.5


def test_a_bad_cell_goes_to_quarantine_with_its_place_and_the_good_ones_are_loaded(store: Store) -> None:
    counts = store.load(0, {("UNRATE", 1): 5.0}, bad=[Reject("PAYEMS", 7, "abc", "number", "not a number")])
    assert (counts.fetched, counts.new, counts.quarantined) == (2, 1, 1)
    row = store.connection.execute("SELECT file, line, series, raw, rule FROM quarantine").fetchone()
    assert row == ("0.csv", 7, "PAYEMS", "abc", "number")


def test_a_figure_that_does_not_add_up_cannot_be_committed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = ledger._stage
    monkeypatch.setattr(ledger, "_stage", lambda *given: honest(*given) + 1)
    with pytest.raises(psycopg.errors.CheckViolation, match="every_cell_accounted_for"):
        store.load(0, {("UNRATE", 1): 5.0})
    assert store.count("SELECT count(*) FROM observation") == 0


def test_a_row_lost_between_stage_and_insert_stops_the_load(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    lossy = ledger.INSERT.replace("FROM verdict WHERE", "FROM verdict WHERE line > 2 AND")
    assert lossy != ledger.INSERT
    monkeypatch.setattr(ledger, "INSERT", lossy)
    with pytest.raises(psycopg.errors.CheckViolation):
        store.load(0, {("UNRATE", 1): 5.0, ("UNRATE", 2): 5.1})
    assert store.count("SELECT count(*) FROM load") == 0


def test_a_row_that_another_hand_removed_is_missed_by_the_recount(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = ledger.INSERT.replace("SELECT series_id, valid_time", "SELECT series_id, valid_time + interval '1 day'")
    monkeypatch.setattr(ledger, "INSERT", elsewhere)
    with pytest.raises(ServiceError, match="nothing was committed"):
        store.load(0, {("UNRATE", 1): 5.0})


@pytest.mark.parametrize("phase", ["_stage", "_insert", "_write_ledger", "_name_data_version"])
def test_a_crash_leaves_nothing_behind(store: Store, monkeypatch: pytest.MonkeyPatch, phase: str) -> None:
    honest = getattr(ledger, phase)

    def crash(*given: Any, **named: Any) -> None:
        honest(*given, **named)
        raise KeyboardInterrupt

    monkeypatch.setattr(ledger, phase, crash)
    with pytest.raises(KeyboardInterrupt):
        store.load(0, {("UNRATE", 1): 5.0})
    tables = ("observation", "load", "quarantine", "watermark", "data_version")
    assert [store.count(f"SELECT count(*) FROM {table}") for table in tables] == [0] * 5
    monkeypatch.setattr(ledger, phase, honest)
    assert store.load(0, {("UNRATE", 1): 5.0}).new == 1


def test_a_claimed_dataset_is_left_to_the_copy_that_holds_it(url: str) -> None:
    with connect(url, "loader") as one, connect(url, "loader") as two, claim(one, DATASET) as free:
        one.execute("INSERT INTO attempt (dataset, runner) VALUES (%s, 'host:1')", [DATASET])
        with claim(two, DATASET) as holder:
            assert free is None
            assert holder is not None
            assert holder.startswith("host:1 since")


INSERT_ONLY = ["observation", "load", "raw_object", "promotion", "quarantine", "data_version", "model", "forecast"]


@pytest.mark.parametrize("statement", ["DELETE FROM {}", "UPDATE {0} SET {1} = {1}", "TRUNCATE {}"])
def test_the_loader_cannot_take_a_row_back(store: Store, statement: str) -> None:
    store.load(0, {("UNRATE", 1): 5.0})
    for table in INSERT_ONLY:
        column = store.connection.execute(
            "SELECT column_name FROM information_schema.columns WHERE table_name = %s AND is_identity = 'NO' LIMIT 1",
            [table],
        ).fetchone()
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            store.connection.execute(statement.format(table, column[0]))  # type: ignore[index]


def test_the_reader_reads_and_nothing_else(url: str, store: Store) -> None:
    store.load(0, {("UNRATE", 1): 5.0})
    with connect(url, "reader") as reader:
        assert reader.execute("SELECT count(*) FROM observation").fetchone() == (1,)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            reader.execute("INSERT INTO watermark VALUES ('x', 'y', 1)")


def test_a_second_migration_changes_nothing(url: str, contract: Contract) -> None:
    assert migrate(url, contract) == []


def test_observation_is_a_hypertable_of_few_chunks_where_timescaledb_is_there(store: Store) -> None:
    found = store.connection.execute("SELECT FROM pg_extension WHERE extname = 'timescaledb'").fetchone()
    if found is None:
        pytest.skip("plain PostgreSQL: TEST_DATABASE_URL names no TimescaleDB")
    store.load(0, {("UNRATE", number): 5.0 for number in range(12 * 90)})
    chunks = store.count("SELECT count(*) FROM timescaledb_information.chunks WHERE hypertable_name = 'observation'")
    assert 1 < chunks <= 100


def test_a_series_that_changes_its_unit_is_refused(store: Store, contract: Contract) -> None:
    other = contract.series["UNRATE"].model_copy(update={"unit": "persons"})
    with pytest.raises(ServiceError, match="give the new one a new name"):
        ledger.series_ids(store.connection, DATASET, {"UNRATE": other})


def test_a_database_that_is_away_is_named_without_its_password() -> None:
    with pytest.raises(DatabaseAway) as error:
        connect("postgresql://me:s3cret@127.0.0.1:1/none")
    assert "does not answer" in str(error.value)
    assert "s3cret" not in str(error.value)


def test_conservation_is_checked_by_the_database_itself(store: Store) -> None:
    counts = store.load(0, {("UNRATE", 1): 5.0})
    entry = ledger.Entry(DATASET, "other", {"file": "x", "vintage": ""}, "x", "rules", 1, datetime.now(UTC))
    wrong = replace(counts, load_id=counts.load_id + 1, fetched=9)
    with pytest.raises(psycopg.errors.CheckViolation), store.connection.transaction():
        store.connection.execute(ledger.STAGE)
        ledger._write_ledger(store.connection, entry, wrong, None)
