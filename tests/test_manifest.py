"""templates/manifest.json names every file of the template that goes into a project, and none that is not there.

To complete it: run this file. A failure lists the lines to add (to "keep" of "always", or of the part of one answer)
and those to take out. Then give tests/default_files.txt, which says what a user gets, the same change.
"""

import itertools
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import assemble
from conftest import PROJECT, ROOT, environment, run

MANIFEST: dict[str, Any] = json.loads((ROOT / "templates/manifest.json").read_text("utf-8"))
PROMPTS = json.loads((ROOT / "cookiecutter.json").read_text("utf-8"))
PARTS = [MANIFEST["always"]] + [part for choices in MANIFEST["answers"].values() for part in choices.values()]
NOT_COPIED = {"templates/manifest.json"}  # read, not copied


def lines(names: set[str]) -> str:
    return "\n".join(f"      {json.dumps(name)}," for name in sorted(names))


def test_manifest_and_files_agree(tmp_path: Path) -> None:
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", PROJECT, "loaders", "templates"]
    found = {name for name in run(*words, cwd=ROOT, env=environment(tmp_path)).stdout.split("\0") if name}
    there = {name for name in found if (ROOT / name).is_file() and not name.startswith("templates/licence/")}
    named = set(assemble.sources(PARTS))
    missing, gone = there - named - NOT_COPIED, named - there
    short = {name.removeprefix(f"{PROJECT}/") for name in missing}
    assert not missing, f"templates/manifest.json does not name:\n{lines(short)}"
    assert not gone, f"templates/manifest.json names, but there is not:\n{lines(gone)}"


def test_the_default_description_fits_what_every_source_forecasts() -> None:
    """Of the target it says what all of them do, as the comment beside the series and the horizons have it."""
    for source in PROMPTS["source"]:
        text = (ROOT / f"loaders/{source}/service.toml").read_text("utf-8")
        target = tomllib.loads(text)["target"]
        comment = re.search(rf"^\[series\.{target['series']}\] +# (.*)$", text, re.MULTILINE)
        what, _, when = PROMPTS["description"].partition(", ")
        assert comment and comment[1].split(", ")[0].capitalize() == what, source
        assert [int(one) for one in re.findall(r"\d+", when)] == target["horizons"], source


def test_every_choice_of_a_part_is_a_choice_of_the_prompt_and_back() -> None:
    for prompt, choices in MANIFEST["answers"].items():
        assert set(choices) == set(PROMPTS[prompt])


def test_no_file_comes_from_two_parts() -> None:
    for chosen in itertools.product(*[choices.values() for choices in MANIFEST["answers"].values()]):
        parts = [MANIFEST["always"], *chosen]
        targets = [path for part in parts for path in [*part.get("keep", []), *part.get("copy", {}).values()]]
        assert sorted(targets) == sorted(set(targets))


def test_lists_are_sorted() -> None:
    for part in PARTS:
        assert part.get("keep", []) == sorted(part.get("keep", []))


def test_licences_are_those_of_the_prompt() -> None:
    assert {path.stem for path in (ROOT / "templates/licence").iterdir()} == set(PROMPTS["licence"])


ELSEWHERE = {"sdmx"}  # begins with the euro area, of which the others know nothing
LESS = {"worldbank"}  # providers that do not have all of the series


def test_every_source_comes_with_the_same_model() -> None:
    """Target and features of the fragments, word for word; what is loaded differs. Or features of it, in its order."""
    fragments = [path for path in (ROOT / "loaders").glob("*/service.toml") if path.parent.name not in ELSEWHERE]
    models = {
        path.parent.name: path.read_text("utf-8").partition("# ---- What is forecast. ----")[2] for path in fragments
    }
    whole = models["csv"].split("\n[[feature]]")
    for name, model in models.items():
        head, *features = model.rstrip("\n").split("\n[[feature]]")
        known = [feature.rstrip("\n") for feature in whole[1:]]
        kept = [feature.rstrip("\n") for feature in features]
        assert head == whole[0], name
        assert kept == [feature for feature in known if feature in kept or name not in LESS], name
