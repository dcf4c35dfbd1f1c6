"""The landing page of the running service, opened in a browser as on a phone."""

import json
import re
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import BakedProject, browser, environment, run

PHONE = 390  # pixels
WRAPPER = f"""<!doctype html><title>not loaded</title>
<iframe style="width: {PHONE}px; height: 1400px; border: 0" src="/"></iframe><script>
const found = () => document.querySelector("iframe").contentDocument
setInterval(() => {{
  if (!/asking/.test(found()?.getElementById("state")?.textContent || "asking"))
    document.title = found().documentElement.scrollWidth + "|" + found().body.innerText.replaceAll("\\n", " ")
}}, 200)
</script>"""
PROBLEM = {"detail": "<b>no</b> forecast can be made (database_away)"}


class Desk(ThreadingHTTPServer):
    """Passes requests on to the service, but for `instead`; may show the page in a frame, which its policy forbids."""

    def __init__(self, service: str, instead: dict[str, tuple[int, Any]]) -> None:
        self.service, self.instead = service, instead
        super().__init__(("127.0.0.1", 0), Passing)


class Passing(BaseHTTPRequestHandler):
    server: Desk

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0))) or None
        headers = {"content-type": "application/json"} if body else {}
        if self.path == "/wrapper":
            return self._answer(200, WRAPPER.encode(), {"content-type": "text/html"})
        if found := self.server.instead.get(self.path):
            return self._answer(found[0], json.dumps(found[1]).encode(), {"content-type": "application/json"})
        request = urllib.request.Request(self.server.service + self.path, body, headers)
        try:
            answer = urllib.request.urlopen(request, timeout=30)
        except urllib.error.HTTPError as error:
            answer = error
        kept = ("content-type", "content-security-policy")
        return self._answer(answer.status, answer.read(), {name: answer.headers[name] or "" for name in kept})

    do_POST = do_GET

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value.replace("frame-ancestors 'none'", "frame-ancestors 'self'"))
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def service(built: BakedProject) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = built.env | {"PYTHONPATH": "src", "PORT": str(port)}
    with subprocess.Popen([built.python, "-m", "model_service", "serve"], cwd=built.path, env=env,
                          stdout=subprocess.DEVNULL) as process:  # fmt: skip
        try:
            until = time.monotonic() + 60
            while time.monotonic() < until:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@contextmanager
def desk(service: str, **instead: tuple[int, Any]) -> Iterator[str]:
    with Desk(service, {f"/{path.replace('_', '/')}": given for path, given in instead.items()}) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def opened(address: str, folder: Path) -> tuple[int, str, list[str]]:
    """How wide the page became on a phone, the text that it shows, and the browser's complaints."""
    program = browser()
    assert program is not None
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=15000"]
    words = [*quiet, f"--user-data-dir={folder / 'profile'}", "--dump-dom", f"{address}/wrapper"]
    done = run(program, *words, cwd=folder, env=environment(folder / "home"), timeout=120)
    found = re.search(r"<title>(\d+)\|(.*?)</title>", done.stdout, re.DOTALL)
    assert found, done.stdout + done.stderr
    complaints = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return int(found[1]), found[2].replace("&lt;", "<").replace("&gt;", ">"), complaints


@pytest.mark.browser
def test_the_landing_page_shows_forecast_model_and_health_on_a_phone(service: str, tmp_path: Path) -> None:
    forecast = json.load(urllib.request.urlopen(f"{service}/v1/forecast", timeout=30))
    with desk(service) as address:
        width, text, complaints = opened(address, tmp_path)
    assert width <= PHONE
    assert complaints == []
    assert "us-unemployment" in text and "● ready" not in text and " ready" in text
    for one in forecast["forecasts"]:
        assert one["valid_time"][:7] in text and f"{one['value']:.5g}" in text
    assert "without the inputs" in text and "ridge" in text


@pytest.mark.browser
def test_the_landing_page_says_what_is_wrong(service: str, tmp_path: Path) -> None:
    held = json.load(urllib.request.urlopen(f"{service}/v1/forecast", timeout=30))
    held |= {"degraded": {"reason": "database_away", "source": "baseline"}}
    with desk(service, v1_forecast=(200, held), v1_explain=(503, PROBLEM)) as address:
        _, text, _ = opened(address, tmp_path)
    assert "ready, degraded" in text
    assert "Degraded (database_away): this is the last known value, not a new forecast." in text
    assert "Not known: <b>no</b> forecast can be made" in text  # text stays text
    with desk(service, v1_forecast=(503, PROBLEM), readyz=(503, {"detail": "not ready: card.json"})) as address:
        _, text, _ = opened(address, tmp_path)
    assert "not ready" in text and "Health: not ready: card.json" in text
    assert "No forecast: <b>no</b> forecast can be made" in text
