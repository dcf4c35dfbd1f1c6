"""What the prompts ask, what is refused and how, and that no answer runs as code."""

import json
import os
import signal
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import answers
import jinja2
import pytest
from conftest import ROOT, BakedProject, cookiecutter, environment, run

PROMPTS = json.loads((ROOT / "cookiecutter.json").read_text("utf-8"))
ASKED = [key for key in PROMPTS if not key.startswith("_")]
DEFAULTS = {key: PROMPTS[key][0] if isinstance(PROMPTS[key], list) else PROMPTS[key] for key in ASKED}
WRONG = [
    ("project", "US"),
    ("project", "us_unemployment"),
    ("project", "-us"),
    ("project", "us-"),
    ("project", "ab"),
    ("project", "a" * 41),
    ("project", "us unemployment"),
    ("project", "arbeitslose-öst"),
    ("project", "us-unemployment\n"),
    ("description", ""),
    ("description", "   "),
    ("description", "two\nlines"),
    ("description", "tab\there"),
    ("description", "x" * 201),
    ("description", "right-to-left \u202e"),
    ("image_registry", "https://ghcr.io/acme"),
    ("image_registry", "acme"),
    ("image_registry", "GHCR.io/acme"),
    ("image_registry", "ghcr.io/"),
    ("image_registry", "ghcr.io:99999"),
    ("image_registry", "user:password@ghcr.io"),
]


def test_eight_prompts_at_most_each_with_a_help_text() -> None:
    assert len(ASKED) <= 8
    for key in ASKED:
        text = PROMPTS["__prompts__"][key]
        if isinstance(text, dict):
            assert set(text) == {"__prompt__", *PROMPTS[key]}
            text = text["__prompt__"]
        assert len(text) > 10 and text.lower() != key


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_wrong_answer_is_named_with_what_is_allowed_and_an_example(name: str, value: str) -> None:
    (line,) = answers.mistakes(DEFAULTS | {name: value}, answers.rules(str(ROOT)))
    assert line.startswith(f"{name}: {ascii(value)[:40]}")
    assert " Allowed: " in line and " Example: " in line
    example = line.partition(" Example: ")[2]
    assert answers.mistakes(DEFAULTS | {name: example}, answers.rules(str(ROOT))) == []


def test_all_mistakes_are_printed_first_and_at_once(refuse: Callable[..., list[str]]) -> None:
    lines = refuse(project="Bad Name", description="two\nlines", image_registry="not a host")
    assert lines[0] == "onemodel: nothing was written, 3 mistakes in the answers:"
    assert [line.split(":")[0] for line in lines[1:4]] == ["  project", "  description", "  image_registry"]


def test_choices_are_checked_where_cookiecutter_does_not(tmp_path: Path) -> None:
    wrong = {"estimator": "crystal_ball", "licence": "None", "python_version": "2.7", "source": "../x", "deployment": 1}
    replay = tmp_path / "replay.json"
    replay.write_text(json.dumps({"cookiecutter": DEFAULTS | wrong}))
    env = environment(tmp_path / "home")
    done = run("cookiecutter", "--replay-file", replay, ROOT, cwd=tmp_path, env=env, check=False)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0] == "onemodel: nothing was written, 5 mistakes in the answers:"
    assert "Allowed: one of ridge, elastic_net, random_forest, gradient_boosting. Example: ridge" in done.stdout
    assert not (tmp_path / "us-unemployment").exists()


@pytest.mark.parametrize("name", ["a/b/C", "a/../B", "../out/a/B", "x/y/z/", "./C"])
def test_refused_bake_leaves_no_folder_made_by_slashes(
    refuse: Callable[..., list[str]], tmp_path: Path, name: str
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("mine")
    assert "project: " in refuse(project=name)[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "out"]


@pytest.mark.parametrize("name", ["a/b/c/D", "a/b/../D", "a/b/D"])
def test_refused_bake_keeps_empty_folders_that_were_there(
    refuse: Callable[..., list[str]], tmp_path: Path, name: str
) -> None:
    """The fixture compares before and after. The folders are old, but what stands above them may change at any time."""
    (tmp_path / "out/a/b").mkdir(parents=True)
    for folder in ("out/a/b", "out/a"):
        os.utime(tmp_path / folder, (1.6e9, 1.6e9))
    refuse(project=name)


def test_refused_bake_leaves_nothing_where_the_machine_is_slow(tmp_path: Path) -> None:
    slow = tmp_path / "slow/sitecustomize.py"
    slow.parent.mkdir()
    slow.write_text("import time; time.sleep(0.5)")  # in every Python that starts, that of the hook too
    env = environment(tmp_path / "home", PYTHONPATH=str(slow.parent))
    (tmp_path / "out").mkdir()
    words = ("--no-input", "--default-config", ROOT, "project=a/b/C")
    done = run("cookiecutter", *words, cwd=tmp_path / "out", env=env, check=False)
    assert done.returncode == 1 and "project: 'a/b/C'" in done.stdout
    assert list((tmp_path / "out").iterdir()) == []


def test_refused_bake_leaves_no_output_folder_either(tmp_path: Path) -> None:
    done = cookiecutter(tmp_path / "out", tmp_path / "home", "-o", "new/deep", check=False, project="No")
    assert done.returncode == 1 and "project: 'No'" in done.stdout.splitlines()[1]
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("interrupts", [signal.SIG_DFL, signal.SIG_IGN], ids=["foreground", "background"])
@pytest.mark.parametrize("name", ["a/..", "a/b/../..", "a/../../out"])
def test_a_name_that_ends_in_an_existing_folder_deletes_nothing(
    refuse: Callable[..., list[str]], tmp_path: Path, name: str, interrupts: signal.Handlers
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("mine")
    before = signal.signal(signal.SIGINT, interrupts)
    try:
        refuse(project=name, status=-signal.SIGTERM if interrupts == signal.SIG_IGN else 1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "out/mine").read_text() == "mine"


@pytest.mark.parametrize("options", [(), ("-f",), ("-f", "-s")])
def test_existing_folder_is_never_touched(tmp_path: Path, options: tuple[str, ...]) -> None:
    folder = tmp_path / "out/us-unemployment"
    (folder / "src").mkdir(parents=True)
    (folder / "src/mine.py").write_text("mine")
    before = folder.stat().st_mtime_ns
    done = cookiecutter(tmp_path / "out", tmp_path / "home", *options, check=False)
    assert done.returncode == 1
    assert "exist" in done.stdout + done.stderr
    assert folder.stat().st_mtime_ns == before
    assert [path.relative_to(folder).as_posix() for path in folder.rglob("*")] == ["src", "src/mine.py"]


def payloads(canary: Path) -> list[str]:
    """Texts that would make the canary file if anything took them for code."""
    touch = f"touch {canary}"
    return [
        "{{ cycler.__init__.__globals__.os.system('" + touch + "') }}",
        "{% for x in [1] %}{{ cycler.__init__.__globals__.os.system('" + touch + "') }}{% endfor %}",
        "{% unknown %} {# never closed",
        "''' + __import__('os').system('" + touch + "') + '''",
        '""" + __import__("os").system("' + touch + '") + """',
        "'); import os; os.system('" + touch + "') #",
        "\\'''\\x27\\u0027\\N{APOSTROPHE}\\",
        f"$({touch}) `{touch}` ; {touch} | {touch} && {touch}",
        f"$(shell {touch}) ${{HOME}} $$HOME %(x)s %s {{0}}",
        '"] = 1\n[service]\nname = "owned',
        '"\nname = "owned" #',
        ": - & * ! | > ' \" % @ ` {a: b} [c] !!python/object/apply:os.system [x]",
        f"<script>alert(1)</script> [x](javascript:alert(1)) ![](x) # {touch}",
        "emoji \U0001f600 accents é ß 中文 \u200d quotes ' \" back\\slash \\",
    ]


@pytest.fixture
def canary() -> Iterator[Path]:
    """A file that does not exist, with a short path, for a description has 200 characters."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder) / "x"


def test_payloads_do_make_the_canary_when_they_are_run(canary: Path) -> None:
    jinja2.Template(payloads(canary)[0]).render()
    assert canary.exists()


@pytest.mark.parametrize("number", range(14))
def test_names_that_are_code_are_refused(refuse: Callable[..., list[str]], canary: Path, number: int) -> None:
    value = payloads(canary)[number]
    lines = refuse(project=value, image_registry=value)
    assert not canary.exists()
    assert lines[0] == "onemodel: nothing was written, 2 mistakes in the answers:"
    assert lines[1].startswith("  project: ") and lines[2].startswith("  image_registry: ")


@pytest.mark.parametrize("number", range(14))
def test_description_is_text_whatever_it_says(tmp_path: Path, canary: Path, number: int) -> None:
    value = payloads(canary)[number]
    done = cookiecutter(tmp_path / "out", tmp_path / "home", check=False, description=value)
    assert not canary.exists()
    if "\n" in value:
        assert "  description: " in done.stdout.splitlines()[1]
        assert list((tmp_path / "out").iterdir()) == []
        return
    assert done.returncode == 0, done.stdout + done.stderr
    project = BakedProject(tmp_path / "out/us-unemployment", environment(tmp_path / "home"))
    service = tomllib.loads(project.text("service.toml"))["service"]
    assert service == {"name": "us-unemployment", "description": value, "task": "forecast"}
    assert project.record()["answers"]["description"] == value
    project.make("--dry-run", "help")
    assert not canary.exists()


def test_every_answer_arrives(bake: Callable[..., BakedProject]) -> None:
    given = {
        "project": "euro-prices",
        "description": "Consumer prices",
        "source": "csv",
        "estimator": "gradient_boosting",
        "deployment": "compose",
        "image_registry": "ghcr.io/acme/models",
        "python_version": "3.12",
        "licence": "BSD-3-Clause",
    }
    project = bake(**given)
    contract = tomllib.loads(project.text("service.toml"))
    assert contract["service"]["name"] == "euro-prices"
    assert contract["image"]["repository"] == "ghcr.io/acme/models/euro-prices"
    assert contract["image"]["base"].startswith("python:3.12.")
    assert contract["train"]["estimator"] == "gradient_boosting"
    assert contract["source"]["us_macro"]["kind"] == "csv"
    assert tomllib.loads(project.text("pyproject.toml"))["project"]["name"] == "euro-prices"
    assert project.record()["answers"] == given
    assert project.record()["names"] == {
        "service": "euro-prices",
        "package": "model_service",
        "image": "ghcr.io/acme/models/euro-prices",
    }


@pytest.mark.parametrize(
    ("licence", "words"),
    [
        ("MIT", "Permission is hereby granted, free of charge"),
        ("BSD-3-Clause", "Neither the name of the copyright holder"),
        ("Apache-2.0", "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION"),
        ("Proprietary", "All rights reserved"),
    ],
)
def test_licence_by_answer(bake: Callable[..., BakedProject], licence: str, words: str) -> None:
    text = bake(licence=licence).text("LICENSE")
    assert words in text
    assert "{%" not in text and "{{" not in text
    assert licence == "Apache-2.0" or "the authors of us-unemployment" in text


def test_interactive_answers_are_taken_as_they_are_typed(tmp_path: Path) -> None:
    typed = "my-service\n{{ 6 * 7 }}\n1\n4\n1\n\n3\n4\n"
    env = environment(tmp_path / "home")
    run("cookiecutter", "--default-config", ROOT, cwd=tmp_path, env=env, input=typed)
    record = BakedProject(tmp_path / "my-service", env).record()["answers"]
    assert record["description"] == "{{ 6 * 7 }}"
    assert [record[key] for key in ("estimator", "image_registry", "python_version", "licence")] == [
        "gradient_boosting",
        "localhost:5000",
        "3.11",
        "Proprietary",
    ]
