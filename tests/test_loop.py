"""The baked project does its work: its own tests pass, its gate lets the right models through, its figures hold."""

import hashlib
import json
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, BakedProject, read_at, trains_a_champion_and_passes_its_tests
from test_restore import server
from test_stack import copied

SAMPLE = "tests/sample/data/us-macro"


@pytest.fixture(scope="module")
def loaded(built: BakedProject, workshop: Path) -> BakedProject:
    """The built project's files in no git repository, with a database of its own that holds the data and no model."""
    skipped = shutil.ignore_patterns(".venv", ".local", "build", ".git", "__pycache__")
    folder = workshop / "loaded"
    shutil.copytree(built.path, folder, ignore=skipped)
    (folder / ".venv").symlink_to(built.path / ".venv")
    project = BakedProject(folder, built.env)
    project.service("migrate")
    project.service("load")
    return project


@pytest.fixture
def variant(loaded: BakedProject, workshop: Path) -> BakedProject:
    """A copy of that, database and all, to be changed at will; it shares the environment."""
    return copied(loaded, workshop / f"variant-{secrets.token_hex(4)}")


def test_the_generated_tests_pass(built: BakedProject) -> None:
    closing = [line for line in built.make("test").stdout.splitlines() if re.search(r"\d+ passed", line)][-1]
    assert "failed" not in closing


def test_the_generated_tests_pass_whatever_the_project_declares_and_holds(variant: BakedProject) -> None:
    """Another target, horizon and estimator, a third vintage and one with a bad cell turn no test of the code red."""
    folder = variant.path / "data/us-macro"
    newest = (folder / "2016-07-29.csv").read_text()
    (folder / "2016-08-29.csv").write_text(newest)
    (folder / "2016-09-30.csv").write_text(newest.replace("4.9", "n/a", 1))
    variant.edit("service.toml", '[target]\nseries = "UNRATE"', '[target]\nseries = "PAYEMS"')
    variant.edit("service.toml", "horizons = [1, 3, 6]", "horizons = [2]")
    variant.edit("service.toml", 'estimator = "ridge"', 'estimator = "elastic_net"')
    tests = [f"tests/test_{part}.py" for part in ("api", "cli", "csv", "registry", "service", "training")]
    done = variant.run(variant.python, "-m", "pytest", "-x", *tests, env={"PYTHONPATH": "src"})
    assert re.search(r"\d+ passed", done.stdout)


def test_a_project_may_lie_in_a_folder_whose_name_has_to_be_quoted(loaded: BakedProject, workshop: Path) -> None:
    project = copied(loaded, workshop / "100% my models")
    assert "UNRATE,2016-05-01,4.7" in project.service("data", "UNRATE", "--as-of", "2016-07-01").stdout


@pytest.fixture
def timescaledb() -> Iterator[str]:
    """URL of a TimescaleDB of this test's own."""
    with server() as made:
        yield made.url


@pytest.mark.timescale
def test_the_generated_tests_of_the_store_pass_on_timescaledb(built: BakedProject, timescaledb: str) -> None:
    tests = ["tests/test_store.py", "tests/test_cli.py"]
    done = built.run(built.python, "-m", "pytest", *tests, env={"PYTHONPATH": "src", "TEST_DATABASE_URL": timescaledb})
    assert re.search(r"\d+ passed", done.stdout)
    assert "skipped" not in done.stdout


@pytest.fixture
def bake_with_environment(
    bake: Callable[..., BakedProject], built: BakedProject, workshop: Path
) -> Callable[..., BakedProject]:
    """Bakes a project that shares the environment of the built one; a database of its own may run in its folder."""

    def _bake(**answers: str) -> BakedProject:
        project = bake(output=workshop / "-".join(answers.values()), **answers)
        (project.path / ".venv").symlink_to(built.path / ".venv")
        return project

    return _bake


@pytest.mark.parametrize("estimator", ["elastic_net", "random_forest", "gradient_boosting"])
def test_every_other_estimator_passes_the_gate_on_the_unemployment_rate(
    bake_with_environment: Callable[..., BakedProject], loaded: BakedProject, estimator: str
) -> None:
    project = bake_with_environment(estimator=estimator)
    project.run("cp", "-a", loaded.path / ".local", project.path)  # what is loaded does not depend on the estimator
    done = project.service("train")
    assert "is the champion" in done.stdout
    assert json.loads(project.text("build/report.json"))["card"]["estimator"] == estimator


def test_a_service_that_reads_fred_trains_a_champion_and_passes_its_tests_of_loading_and_training(
    bake_with_environment: Callable[..., BakedProject],
) -> None:
    project = bake_with_environment(source="fred")
    with project.running("tests/fake_fred.py", SAMPLE) as base_url:
        project.edit("service.toml", "requests_per_second = 1.9", read_at(base_url))
        env = {"FRED_API_KEY": "0123456789abcdef0123456789abcdef"}
        project.service("migrate")
        assert "10 of 10 payloads loaded" in project.service("load", env=env).stdout
        assert "nothing new" in project.service("load", env=env).stdout
    trains_a_champion_and_passes_its_tests(project, "UNRATE", "fred", "cli", "training")


def test_buckets_and_parquet_are_turned_on_by_the_two_lines_of_the_documentation(
    bake: Callable[..., BakedProject], workshop: Path
) -> None:
    project = bake(output=workshop / "bucket")
    for package, place in re.findall(
        r"`requirements/(\w+)\.in`.*?```\n(.*?)```", project.text("docs/csv.md"), re.DOTALL
    ):
        (project.path / f"requirements/{package}.in").write_text(place)
    project.make("lock", "setup")
    locks = {path.stem: path.read_text() for path in project.path.glob("requirements/*.txt")}
    assert re.findall(r"^(\S+)==", locks["s3"], re.M) == ["obstore"]
    assert re.findall(r"^(\S+)==", locks["parquet"], re.M) == ["pyarrow"]
    assert "http" not in locks["s3"] + locks["parquet"]
    which = ["tests/test_files.py", "-k", "object or bucket or listing"]
    done = project.run(project.python, "-m", "pytest", *which, env={"PYTHONPATH": "src"})
    assert "skipped" not in done.stdout


def test_a_service_that_reads_sdmx_trains_a_champion_and_passes_its_tests_of_loading_and_training(
    bake_with_environment: Callable[..., BakedProject],
) -> None:
    project = bake_with_environment(source="sdmx")
    with project.running("tests/fake_sdmx.py", SAMPLE) as base_url:
        project.edit("service.toml", "requests_per_second = 2", read_at(base_url))
        project.service("migrate")
        assert "8 of 8 payloads loaded" in project.service("load").stdout
        assert "nothing new" in project.service("load").stdout
    trains_a_champion_and_passes_its_tests(project, "UNEMPLOYMENT", "sdmx")


SAMPLE_SOURCE = re.compile(r"(?ms)^\[source\.us_macro\]\n.*?(?=^# ----)")


def test_a_service_that_reads_the_world_bank_trains_a_champion_and_passes_its_tests_of_loading_and_training(
    bake_with_environment: Callable[..., BakedProject],
) -> None:
    """Its own series as they are now; and the sample's model, whose vintages the stand-in has as versions."""
    project = bake_with_environment(source="worldbank")
    with project.running("tests/fake_worldbank.py", SAMPLE) as base_url:
        project.edit("service.toml", "requests_per_second = 2.0", read_at(base_url))
        project.service("migrate")
        assert "3 of 3 payloads loaded" in project.service("load").stdout
        assert "0 of 3 payloads loaded" in project.service("load").stdout
        shutil.rmtree(project.path / ".local")

        names = re.findall(r"^\[series\.(\w+)\]", project.text("tests/sample/service.toml"), re.M)
        ids = ", ".join(f'{name} = "USA/{name}"' for name in names)
        archive = f'[source.us_macro]\nkind = "worldbank"\ndatabase = 57\n{read_at(base_url)}\nids = {{ {ids} }}\n\n'
        model, replaced = SAMPLE_SOURCE.subn(archive, project.text("tests/sample/service.toml"))
        assert replaced == 1
        (project.path / "service.toml").write_text(model, "utf-8")
        project.service("migrate")
        assert f"{2 * len(names)} of {2 * len(names)} payloads loaded" in project.service("load").stdout
        assert project.service("load").stdout == "nothing new\n"
    trains_a_champion_and_passes_its_tests(project, "UNRATE", "worldbank")


def test_a_service_that_reads_a_warehouse_trains_a_champion_and_passes_its_tests_of_loading_and_training(
    bake: Callable[..., BakedProject], workshop: Path
) -> None:
    """A real PostgreSQL, with the sample's two vintages and a reader who needs a password; packages by its own lock."""
    project = bake(output=workshop / "sql", source="sql")
    project.make("setup")
    with project.running("tests/warehouse.py", SAMPLE) as url:
        project.service("migrate")
        said = [project.service("load", env={"WAREHOUSE_URL": url}) for _ in range(3)]
        found = [re.findall(r"query/.*: (.*)", one.stdout + one.stderr)[-1] for one in said]
        assert re.fullmatch(r"\S+ fetched, [1-9]\S* new, .* 0 quarantined", found[0])
        assert re.fullmatch(r"(\S+) fetched, 0 new, 0 changed, \1 same, .*", found[1])  # the overlap, once
        assert found[2].startswith("nothing new")
    trains_a_champion_and_passes_its_tests(project, "UNRATE", "sql")


@pytest.mark.parametrize("estimator", ["ridge", "gradient_boosting"])
def test_the_gate_refuses_a_model_of_industrial_production(variant: BakedProject, estimator: str) -> None:
    variant.edit("service.toml", '[target]\nseries = "UNRATE"', '[target]\nseries = "INDPRO"')
    variant.edit("service.toml", 'estimator = "ridge"', f'estimator = "{estimator}"')
    done = variant.service("train", check=False)
    assert done.returncode == 3
    assert re.search(r"better_than_ar: .* 0\.\d+, limit 0\.05", done.stderr)
    assert "nothing was registered" in done.stderr
    assert variant.service("export", "build/model", check=False).returncode == 1


def test_the_gate_refuses_a_model_that_sees_the_future(variant: BakedProject) -> None:
    variant.edit("src/model_service/features.py", "self.released <= origin", "self.released <= origin + 3 * 10**12")
    done = variant.service("train", check=False)
    assert done.returncode == 3
    assert re.search(r"  leak: forecasts that saw the future: [1-9]", done.stderr)


@pytest.mark.unshare
def test_the_bento_is_built_from_the_lock_with_the_network_cut(variant: BakedProject, built: BakedProject) -> None:
    shutil.copytree(built.path / "build/model", variant.path / "build/model")
    cut = ["unshare", "--net", variant.python, "-m", "model_service.serving.bento"]
    done = variant.run(*cut, env={"PYTHONPATH": "src"})
    bento = variant.path / ".local/bentoml/bentos" / done.stdout.strip().splitlines()[-1].replace(":", "/")
    assert (bento / "src/requirements.txt").read_bytes() == (variant.path / "requirements/serve.txt").read_bytes()
    assert (bento / "src/model/model.onnx").is_file()


def test_the_readme_shows_the_figures_of_the_default_bake(built: BakedProject) -> None:
    card = json.loads(built.text("build/report.json"))["card"]
    shown = [
        [float(cell) for cell in row.group(1).split("|")]
        for row in re.finditer(
            r"^\| (\d+ \| [\d.]+ \| [\d.]+ \| [\d.]+ \| [\d.]+) \|$", (ROOT / "README.md").read_text(), re.M
        )
    ]
    rmse = card["metrics"]["rmse"]
    assert [row[0] for row in shown] == card["horizons"]
    for place, row in enumerate(shown):
        measured = [rmse[name][place] for name in ("model", "last_value", "seasonal", "ar")]
        assert row[1:] == pytest.approx(measured, rel=0.02)


def test_a_committed_project_trains_a_model_that_names_its_commit(built: BakedProject) -> None:
    card = json.loads(built.text("build/report.json"))["card"]
    assert card["git_commit"] == built.run("git", "rev-parse", "HEAD").stdout.strip()


def imported(project: BakedProject, **card: Any) -> str:
    """The built model with other words in its card, as a model of its own in the registry: its version."""
    folder = project.path / "build/other"
    shutil.copytree(project.path / "build/model", folder)
    text = json.loads((folder / "card.json").read_text()) | card
    (folder / "card.json").write_text(json.dumps(text, indent=1) + "\n")
    names = [line.split()[1] for line in (folder / "SHA256SUMS").read_text().splitlines()]
    sums = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / "SHA256SUMS").write_text("".join(sums))
    done = project.service("promote", "--artifact", "build/other", "--json")
    shutil.rmtree(folder)
    return str(json.loads(done.stdout)["version"])


def test_a_model_is_made_again_to_the_byte_from_commit_lock_and_clocks(built: BakedProject) -> None:
    done = built.service("reproduce", "1")
    assert done.stdout.endswith("equal to the byte\n")
    assert len(built.run("git", "worktree", "list").stdout.splitlines()) == 1
    assert built.run("git", "status", "--porcelain").stdout == ""


def test_what_a_model_was_not_made_of_is_found_when_it_is_made_again(built: BakedProject, workshop: Path) -> None:
    variant = copied(built, workshop / "made-again")
    card = json.loads(variant.text("build/model/card.json"))
    variant.edit("service.toml", "lags = [0, 1, 2, 3, 4, 5]", "lags = [0, 1, 2]")
    variant.run("git", "commit", "-q", "-a", "-m", "Fewer lags")
    other = variant.run("git", "rev-parse", "HEAD").stdout.strip()

    done = variant.service("reproduce", imported(variant, git_commit=other), check=False)
    assert done.returncode == 1
    assert f"commit {other} is not what this model was trained on: source_hash is recorded as" in done.stderr

    source = re.search(r"source_hash is recorded as \S+, and is (sha256:[0-9a-f]+)", done.stderr)[1]
    done = variant.service("reproduce", imported(variant, git_commit=other, source_hash=source), check=False)
    assert done.returncode == 1
    assert re.search(r"^differs   .*card\.json.*model\.onnx", done.stdout, re.M)
    assert done.stdout.endswith("NOT EQUAL on the recorded platform\n")

    version = imported(variant, platform=card["platform"] | {"python": "CPython 3.9.1"})
    done = variant.service("reproduce", version)
    assert re.search(r"^platform  platform\.python: CPython 3\.9\.1 -> CPython 3\.\d+\.\d+$", done.stdout, re.M)
    assert done.stdout.endswith("another platform: equal within that bound\n")

    (variant.path / "wheels").mkdir()
    done = variant.service("reproduce", "1", "--bundle", "wheels", check=False)
    assert done.returncode == 1
    missing = re.search(r"missing, or not by the recorded hash: (.*)", done.stderr)[1].split(", ")
    assert {one.split("==")[0] for one in missing} >= {"numpy", "scikit-learn", "onnx"}


def test_a_model_of_code_that_was_never_committed_is_made_again_while_the_code_is_there(variant: BakedProject) -> None:
    variant.service("train")
    assert variant.service("reproduce", "1").stdout.endswith("equal to the byte\n")
    variant.edit("service.toml", "lags = [0, 1, 2, 3, 4, 5]", "lags = [0, 1, 2]")
    done = variant.service("reproduce", "1", check=False)
    assert done.returncode == 1
    assert "never committed, and the working tree is no longer it: source_hash" in done.stderr
