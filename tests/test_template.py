"""The template's own code, locks and limits."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROJECT, ROOT, BakedProject, environment, run

OWN = ["hooks", "tests", "scripts", "benchmarks"]


def test_own_code_is_linted_formatted_and_typed(tmp_path: Path) -> None:
    env = environment(tmp_path / "home")
    run("ruff", "check", "--no-cache", *OWN, cwd=ROOT, env=env)
    run("ruff", "format", "--no-cache", "--check", *OWN, cwd=ROOT, env=env)
    run("mypy", "--cache-dir", tmp_path / "mypy", cwd=ROOT, env=env)


@pytest.mark.parametrize("name", ["demo", "test", "published", "bentoml", "mlserver", "mlflow"])
def test_locks_are_hashed_and_name_no_registry(name: str) -> None:
    text = (ROOT / f"requirements/{name}.txt").read_text("utf-8")
    assert "://" not in text and "--index" not in text and "--find-links" not in text
    pins = re.split(r"\n(?=\S)", text.strip())
    assert len(pins) > 3
    for pin in pins:
        assert re.match(r"[a-z0-9-]+==\S+", pin) and "--hash=sha256:" in pin, pin


def test_locks_agree() -> None:
    def pins(name: str) -> dict[str, str]:
        text = (ROOT / f"requirements/{name}.txt").read_text("utf-8")
        return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))

    assert pins("demo").items() <= pins("test").items()
    project, published = pins(f"../{PROJECT}/requirements/dev"), pins("published")
    both = project.keys() & published.keys()
    assert len(both) > 5 and {name: project[name] for name in both} == {name: published[name] for name in both}


def test_help_lists_every_target(tmp_path: Path) -> None:
    shown = run("make", "help", cwd=ROOT, env=environment(tmp_path / "home")).stdout
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert targets and set(re.findall(r"make ([a-z-]+)", shown)) == set(targets[1].split())


def lines_of_code(text: str) -> int:
    """Lines that hold code: neither blank, nor comment, nor docstring."""
    documented: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            documented |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines = [line.strip() for number, line in enumerate(text.splitlines(), 1) if number not in documented]
    return sum(bool(line) and not line.startswith("#") for line in lines)


def test_a_line_of_code_is_no_docstring_and_no_comment() -> None:
    assert (
        lines_of_code(
            '"""One.\n\nTwo."""\n\n# three\nx = 1  # four\n\ndef f():\n    """Five."""\n    return """\n6"""\n'
        )
        == 4
    )


def test_generated_repository_keeps_its_limits(default: BakedProject) -> None:
    files = default.files()
    code = {name: text.decode() for name, (text, _) in files.items() if name.endswith(".py")}
    own = {name: text for name, text in code.items() if not name.startswith("tests/")}
    lines = sum(lines_of_code(text) for text in own.values())
    assert len(files) <= 173, f"{len(files)} files"
    assert lines <= 9040, f"{lines} lines of code"
    assert {name: text.count("\n") for name, text in own.items() if text.count("\n") > 300} == {}
    for name, (text, _) in files.items():
        assert not re.search(rb"\b(T[O]DO|F[I]XME)\b", text), name
    for name, text in code.items():
        assert "{%" not in text and "{{ cookiecutter" not in text, name
    named = [name for name, text in own.items() if "psycopg.Connection[" in text]
    assert named == ["src/model_service/store/connection.py"], "the type of a connection has one name"


# Store, gate, registry, the way of a prediction and telemetry: rows of entities will pass through them, too.
TIMELESS = re.compile(
    r"artifact|registry|training/gate|store/\w+|telemetry/\w+"
    r"|serving/(body|cache|door|edge|inference|keys|page|protocol|shadow|slots|watchdog)"
)
OF_SERIES = {"features", "forecasting", "inputs", "live", "training.backtest", "training.evaluate"}


def package(project: BakedProject) -> dict[str, str]:
    """Text of each module of the package, by its path in there."""
    top, files = "src/model_service/", project.files()
    return {name.removeprefix(top): files[name][0].decode() for name in files if re.match(rf"{top}.*\.py$", name)}


def dotted(path: str) -> str:
    """Name of such a module, as `imported` gives it."""
    return re.sub(r"(/?__init__)?\.py$", "", path).replace("/", ".")


def imported(text: str) -> set[str]:
    """Modules of the package that a module of it imports, or imports from, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "model_service":
            within = node.module.split(".")[1:]
            found |= {".".join(within)} | {".".join([*within, name.name]) for name in node.names}
    return found


def test_what_must_not_know_of_time_series_does_not(default: BakedProject) -> None:
    assert imported("def f():\n    from model_service import features\n") & OF_SERIES == {"features"}
    assert imported("from model_service.training.backtest import run") & OF_SERIES == {"training.backtest"}
    code = package(default)
    timeless = [name for name in code if TIMELESS.fullmatch(name.removesuffix(".py"))]
    assert len(timeless) > 20
    assert {name: known for name in timeless if (known := imported(code[name]) & OF_SERIES)} == {}


def test_no_two_modules_import_each_other(default: BakedProject) -> None:
    code = package(default)
    names = {path: dotted(path) for path in code}
    knows = {name: imported(code[path]) & set(names.values()) for path, name in names.items()}
    assert {"loader.bucket", "loader.web"} <= knows["loader.files"]
    assert [(one, other) for one in knows for other in knows[one] if one in knows[other]] == []


def test_each_program_can_be_read_in_an_evening(default: BakedProject) -> None:
    """The README says what each program stands on: to a hundred lines, rounded up."""
    code = package(default)
    modules = {dotted(path): path for path in code}

    def stands_on(paths: list[str]) -> set[str]:
        found, todo = set(), [name for name, path in modules.items() if path in paths]
        while todo:
            if (name := todo.pop()) not in found:
                found.add(name)
                todo += [name.rpartition(".")[0], *(imported(code[modules[name]]) & modules.keys())]
        return found

    readme = default.text("README.md").partition("## Reading it")[2].partition("\n## ")[0]
    table = re.findall(r"^\| [a-z ]+ \| (`.*`) \| ([\d,]+) \|$", readme, re.MULTILINE)
    assert len(table) == 4
    for begins, said in table:
        paths = re.findall("`([^`]+)`", begins)
        assert set(paths) <= code.keys()
        lines = sum(lines_of_code(code[modules[name]]) for name in stands_on(paths))
        assert int(said.replace(",", "")) - 100 < lines <= int(said.replace(",", "")) <= 5000, f"{begins}: {lines}"


def test_what_is_left_out_is_said_loudly(tmp_path: Path) -> None:
    """A run without Docker names the tests that need it, with the reason, before the runner's last line."""
    (tmp_path / "test_it.py").write_text("import pytest\n\n@pytest.mark.docker\ndef test_it() -> None: ...\n")
    (tmp_path / "conftest.py").write_text((ROOT / "tests/conftest.py").read_text("utf-8"))
    env = environment(tmp_path / "home", PATH="/nowhere")
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "test_it.py"]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if "LEFT OUT ON THIS MACHINE" in line)
    assert lines[at + 1] == "Docker: no engine answers `docker info`: 1 not run"
    assert lines[at + 2] == "    test_it.py::test_it"
    assert "1 skipped" in lines[-1]
