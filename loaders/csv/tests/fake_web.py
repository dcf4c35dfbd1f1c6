"""What stands in for a provider on the web is served here; and a site with files, and the odd faces that sites have."""

import base64
import gzip
import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

Answer = tuple[int, dict[str, str], bytes]  # status, headers, body
BROKEN = {"internal error": 500, "bad gateway": 502, "too many requests": 429, "maintenance": 503}


class Server(Protocol):
    """`url` is where it is served. `answer` gets path and query as sent, and headers under Title-Case names."""

    url: str

    def answer(self, target: str, headers: Mapping[str, str]) -> Answer: ...


Served = TypeVar("Served", bound=Server)


def path_and_query(target: str) -> tuple[str, dict[str, str]]:
    """Both unquoted."""
    place = urlsplit(target)
    return unquote(place.path), dict(parse_qsl(place.query, keep_blank_values=True))


class Nth(dict[str, int]):
    """A fault of the n-th request alone, as the `faults` of a provider."""

    def __init__(self, number: int, fault: str) -> None:
        super().__init__({fault: 1})
        self.number = number

    def items(self) -> Any:
        self.number -= 1
        return super().items() if self.number == 0 else {}.items()


@dataclass
class Site:
    """`files` by path. `login`: the Authorization that it asks for. `log`: every request and its answer.

    faults, by path: what is wrong with that one. times: how often, of those that are to pass.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    etags: bool = True
    written: dict[str, float] = field(default_factory=dict)  # seconds since 1970; those without are of long ago
    now: float | None = None  # seconds since 1970, where its clock is not this machine's
    login: str = ""
    listing: bool = True
    faults: dict[str, str] = field(default_factory=dict)
    times: dict[str, int] = field(default_factory=dict)
    elsewhere: str = ""
    retry_after: str = ""
    log: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""

    def asked(self, status: int | None = None) -> list[str]:
        return [one["path"] for one in self.log if status in (None, one["status"])]

    def answer(self, target: str, headers: Mapping[str, str]) -> Answer:
        fault = self.faults.get(target, "")
        if target in self.times:
            fault = fault if self.times[target] else ""
            self.times[target] -= 1
        status, told, body = self._answer(target, headers, fault)
        lower = {name.lower(): value for name, value in headers.items()}
        self.log.append({"path": target, "status": status, "fault": fault, **lower})
        return status, told, body

    def _answer(self, path: str, headers: Mapping[str, str], fault: str) -> Answer:
        if fault in BROKEN:
            return BROKEN[fault], {"Retry-After": self.retry_after} if self.retry_after else {}, b"<html>sorry</html>"
        if fault == "moved":
            return 302, {"Location": f"{self.elsewhere or self.url}{path}.moved"}, b""
        if self.login and headers.get("Authorization") != self.login:
            return 401, {"WWW-Authenticate": "Basic"}, b"<html>who are you?</html>"
        if path.endswith("/") and self.listing:
            links = "".join(f'<a href="{one.removeprefix(path)}">x</a>\n' for one in self.files if one.startswith(path))
            return 200, {"Content-Type": "text/html"}, f'<h1>Index of {path}</h1><a href="../">up</a>{links}'.encode()
        if path not in self.files:
            return 404, {}, b"<html>not here</html>"
        content = self.files[path]
        if fault == "changing":
            self.files[path] = content + b"\n"
        dates = {"Last-Modified": self.written.get(path, 1e9), "Date": self.now}
        told = {name: formatdate(seconds, usegmt=True) for name, seconds in dates.items()}
        if self.etags:
            told["ETag"] = f'"{hashlib.md5(content).hexdigest()}"'
            unchanged = headers.get("If-None-Match") == told["ETag"]
        else:
            unchanged = headers.get("If-Modified-Since") == told["Last-Modified"]
        if unchanged and fault != "no conditions":
            return 304, told, b""
        if fault == "the login":
            content += headers.get("Authorization", "").split()[-1].encode()
        if fault == "encoded":
            content, told["Content-Encoding"] = gzip.compress(content), "gzip"
        if fault == "encoded and cut":
            content, told["Content-Encoding"] = gzip.compress(content)[:-12], "gzip"
        if fault == "cut":
            told["Content-Length"] = str(len(content))
            content = content[: len(content) // 2]
        if fault == "cut chunks":
            told["Transfer-Encoding"] = "chunked"
            content = b"%x\r\n%b\r\n" % (len(content) // 2, content[: len(content) // 2])
        return 200, told, content


def basic(login: str) -> str:
    return "Basic " + base64.b64encode(login.encode()).decode()


@contextmanager
def serving(server: Served) -> Iterator[Served]:
    """Serves on a port of its own for as long as the block runs; `server.url` says where."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # head and body are two writes: a client would wait for the second

        def do_GET(self) -> None:
            status, headers, body = server.answer(
                self.path, {name.title(): value for name, value in self.headers.items()}
            )
            self.send_response_only(status)
            if "Transfer-Encoding" not in headers and status != 304:
                headers = {"Content-Length": str(len(body))} | headers
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
            cut = status != 304 and headers.get("Content-Length") != str(len(body))
            self.close_connection = cut or "Transfer-Encoding" in headers

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
