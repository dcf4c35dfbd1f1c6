"""The report of a training, opened in a browser as on a phone."""

import html
import re
from pathlib import Path

import pytest
from conftest import BakedProject, browser, environment, run

PHONE = 390  # pixels
WRAPPER = """<!doctype html><title>not loaded</title><iframe style="width: {width}px" srcdoc="{page}"></iframe><script>
addEventListener("load", () => {{
  document.title = document.querySelector("iframe").contentDocument.documentElement.scrollWidth
}})
</script>"""


def opened(page: str, folder: Path) -> tuple[int, list[str]]:
    """How wide the page became on a phone, and the browser's complaints: the page's policy forbids to fetch or run."""
    program = browser()
    assert program is not None
    (folder / "wrapper.html").write_text(WRAPPER.format(width=PHONE, page=html.escape(page)), "utf-8")
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]
    words = [*quiet, "--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    env = environment(folder / "home")
    done = run(program, *words, f"file://{folder}/wrapper.html", cwd=folder, env=env, timeout=120)
    width = re.search(r"<title>(\d+)</title>", done.stdout)
    assert width, done.stderr
    return int(width[1]), [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


@pytest.mark.browser
def test_the_report_fits_a_phone_and_asks_for_nothing(built: BakedProject, tmp_path: Path) -> None:
    width, complaints = opened(built.text("build/report.html"), tmp_path)
    assert width <= PHONE
    assert complaints == []


@pytest.mark.browser
@pytest.mark.parametrize(
    "more", ['<img src="https://example.org/a.png">', "<script>1</script>", "<p style='width: 40em'>far"]
)
def test_a_report_that_does_not_is_found(built: BakedProject, tmp_path: Path, more: str) -> None:
    width, complaints = opened(built.text("build/report.html") + more, tmp_path)
    assert (width > PHONE) is ("width" in more)
    assert bool(complaints) is ("width" not in more)
