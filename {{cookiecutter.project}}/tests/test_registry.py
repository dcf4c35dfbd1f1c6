"""What becomes of a model is kept: who made it what it is, when, from what, to what and why; also what was refused."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psycopg
import pytest
from conftest import SAMPLE
from psycopg.conninfo import make_conninfo
from serving import challenge, make_project

from model_service import artifact, doctor, experiments, forecasting, registry, settings
from model_service.cli import main
from model_service.contract import Contract
from model_service.errors import Blocked, ServiceError, UsageError
from model_service.store import migrate
from model_service.store.connection import connect
from model_service.training import gate, reproduce, run
from model_service.training.run import Candidate, Overruling

Connection = psycopg.Connection[Any]


def card(number: int, **more: Any) -> dict[str, Any]:
    """A card of a model that nobody trained."""
    return {
        "target": {"series": "UNRATE", "unit": "percent"}, "inputs": ["a", "b"], "horizons": [1], "estimator": "ridge",
        "seed": number, "trained_as_of": {"known_at": "2016-07-29T23:59:59Z", "data_version": "sha256:0"}, "loads": {},
        "data_hash": "sha256:1", "git_commit": "0" * 40, "source_hash": "sha256:2", "lock_hash": "sha256:3",
        "metrics": {"rmse": {"model": [0.1], "last_value": [0.2]}, "origins": {"scored": 9, "first": "1998-01-01"}},
        "gate": [],
    } | more  # fmt: skip


def registered(connection: Connection, folder: Path, number: int, **more: Any) -> int:
    texts = {"card.json": card(number, **more), "golden.json": {}, "held.json": {}}
    files = {name: json.dumps(text).encode() for name, text in texts.items()}
    artifact.write(folder / str(number), files | {"model.onnx": b""}, "unregistered")
    return registry.register(connection, folder / str(number), "passed the gate")


def life(connection: Connection, version: int) -> list[tuple[str, ...]]:
    asked = "SELECT state_from, state_to, action, reason FROM transition WHERE version = %s ORDER BY transition_id"
    return connection.execute(asked, [version]).fetchall()


def is_whole(connection: Connection) -> bool:
    """Each state of a model begins where the one before ended, and the log has one champion: the last promoted."""
    found = connection.execute("SELECT version, state_from, state_to FROM transition ORDER BY transition_id").fetchall()
    now: dict[int, str] = {}
    for version, state_from, state_to in found:
        if now.get(version) != state_from or state_from == state_to:
            return False
        now[version] = state_to
    champion = registry.champion(connection)
    return [version for version, state in now.items() if state == "champion"] == (
        [champion.version] if champion else []
    )


@pytest.mark.ml_test("infra-7")
def test_every_change_of_a_models_state_is_a_row_with_who_from_to_and_why(loader: Connection, tmp_path: Path) -> None:
    first, second = (registered(loader, tmp_path, number) for number in (1, 2))
    registry.promote(loader, first, "promote", "good")
    registry.promote(loader, second, "promote", "better")
    assert registry.states(loader) == {first: "retired", second: "champion"}
    assert registry.rollback(loader, "worse in July") == first
    assert life(loader, first) == [
        (None, "candidate", "register", "passed the gate"),
        ("candidate", "champion", "promote", "good"),
        ("champion", "retired", "promote", f"replaced by model {second}"),
        ("retired", "champion", "rollback", "worse in July"),
    ]
    assert life(loader, second)[-1] == ("champion", "retired", "rollback", f"replaced by model {first}")
    assert {who for (who,) in loader.execute("SELECT who FROM transition").fetchall()} == {settings.current_user()}
    assert is_whole(loader)


def test_a_rollback_never_goes_to_what_a_rollback_or_an_undone_deployment_left(
    loader: Connection, tmp_path: Path
) -> None:
    first, second, third = (registered(loader, tmp_path, number) for number in (1, 2, 3))
    for version, action in ((first, "promote"), (second, "import"), (first, "import"), (third, "promote")):
        registry.promote(loader, version, action, "by an image that never got ready, the second")
    assert registry.rollback(loader, "one back") == first
    with pytest.raises(ServiceError, match="no earlier champion"):
        registry.rollback(loader, "to the one that was undone")
    for version in (second, first):
        registry.promote(loader, version, "promote", "both were good")
    assert [registry.rollback(loader, "one more") for _ in range(2)] == [second, first]
    with pytest.raises(ServiceError, match="no earlier champion"):
        registry.rollback(loader, "one too many")


def test_a_target_that_never_moved_can_be_listed(loader: Connection, tmp_path: Path) -> None:
    still = {"rmse": {"model": [0.1], "last_value": [0.0]}, "origins": {"scored": 9, "first": "1998-01-01"}}
    registered(loader, tmp_path, 1, metrics=still)
    assert "1: -" in experiments.models_text(experiments.models(loader))


@pytest.mark.ml_test("infra-7", sabotage=True)
def test_a_rollback_that_leaves_no_transition_is_seen(url: str, loader: Connection, tmp_path: Path) -> None:
    for number in (1, 2):
        registry.promote(loader, registered(loader, tmp_path, number), "promote", "good")
    with psycopg.connect(url) as owner:
        owner.execute("ALTER TABLE promotion DISABLE TRIGGER USER")
    registry.rollback(loader, "unseen")
    assert not is_whole(loader)


def test_the_same_model_again_is_the_same_version_and_no_transition(loader: Connection, tmp_path: Path) -> None:
    assert registered(loader, tmp_path, 1) == registered(loader, tmp_path, 1)
    assert len(life(loader, 1)) == 1
    assert registered(loader, tmp_path, 2) == 2  # a stack that imports its image's model at each `up` counts on
    assert registry.promote(loader, 1, "promote", "once")
    assert not registry.promote(loader, 1, "promote", "twice")
    assert len(life(loader, 1)) == 2


def test_there_is_one_challenger_and_it_is_not_the_champion(loader: Connection, tmp_path: Path) -> None:
    first, second, third = (registered(loader, tmp_path, number) for number in (1, 2, 3))
    registry.promote(loader, first, "promote", "good")
    assert registry.set_challenger(loader, second, "in the shadow first")
    assert not registry.set_challenger(loader, second, "again")
    assert registry.set_challenger(loader, third, "this one")
    assert registry.states(loader) == {first: "champion", second: "retired", third: "challenger"}
    with pytest.raises(UsageError, match="cannot be its own challenger"):
        registry.set_challenger(loader, first, "why not")
    registry.promote(loader, third, "promote", "earned it")
    assert life(loader, third)[-1][:2] == ("challenger", "champion")
    assert is_whole(loader)


def promote_at_once(url: str, versions: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Promotes each version by a connection of its own; all read the champion before one writes, if they can."""
    everyone, honest = threading.Barrier(len(versions)), registry.champion

    def slow(connection: Connection) -> registry.Registered | None:
        found = honest(connection)
        with suppress(threading.BrokenBarrierError):
            everyone.wait(0.5)
        return found

    def promote(version: int) -> None:
        with connect(url, "loader") as connection:
            registry.promote(connection, version, "promote", "at once")

    monkeypatch.setattr(registry, "champion", slow)
    threads = [threading.Thread(target=promote, args=[version]) for version in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    monkeypatch.setattr(registry, "champion", honest)


def test_promotions_at_once_follow_one_another(
    url: str, loader: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote_at_once(url, [registered(loader, tmp_path, number) for number in range(4)], monkeypatch)
    assert loader.execute("SELECT count(*) FROM promotion").fetchone() == (4,)
    assert is_whole(loader)


def test_promotions_that_do_not_wait_for_each_other_are_seen_to_contradict(
    url: str, loader: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_alone", lambda connection: connection.transaction())
    promote_at_once(url, [registered(loader, tmp_path, number) for number in range(4)], monkeypatch)
    assert not is_whole(loader)


def test_two_people_at_work_at_once_lose_no_transition(url: str, loader: Connection, tmp_path: Path) -> None:
    versions = [registered(loader, tmp_path, number) for number in range(3)]
    promoted: list[str] = []

    def work(turn: int) -> None:
        with connect(url, "loader") as connection:
            for step in range(30):
                version, reason = versions[(turn + step) % 3], f"{turn}.{step}"
                with suppress(ServiceError):
                    if step % 5 == 4:
                        registry.rollback(connection, reason)
                    elif step % 5 == 2:
                        registry.set_challenger(connection, version, reason)
                    elif registry.promote(connection, version, "promote", reason):
                        promoted.append(reason)

    threads = [threading.Thread(target=work, args=[turn]) for turn in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = {reason for (reason,) in loader.execute("SELECT reason FROM transition").fetchall()}
    assert len(promoted) > 10
    assert set(promoted) <= kept
    assert is_whole(loader)


@pytest.fixture
def older(server: str, contract: Contract, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A database as the code before this registry left it: models 1 to 4, of which 1, 2 and then 1 was champion."""
    known = migrate.migrations()
    name = "test_older_registry"
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    url = make_conninfo(server, dbname=name)
    monkeypatch.setattr(migrate, "migrations", lambda: known[: known.index("0003_models.sql")])
    migrate.migrate(url, contract)
    with psycopg.connect(url, autocommit=True) as owner:
        for number in range(1, 5):
            owner.execute("INSERT INTO model (digest, files, onnx) VALUES (%s, '{}', '')", [f"sha256:{number}"])
        for version, previous, action in ((1, None, "promote"), (2, 1, "promote"), (1, 2, "rollback")):
            owner.execute(PROMOTED, [version, previous, action])
    monkeypatch.setattr(migrate, "migrations", lambda: known)
    migrate.migrate(url, contract)
    yield url
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


PROMOTED = "INSERT INTO promotion (version, previous, action, who, reason) VALUES (%s, %s, %s, 'me', 'then')"


def test_models_of_before_get_the_life_that_their_promotions_tell(older: str) -> None:
    with connect(older, "loader") as connection:
        assert registry.states(connection) == {1: "champion", 2: "retired", 3: "candidate", 4: "candidate"}
        assert [to for _, to, _, _ in life(connection, 1)] == ["candidate", "champion", "retired", "champion"]
        assert is_whole(connection)


def test_an_image_of_before_may_still_promote(older: str) -> None:
    with connect(older, "loader") as connection:
        connection.execute(PROMOTED, [3, 1, "import"])  # as its code does
        assert registry.states(connection) == {1: "retired", 2: "retired", 3: "champion", 4: "candidate"}
        assert life(connection, 3)[-1] == ("candidate", "champion", "import", "then")
        assert is_whole(connection)


# From here on with a model that was really trained.


def copied(folder: Path) -> Path:
    (folder / "service.toml").write_bytes((SAMPLE / "service.toml").read_bytes())
    return folder


@pytest.fixture(scope="module")
def trained(loaded: Connection, contract: Contract, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = copied(tmp_path_factory.mktemp("trained"))
    return run.train(contract, loaded, root, run.newest_knowledge(loaded), print)


@pytest.fixture(scope="module")
def poor(contract: Contract) -> Contract:
    """Of a target that nothing here forecasts better than an autoregression does."""
    return contract.model_copy(update={"target": contract.target.model_copy(update={"series": "INDPRO"})})


@pytest.fixture(scope="module")
def refused(
    loaded: Connection, poor: Contract, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Candidate, list[str]]:
    """What was made for `poor`, and the rules that refused it."""
    kept: list[Candidate] = []

    def keep(*asked: Any) -> Candidate:
        kept.append(candidate(*asked))
        return kept[0]

    candidate = run.candidate
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Blocked) as blocked:
        patch.setattr(run, "candidate", keep)
        run.train(poor, loaded, copied(tmp_path_factory.mktemp("poor")), run.newest_knowledge(loaded), print)
    return kept[0], [line.split(":")[0].strip() for line in str(blocked.value).splitlines()[1:]]


@pytest.fixture
def train_poor(
    loaded: Connection,
    trained: dict[str, Any],
    poor: Contract,
    refused: tuple[Candidate, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Callable[..., dict[str, Any]]:
    """Trains it again, overruling some rules; the costly part is the one of `refused`."""
    monkeypatch.setattr(run, "candidate", lambda *_: refused[0])
    at = run.newest_knowledge(loaded)
    return lambda *rules: run.train(poor, loaded, copied(tmp_path), at, print, None, Overruling(rules, "one-off"))


@pytest.mark.ml_test("model-1")
def test_a_refused_training_is_a_row_that_can_be_compared(
    loaded: Connection, trained: dict[str, Any], refused: tuple[Candidate, list[str]]
) -> None:
    blocked, passed = experiments.runs(loaded)[:2]
    assert (blocked["outcome"], blocked["version"]) == ("blocked", None)
    assert (passed["outcome"], passed["version"]) == ("passed", trained["version"])
    assert [rule["name"] for rule in blocked["gate"] if not rule["ok"]] == refused[1]
    assert blocked["parameters"]["target"]["series"] == "INDPRO"
    assert blocked["figures"]["rmse"].keys() == {"model", "last_value", "seasonal", "ar"}
    assert (blocked["known_at"], blocked["data_version"]) == (passed["known_at"], passed["data_version"])
    assert {"git_commit", "source_hash", "lock_hash", "platform", "data_hash"} <= blocked["provenance"].keys()
    assert refused[1][0] in experiments.runs_text([blocked, passed]).splitlines()[1]


def test_a_rule_is_overruled_by_name_and_reason_and_everything_says_so(
    loaded: Connection,
    poor: Contract,
    refused: tuple[Candidate, list[str]],
    train_poor: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    before = registry.champion(loaded)
    made = train_poor(*refused[1])
    assert made["outcome"] == experiments.runs(loaded)[0]["outcome"] == "overruled"
    why = f"overruled {', '.join(refused[1])}: one-off"
    assert life(loaded, made["version"]) == [
        (None, "candidate", "register", why), ("candidate", "champion", "promote", why)
    ]  # fmt: skip
    assert artifact.load(tmp_path / "build/model").card["overruled"] == {"rules": refused[1], "reason": "one-off"}
    report = json.loads((tmp_path / "build/report.json").read_text())
    assert [rule["name"] for rule in report["gate"] if rule["overruled"]] == refused[1]
    shown = experiments.model_text(experiments.model(loaded, str(made["version"])))
    assert f"overruled {', '.join(refused[1])}: one-off" in shown
    assert shown.count(", overruled\n") == len(refused[1])
    again = run.make(
        poor, loaded, tmp_path, run.newest_knowledge(loaded), print, None, Overruling(tuple(refused[1]), "one-off")
    )
    assert run.write(again, tmp_path / "again") == made["digest"]
    assert registry.rollback(loaded, "back to what the other tests know") == before.version  # type: ignore[union-attr]


def test_only_the_rules_that_were_named_do_not_block(
    loaded: Connection, refused: tuple[Candidate, list[str]], train_poor: Callable[..., dict[str, Any]]
) -> None:
    assert len(refused[1]) > 1
    with pytest.raises(Blocked) as blocked:
        train_poor(refused[1][0])
    assert refused[1][0] not in str(blocked.value)
    assert all(name in str(blocked.value) for name in refused[1][1:])
    assert [rule["name"] for rule in experiments.runs(loaded)[0]["gate"] if rule["overruled"]] == refused[1][:1]


def test_an_unknown_rule_is_refused_with_the_nearest_a_slice_once_its_names_are_known(
    train_poor: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="--overrule slice_level_hihg: .* did you mean 'slice_level_high'?"):
        train_poor("slice_level_hihg")
    monkeypatch.setattr(run, "candidate", lambda *_: pytest.fail("the backtest was run"))
    for unknown, near in {"better_than_arr": "better_than_ar", "rmse_ratio_h7": "rmse_ratio_h"}.items():
        with pytest.raises(UsageError, match=f"--overrule {unknown}: .* did you mean '{near}"):
            train_poor(unknown)


@pytest.mark.parametrize("rule", [*gate.OTHER, "rmse_ratio_h1", "coverage_0.8", "slice_period1"])
def test_a_rule_that_there_may_be_is_not_refused_before_the_backtest(
    rule: str, loaded: Connection, contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begun(*_: Any) -> None:
        raise ServiceError("begun")

    monkeypatch.setattr(run, "candidate", begun)
    with pytest.raises(ServiceError, match="begun"):
        run.make(contract, loaded, copied(tmp_path), run.newest_knowledge(loaded), print, None, Overruling((rule,)))


@pytest.mark.parametrize("rule", ["leak", "determinism", "onnx_parity", "signature", "skew"])
def test_what_makes_figures_wrong_cannot_be_overruled(train_poor: Callable[..., dict[str, Any]], rule: str) -> None:
    with pytest.raises(UsageError, match=f"{rule}: nobody may overrule"):
        train_poor(rule)


@pytest.fixture(scope="module")
def waiting(
    loaded: Connection, contract: Contract, trained: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What came of a training with sign_off, as of an earlier day."""
    root = copied(tmp_path_factory.mktemp("waiting"))
    return run.train(strict(contract), loaded, root, forecasting.parse_as_of("2016-07-01"), print)


def strict(contract: Contract) -> Contract:
    return contract.model_copy(update={"gate": contract.gate.model_copy(update={"sign_off": True})})


def test_with_sign_off_a_model_waits_for_a_person(
    loaded: Connection, contract: Contract, trained: dict[str, Any], waiting: dict[str, Any]
) -> None:
    assert (waiting["promoted"], waiting["state"]) == (False, "candidate")
    found = {one["check"]: one for one in doctor.examine(strict(contract), loaded, datetime.now(UTC))}
    number = waiting["version"]
    assert found["sign-off"]["says"] == f"model {number} waits: `promote {number} --sign-off NAME`"
    assert "sign-off" not in {one["check"] for one in doctor.examine(contract, loaded, datetime.now(UTC))}
    assert registry.champion(loaded).version == trained["version"]  # type: ignore[union-attr]
    assert experiments.runs(loaded, waiting["version"])[0]["outcome"] == "passed"


def test_a_model_of_an_earlier_day_has_no_hindsight_and_is_rolled_back(
    trained: dict[str, Any], waiting: dict[str, Any], loaded: Connection, contract: Contract
) -> None:
    registry.promote(loaded, waiting["version"], "promote", "as it was then")
    at = forecasting.parse_as_of("2016-07-01")
    assert forecasting.answer(contract, forecasting.champion(loaded), loaded, at, None, [1])["hindsight"] is False
    assert registry.rollback(loaded, "too early") == trained["version"]
    assert forecasting.answer(contract, forecasting.champion(loaded), loaded, at, None, [1])["hindsight"] is True
    row = loaded.execute("SELECT action, reason, previous FROM promotion ORDER BY promotion_id DESC LIMIT 1").fetchone()
    assert row == ("rollback", "too early", waiting["version"])


def test_there_is_nothing_before_the_first_champion(loader: Connection, tmp_path: Path) -> None:
    registry.promote(loader, registered(loader, tmp_path, 1), "promote", "good")
    with pytest.raises(ServiceError, match="no earlier champion"):
        registry.rollback(loader, "one more")


@pytest.mark.ml_test("infra-1")
def test_a_model_is_made_into_a_folder_without_a_trace_whatever_the_champion(
    loaded: Connection, contract: Contract, trained: dict[str, Any], tmp_path: Path
) -> None:
    before = loaded.execute("SELECT (SELECT count(*) FROM model), (SELECT count(*) FROM training_run)").fetchone()
    made = run.make(contract, loaded, copied(tmp_path), run.newest_knowledge(loaded), print)
    assert run.write(made, tmp_path / "made") == trained["digest"]
    assert artifact.load(tmp_path / "made").digest == trained["digest"]
    after = loaded.execute("SELECT (SELECT count(*) FROM model), (SELECT count(*) FROM training_run)").fetchone()
    assert after == before
    assert not (tmp_path / "build").exists()


# What `reproduce` asks of a model that was made again.


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    make_project(tmp_path)
    return artifact.read(tmp_path / "build" / "model")[0]


@pytest.fixture
def rows(files: dict[str, bytes]) -> Any:
    return np.random.default_rng(1).normal(size=(50, len(json.loads(files["card.json"])["inputs"])))


def edited(files: dict[str, bytes], step: float = 0, **card: Any) -> dict[str, bytes]:
    """The model with other words in its card, and weights moved by `step`."""
    graph = onnx.load_model_from_string(files["model.onnx"])
    weights = next(one for one in graph.graph.initializer if one.name == "weights")
    weights.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weights) + step, "weights"))
    text = json.dumps(json.loads(files["card.json"]) | card).encode()
    return files | {"card.json": text, "model.onnx": graph.SerializeToString() if step else files["model.onnx"]}


@pytest.mark.ml_test("infra-1", sabotage=True)
def test_on_the_recorded_platform_a_model_must_come_out_equal_to_the_byte(files: dict[str, bytes], rows: Any) -> None:
    assert reproduce.compared(files, files, rows)["holds"]
    found = reproduce.compared(files, edited(files, seed=2), rows)
    assert (found["holds"], found["files"], found["card"]) == (False, ["card.json"], ["seed"])
    assert reproduce.compared(files, edited(files, step=1e-12), rows)["files"] == ["model.onnx"]


def test_where_the_clock_had_ended_a_search_a_difference_is_put_down_to_it(files: dict[str, bytes], rows: Any) -> None:
    found = {"version": 1, "digest": "a", "made": "b"} | reproduce.compared(
        edited(files, search_cut=True), edited(files, search_cut=True, seed=2), rows
    )
    assert "ended by train.search_seconds" in reproduce.text(found)
    assert "search_seconds" not in reproduce.text(found | {"search_cut": False})


@pytest.mark.parametrize(("step", "holds"), [(0, True), (1e-9, True), (1e-3, False)])
def test_on_another_platform_its_predictions_must_be_equal_within_the_parity_bound(
    files: dict[str, bytes], rows: Any, step: float, holds: bool
) -> None:
    found = reproduce.compared(files, edited(files, step, platform={"python": "CPython 3.0.0"}), rows)
    assert found["holds"] is holds
    assert found["platform"]["platform.python"][1] == "CPython 3.0.0"


def test_a_model_of_other_inputs_is_never_equal(files: dict[str, bytes], rows: Any) -> None:
    names = json.loads(files["card.json"])["inputs"]
    other = edited(files, inputs=[*names[:-1], "another"], platform={"python": "CPython 3.0.0"})
    assert not reproduce.compared(files, other, rows)["holds"]


# What a person types.


@pytest.fixture
def desk(
    project: Path, url: str, loader: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> Callable[..., tuple[int, str]]:
    """Runs a verb in a project with two registered models, 1 the champion; gives exit code and what was said."""
    monkeypatch.setenv("DATABASE_URL", url)
    for number in (1, 2):
        registered(loader, tmp_path / "fakes", number, estimator=["ridge", "gradient_boosting"][number - 1])
    registry.promote(loader, 1, "promote", "good")

    def call(*words: str) -> tuple[int, str]:
        code = main(list(words))
        said = capsys.readouterr()
        return code, said.out + said.err

    return call


def test_models_are_listed_shown_and_compared(desk: Callable[..., tuple[int, str]]) -> None:
    code, said = desk("models", "list")
    assert code == 0
    assert [line.split()[:2] for line in said.splitlines()[1:]] == [["2", "candidate"], ["1", "champion"]]
    code, said = desk("models", "show", "1")
    assert (code, "candidate -> champion (promote by" in said) == (0, True)
    code, said = desk("models", "diff", "1", "2")
    assert "estimator: ridge -> gradient_boosting" in said
    assert "seed: 1 -> 2" in said
    assert "data" not in said
    code, said = desk("models", "show", "9")
    assert (code, said) == (2, "error: model 9 is not registered (registered: 1, 2)\n")
    assert desk("models", "runs") == (0, "no training run is recorded\n")


@pytest.mark.ml_test("model-1", sabotage=True)
def test_with_sign_off_a_promotion_needs_a_name(
    desk: Callable[..., tuple[int, str]], project: Path, loader: Connection
) -> None:
    text = (project / "service.toml").read_text()
    assert "\nsign_off = false" in text
    (project / "service.toml").write_text(text.replace("\nsign_off = false", "\nsign_off = true"))
    code, said = desk("promote", "2")
    assert code == 2
    assert "`promote 2 --sign-off NAME`" in said
    assert registry.states(loader)[2] == "candidate"
    assert desk("promote", "2", "--sign-off", "A. Person", "--reason", "read the report")[0] == 0
    assert life(loader, 2)[-1] == ("candidate", "champion", "promote", "signed off by A. Person: read the report")


def test_a_challenger_is_named_and_the_champion_stays(desk: Callable[..., tuple[int, str]], loader: Connection) -> None:
    assert desk("promote", "2", "--challenger") == (0, "model 2 is now the challenger\n")
    assert registry.states(loader) == {1: "champion", 2: "challenger"}


def test_a_challenger_is_not_made_and_retired_at_once(desk: Callable[..., tuple[int, str]], loader: Connection) -> None:
    desk("promote", "2", "--challenger")
    code, said = desk("promote", "--challenger", "--no-challenger")
    assert (code, "leave one of them out" in said) == (2, True)
    assert registry.states(loader) == {1: "champion", 2: "challenger"}


def test_a_challenger_is_built_beside_the_champion_until_it_is_withdrawn(
    desk: Callable[..., tuple[int, str]], loader: Connection, project: Path
) -> None:
    folder = project / "build/model"
    desk("promote", "2", "--challenger")
    assert desk("export", str(folder))[0] == 0
    built = [artifact.read(one)[1] for one in (folder, folder / artifact.CHALLENGER)]
    assert built == [registry.named(loader, version).digest for version in ("1", "2")]
    withdrawn = desk("promote", "--no-challenger", "--reason", "no better")
    assert withdrawn == (0, "model 2 is the challenger no more\n")
    assert life(loader, 2)[-1] == ("challenger", "retired", "withdraw", "no better")
    assert desk("promote", "--no-challenger") == (0, "no model is the challenger\n")
    assert desk("export", str(folder))[0] == 0
    assert not (folder / artifact.CHALLENGER).exists()


def test_an_image_brings_its_challenger_along_and_doctor_says_what_is_in_the_shadow(
    desk: Callable[..., tuple[int, str]], loader: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_project(tmp_path / "image")
    folder = made.root / "build/model"
    monkeypatch.setenv("MODEL_DIR", str(folder))

    def says() -> list[str]:
        return [line for line in desk("doctor")[1].splitlines() if "challenger: " in line]

    def brings() -> str:
        code, said = desk("promote", "--artifact", str(folder), "--reason", "deploy")
        assert code == 0
        return said

    assert says() == []
    challenge(made, -made.weights)
    assert says() == ["look  challenger: no model is the challenger, model other is built: run `make build`"]
    for _ in range(2):
        brings()
    assert registry.states(loader) == {1: "retired", 2: "candidate", 3: "champion", 4: "challenger"}
    assert [to for _, to, _, _ in life(loader, 4)] == ["candidate", "challenger"]
    assert says() == ["ok    challenger: model 4 is the challenger and is built"]
    desk("promote", "2", "--challenger")
    assert says() == ["look  challenger: model 2 is the challenger, model other is built: run `make build`"]
    (folder / artifact.CHALLENGER / "model.onnx").write_bytes(b"damaged")
    assert "model 2 is the challenger, but model in" in says()[0]
    assert "no challenger: model in" in brings()
    shutil.rmtree(folder / artifact.CHALLENGER)
    brings()
    assert registry.states(loader) == {1: "retired", 2: "retired", 3: "champion", 4: "retired"}
    assert says() == []


def test_an_image_brings_its_model_along_once(
    desk: Callable[..., tuple[int, str]], loader: Connection, tmp_path: Path
) -> None:
    make_project(tmp_path / "image")
    folder = tmp_path / "image/build/model"
    files, _ = artifact.read(folder)
    digest = artifact.write(folder, files | {"backtest.json": b"{}"}, "7")
    assert desk("promote", "--artifact", str(folder), "--reason", "deploy") == (0, "model 3 is now the champion\n")
    assert desk("promote", "--artifact", str(folder), "--reason", "up") == (0, "model 3 is already the champion\n")
    assert [to for _, to, _, _ in life(loader, 3)] == ["candidate", "champion"]
    assert desk("export", str(tmp_path / "exported"))[0] == 0
    assert artifact.read(tmp_path / "exported")[1] == digest


def test_a_rule_is_not_overruled_without_a_reason(desk: Callable[..., tuple[int, str]]) -> None:
    assert desk("train", "--overrule", "evidence") == (2, "error: --overrule RULE and --reason TEXT go together\n")


def test_a_model_of_code_that_is_gone_is_not_made_again(
    desk: Callable[..., tuple[int, str]], loader: Connection
) -> None:
    code, said = desk("reproduce", "1")
    assert code == 1
    assert f"commit {'0' * 40} cannot be checked out" in said
