"""SHAP, Triton's client and Schemathesis agree with the service, each asked from inside a baked project."""

import re
import shutil
from pathlib import Path

from conftest import ROOT, TOOLS, BakedProject


def test_published_programs_agree_with_the_service(built: BakedProject, workshop: Path) -> None:
    folder = workshop / "published"
    skipped = shutil.ignore_patterns(".venv", ".local", "build", ".git", "__pycache__")
    shutil.copytree(built.path, folder, ignore=skipped)
    shutil.copy(ROOT / "tests/inside/test_published.py", folder / "tests")
    project = BakedProject(folder, built.env)
    project.run(TOOLS / "uv", "venv", "--quiet", "--python", built.python, ".venv")
    locks = [folder / "requirements/dev.txt", ROOT / "requirements/published.txt"]
    project.run(TOOLS / "uv", "pip", "sync", "--quiet", "--python", project.python, "--require-hashes", *locks)
    tests = ["-m", "pytest", "-q", "-s", "tests/test_published.py"]
    done = project.run(project.python, *tests, env={"PYTHONPATH": "src"})
    print(done.stdout)
    assert re.search(r"\d+ passed", done.stdout) and "skipped" not in done.stdout
