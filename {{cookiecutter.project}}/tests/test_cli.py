"""What a person meets at the command line: results, clear errors, exit codes; and data whole after each."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from conftest import ROOT, Run

from model_service import contract as contracts
from model_service.errors import ServiceError
from model_service.loader import sources
from model_service.serving import bento

FIRST, SECOND = "data/us-macro/2016-06-29.csv", "data/us-macro/2016-07-29.csv"


@pytest.fixture
def run(run: Run, project: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a verb in a project and a database of its own; gives exit code, output and messages."""
    monkeypatch.setenv("DATABASE_URL", url)
    return run


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def count(url: str, sql: str) -> int:
    with psycopg.connect(url) as connection:
        return connection.execute(sql).fetchone()[0]  # type: ignore[index,no-any-return]


def test_what_this_project_declares_is_valid() -> None:
    contract = contracts.load(ROOT / "service.toml")
    for dataset in contract.source:
        sources.reader(contract, dataset)


def test_a_second_load_of_the_same_bytes_is_a_no_op(run: Run, url: str) -> None:
    assert run("load")[0] == 0
    code, output, messages = run("load")
    assert code == 0
    assert "0 of 2 payloads loaded" in output
    assert messages.count("nothing new") == 2
    assert count(url, "SELECT count(*) FROM load") == 2


def test_the_files_in_the_other_order_answer_the_same(
    run: Run, project: Path, url: str, new_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = new_database()
    late = (project / FIRST).read_bytes()
    assert run("load")[0] == 0
    (project / FIRST).unlink()
    monkeypatch.setenv("DATABASE_URL", twin)
    assert run("load")[0] == 0
    (project / FIRST).write_bytes(late)
    assert run("load")[0] == 0
    known = """
        SELECT md5(string_agg(row::text, ' ' ORDER BY row::text)) FROM (
            SELECT DISTINCT ON (name, valid_time) name, valid_time, value FROM observation JOIN series USING (series_id)
            WHERE known_from <= '{}' ORDER BY name, valid_time, known_from DESC, load_id DESC) row"""
    for day in ("2016-06-29", "2016-07-28", "2016-07-29"):
        assert count(url, known.format(day)) == count(twin, known.format(day))


def test_data_shows_what_was_known_then(run: Run) -> None:
    assert run("load")[0] == 0
    code, output, _ = run("data", "UNRATE", "PAYEMS", "--as-of", "2016-07-01")
    lines = output.splitlines()
    assert code == 0
    assert lines[:2] == ["series,period,value", "UNRATE,1985-01-01,7.3"]
    assert [line for line in lines if line.startswith("UNRATE")][-1] == "UNRATE,2016-05-01,4.7"
    later = run("data", "UNRATE")[1].splitlines()
    assert later[-1] == "UNRATE,2016-06-01,4.9"
    assert json.loads(run("data", "UNRATE", "--json")[1])[-1] == ["UNRATE", "2016-06-01", 4.9]
    code, _, messages = run("data", "UNRAT")
    assert (code, "did you mean 'UNRATE'" in messages) == (2, True)


FAULTS = {
    "no file": (lambda root: [(root / one).unlink() for one in (FIRST, SECOND)], "no file matches"),
    "empty file": (lambda root: (root / SECOND).write_text(""), "2016-07-29.csv"),
    "header": (lambda root: edit(root / SECOND, "UNRATE", "UNEMPLOYMENT"), "UNRATE"),
    "no vintage in the name": (lambda root: (root / SECOND).rename(root / "data/us-macro/july.csv"), "july"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_cannot_be_read_is_refused_and_loses_nothing(run: Run, project: Path, url: str, fault: str) -> None:
    whole = (project / SECOND).read_bytes()
    do, says = FAULTS[fault]
    do(project)
    code, _, messages = run("load")
    assert code == 1
    assert says in messages
    assert count(url, "SELECT count(*) FROM attempt WHERE outcome = 'failed'") == 1
    assert count(url, "SELECT count(*) FROM load") == count(url, "SELECT count(DISTINCT load_id) FROM observation")
    (project / "data/us-macro/july.csv").unlink(missing_ok=True)
    (project / SECOND).write_bytes(whole)
    assert run("load")[0] == 0


CELLS = {"text": ("n/a", "number"), "nan": ("NaN", "finite"), "infinity": ("inf", "finite")}


@pytest.mark.parametrize("cell", CELLS)
def test_a_bad_cell_is_quarantined_with_file_line_rule_and_value(run: Run, project: Path, url: str, cell: str) -> None:
    raw, rule = CELLS[cell]
    edit(project / FIRST, "96497,", f"{raw},")
    code, _, messages = run("load")
    assert code == 0
    assert "1 quarantined" in messages
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT file, line, series, raw, rule FROM quarantine").fetchone()
    assert row == (FIRST, 3, "PAYEMS", raw, rule)
    assert count(url, "SELECT new FROM load ORDER BY load_id LIMIT 1") == 8652


@pytest.mark.parametrize(
    ("old", "new", "rule"), [("\n2/1/85,", "\n1/1/85,", "duplicate"), ("\n2/1/85,", "\nsoon,", "date")]
)
def test_a_bad_line_is_quarantined_cell_by_cell(
    run: Run, project: Path, url: str, old: str, new: str, rule: str
) -> None:
    text = (project / FIRST).read_text()
    cells = len([cell for cell in text.splitlines()[2].split(",")[1:] if cell])
    edit(project / FIRST, old, new)
    assert run("load")[0] == 0
    assert count(url, f"SELECT count(*) FROM quarantine WHERE rule = '{rule}'") == cells
    assert count(url, "SELECT new FROM load ORDER BY load_id LIMIT 1") == 8653 - cells


def test_a_period_that_has_not_begun_is_quarantined(run: Run, project: Path, url: str) -> None:
    edit(project / SECOND, "7/1/16,", "12/1/68,")  # two digits: 2068
    assert run("load")[0] == 0
    assert count(url, "SELECT count(*) FROM quarantine WHERE rule = 'future'") > 0
    assert count(url, "SELECT count(*) FROM observation WHERE valid_time > now()") == 0


def test_without_vintages_bytes_that_come_back_are_news(run: Run, project: Path, url: str) -> None:
    edit(project / "service.toml", 'vintage = { from = "file_name", format = "%Y-%m-%d" }', "")
    (project / SECOND).unlink()
    first = (project / FIRST).read_bytes()
    assert run("load")[0] == 0
    edit(project / FIRST, "96497,", "96498,")
    assert run("load")[0] == 0
    (project / FIRST).write_bytes(first)
    assert "1 changed" in run("load")[2]
    assert "nothing new" in run("load")[2]
    newest = (
        "SELECT value FROM observation JOIN series USING (series_id) WHERE name = 'PAYEMS' ORDER BY known_from DESC"
    )
    assert count(url, f"{newest} LIMIT 1") == 96497


def test_an_unchanged_file_of_a_later_day_does_not_make_the_data_fresh(run: Run, project: Path) -> None:
    assert run("load")[0] == 0
    before = run("doctor")[1]
    (project / "data/us-macro/2026-01-01.csv").write_bytes((project / SECOND).read_bytes())
    assert "0 changed" in run("load")[2]
    assert [line for line in run("doctor")[1].splitlines() if "freshness" in line][0] in before


def test_who_reads_no_further_gets_no_traceback() -> None:
    words = "from model_service import cli; cli.data.migrate = print; raise SystemExit(cli.main(['migrate']))"
    reads, writes = os.pipe()
    os.close(reads)  # as `head` does once it has its lines
    done = subprocess.run([sys.executable, "-c", words], stdout=writes, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writes)
    assert (done.returncode, done.stderr) == (1, "error: what read the output has gone\n")


MISTAKES = {
    "unknown key": ("horizons =", "horizon =", "did you mean 'horizons'?"),
    "unknown series": ('[target]\nseries = "UNRATE"', '[target]\nseries = "UNRAT"', "did you mean 'UNRATE'?"),
    "unknown section": ("[gate]", "[gates]", "did you mean 'gate'?"),
    "unknown source option": ('layout = "wide"', 'layot = "wide"', "did you mean 'layout'?"),
    "unknown kind of source": ('kind = "csv"', 'kind = "cvs"', "did you mean 'csv'?"),
    "not TOML": ("[target]", "[target", "is not valid TOML"),
    "name that wants quotes": ("[series.PAYEMS]", "[series.Löhne]", "goes in quotes"),
    "wrong type": ("seed = 1", 'seed = "one"', "train.seed"),
    "number as text": ("horizons = [1, 3, 6]", 'horizons = ["1"]', "horizons.0: Input should be a valid integer"),
    "nothing": ("horizons = [1, 3, 6]", "horizons = []", "target.horizons: give at least 1"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_service_toml_is_named_with_its_mend(run: Run, project: Path, mistake: str) -> None:
    old, new, says = MISTAKES[mistake]
    edit(project / "service.toml", old, new)
    code, _, messages = run("load")
    assert code == 2
    assert says in messages


def test_all_mistakes_in_service_toml_are_named_at_once(run: Run, project: Path) -> None:
    edit(project / "service.toml", "seed = 1", "sed = 1")
    edit(project / "service.toml", "horizons = [1, 3, 6]", "horizons = [0]")
    head, *mistakes = run("load")[2].splitlines()
    assert "service.toml is not valid" in head and len(mistakes) == 2
    assert "train.sed: unknown key; did you mean 'seed'?" in mistakes[1]
    assert "target.horizons.0: Input should be greater than 0" in mistakes[0]


@pytest.mark.parametrize(
    "words", [["load"], ["train"], ["forecast"], ["doctor"], ["migrate"]], ids=lambda words: words[0]
)
def test_a_database_that_is_away_is_said_in_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:s3cret@127.0.0.1:1/none")
    code, _, messages = run(*words)
    assert code == 1
    assert "database does not answer" in messages
    assert "s3cret" not in messages
    assert "Traceback" not in messages


@pytest.mark.parametrize("words", [["forecast"], ["export", "x"], ["rollback"]], ids=lambda words: words[0])
def test_without_a_model_it_says_what_to_run(run: Run, words: list[str]) -> None:
    code, _, messages = run(*words)
    assert code == 1
    assert "train" in messages or "no earlier champion" in messages


def test_training_before_loading_says_to_load(run: Run) -> None:
    code, _, messages = run("train")
    assert code == 1
    assert "run `python -m model_service load`" in messages


def test_a_container_never_starts_a_database_of_its_own(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL")
    monkeypatch.setenv("ENVIRONMENT", "production")
    code, _, messages = run("load")
    assert code == 2
    assert "DATABASE_URL is not set" in messages


def test_an_unmigrated_database_says_to_migrate(run: Run, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", server)
    code, _, messages = run("load")
    assert code == 1
    assert "migrate" in messages


@pytest.mark.ml_test("infra-5")
def test_from_load_to_trace_and_back_to_the_bytes(run: Run, project: Path, url: str) -> None:
    assert run("load")[0] == 0
    assert run("train", "--as-of", "2016-07-01")[0] == 0
    assert count(url, "SELECT count(*) FROM forecast") == 3
    code, output, _ = run("forecast", "--as-of", "2016-07-01", "--json")
    answer = json.loads(output)
    assert (code, answer["hindsight"]) == (0, False)
    (project / "answer.json").write_text(output)
    code, output, _ = run("trace", str(project / "answer.json"))
    assert code == 0
    assert f"{FIRST}\n" in output
    assert SECOND not in output  # not known on that day
    assert output.endswith("complete\n")
    explained = {("explanations" if part == "forecasts" else part): answer[part] for part in answer}
    (project / "explained.json").write_text(json.dumps(explained))
    assert run("trace", str(project / "explained.json"))[1] == output
    explained["as_of"] = answer["as_of"] | {"known_at": "2016-07-01T12:00:00"}  # where?
    (project / "explained.json").write_text(json.dumps(explained))
    code, _, messages = run("trace", str(project / "explained.json"))
    assert (code, "holds no answer of /v1/" in messages) == (2, True)
    changed = json.loads((project / "answer.json").read_text())
    changed["forecasts"][0]["value"] += 0.1
    (project / "answer.json").write_text(json.dumps(changed))
    code, output, _ = run("trace", str(project / "answer.json"))
    assert code == 1
    assert "ANOTHER FORECAST COMES OUT" in output
    answer["model"]["digest"] = "sha256:0"
    (project / "answer.json").write_text(json.dumps(answer))
    code, output, _ = run("trace", str(project / "answer.json"))
    assert code == 1
    assert "NOT IN THIS REGISTRY" in output


def test_stand_ins_records_and_predictions_are_traced_like_answers(run: Run, project: Path) -> None:
    assert run("load")[0] == 0
    assert run("train", "--as-of", "2016-07-01")[0] == 0
    assert run("export", str(project / "model"))[0] == 0
    held, golden = (json.loads((project / "model" / name).read_text()) for name in ("held.json", "golden.json"))
    answer = json.loads(run("forecast", "--json")[1])
    model, clocks, forecasts = (answer[part] for part in ("model", "as_of", "forecasts"))
    made = [{f"horizon_{one['horizon']}": value for one, value in zip(forecasts, row, strict=True)}
            for row in golden["forecasts"]]  # fmt: skip
    last, baseline = ({"reason": "database_away", "source": source} for source in ("last_forecast", "baseline"))
    given = {"model": model, "inputs": {"rows": golden["instances"]}}
    for body, code, says in [
        (answer | {"degraded": last}, 0, "degraded (database_away): by last_forecast"),
        (answer | held | {"forecasts": held["baseline"], "degraded": baseline}, 0, "by baseline"),
        (answer | held | {"forecasts": held["baseline"][-1:], "degraded": baseline}, 0, "by baseline"),  # of one
        (answer | held | {"degraded": baseline}, 1, "ANOTHER FORECAST COMES OUT"),
        ({"_source": {"model": model, "as_of": clocks, "output": forecasts}}, 0, FIRST),
        (given | {"output": made}, 0, FIRST),
        (given | {"output": made[::-1]}, 1, "ANOTHER FORECAST COMES OUT"),
        (given | {"output": made[:-1]}, 1, "ANOTHER FORECAST COMES OUT"),
        ({"model": model, "predictions": made}, 1, "a prediction's inputs are in its record in the audit trail"),
        ({"model": {"digest": "sha256:0"}, "predictions": made}, 2, "sha256:0 is not registered (registered: 1)"),
        ({"model": model, "kind": "shadow", "output": {"horizons": [1]}}, 2, "holds no answer of /v1/"),
    ]:
        (project / "answer.json").write_text(json.dumps(body))
        found, output, messages = run("trace", str(project / "answer.json"))
        assert (found, output.endswith("complete\n")) == (code, code == 0), output + messages
        assert says in output + messages


def test_a_declaration_that_the_champion_does_not_fit_is_named_before_anything_is_built(
    run: Run, project: Path
) -> None:
    assert run("load")[0] == 0
    assert run("train")[0] == 0
    (project / "answer.json").write_text(run("forecast", "--json")[1])
    edit(project / "service.toml", "lags = [0, 1, 2, 3, 4, 5]", "lags = [0, 1, 2]")
    unfit = "service.toml no longer fits model 1: inputs -UNRATE.difference.lag3 "
    assert run("export", str(project / "build/model"))[0] == 0
    with pytest.raises(ServiceError, match=f"^{unfit}"):
        bento.stage(project)
    assert not (project / "build/context").exists()
    code, output, _ = run("trace", str(project / "answer.json"))
    assert code == 1 and f"IT CANNOT BE MADE AGAIN: {unfit}" in output


def test_what_knows_more_or_less_than_the_day_asked_for_says_so(run: Run, project: Path) -> None:
    assert run("load")[0] == 0
    assert run("train")[0] == 0
    shown = run("forecast", "--as-of", "2016-07-01")[1]
    assert "\nhindsight: the model was trained on what became known later\n" in shown
    code, _, messages = run("train", "--as-of", "2016-07-01")
    assert code == 0
    assert "it knows less than model 1, whose place it took: `rollback` takes that back" in messages
    assert "hindsight" not in run("forecast", "--as-of", "2016-07-01")[1]


@pytest.mark.ml_test("infra-5", sabotage=True)
def test_trace_of_kept_bytes_that_changed_is_incomplete(run: Run, project: Path, url: str) -> None:
    assert run("load")[0] == 0
    assert run("train")[0] == 0
    (project / "answer.json").write_text(run("forecast", "--json")[1])
    with psycopg.connect(url) as owner:
        owner.execute("UPDATE raw_object SET bytes = (SELECT bytes FROM raw_object ORDER BY sha256 LIMIT 1)")
    code, output, _ = run("trace", str(project / "answer.json"))
    assert code == 1
    assert "KEPT BYTES DO NOT HOLD THE HASH" in output


def test_one_value_changed_in_the_second_file_changes_only_what_was_known_after_it(
    run: Run, project: Path, new_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = []
    for change in (False, True):
        if change:
            edit(project / SECOND, "6/1/16,144175,", "6/1/16,150000,")
        monkeypatch.setenv("DATABASE_URL", new_database())
        assert run("load")[0] == 0
        assert run("train", "--as-of", "2016-07-01")[0] == 0
        answers.append([run("forecast", "--as-of", day, "--json")[1] for day in ("2016-07-01", "2016-07-30")])
    assert answers[0][0] == answers[1][0]
    assert answers[0][1] != answers[1][1]


@pytest.mark.parametrize("url", ["postgresql//me:s3cret@host/db", "mysql://me:s3cret@host/db"])
@pytest.mark.parametrize("verb", ["load", "migrate"])
def test_a_url_that_is_none_is_not_shown(run: Run, monkeypatch: pytest.MonkeyPatch, verb: str, url: str) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    code, _, messages = run(verb)
    assert code == 1
    assert "is no PostgreSQL URL" in messages
    assert "s3cret" not in messages


def test_doctor_finds_a_row_that_no_load_accounts_for(run: Run, url: str) -> None:
    assert run("load")[0] == 0
    code, output, _ = run("doctor")
    assert code == 0
    assert "2 loads account for 8,761 rows" in output
    with psycopg.connect(url) as owner:
        owner.execute("DELETE FROM observation WHERE ctid = (SELECT ctid FROM observation LIMIT 1)")
    code, output, _ = run("doctor")
    assert code == 1
    assert "BAD   ledger" in output
