"""GET requests to a provider: within its budget, repeated where that can help, and silent about keys."""

import base64
import gzip
import json
import mmap
import shutil
import time
import zlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.request import getproxies, proxy_bypass

import httpx
from pydantic import AfterValidator, Field
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from model_service.loader import SourceError
from model_service.mistakes import Section
from model_service.store.provider import Pace

PASSING = {429, 500, 502, 503, 504}  # what may be better in a while
LASTING = (httpx.TooManyRedirects, httpx.UnsupportedProtocol)  # what will not: where one is sent on leads nowhere
REST_SECONDS = 20.0  # after "too many requests", where the provider names no time
PATIENCE_SECONDS = 120.0  # that a provider may ask for; a longer rest is not waited for, but said
SECRET = 8  # characters of a login that is looked for in answers; a shorter one stands in many by chance
# Brings a file, unless it looks as `mark` says: (how it looks, where it lies or None).
Bring = Callable[[Path, str], tuple[str, Path | None]]
_BACK_OFF = wait_random_exponential(multiplier=1, max=60)


def address(text: str) -> httpx.URL | None:
    """The URL that it is, of http or https, with a host and neither a login nor a fragment; None where it is none."""
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        return None
    return url if url.scheme in {"http", "https"} and url.host and not url.userinfo and not url.fragment else None


def _web(text: str) -> str:
    if (url := address(text)) is None or url.query:
        raise ValueError("must be http://... or https://..., without a login and without a query")
    return text.rstrip("/")


Url = Annotated[str, AfterValidator(_web)]


class RequestLimits(Section):
    """How providers are asked. The budget is one a host, whoever asks it."""

    requests_per_second: Annotated[float, Field(gt=0)]
    timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    tries: Annotated[int, Field(ge=1, le=20)] = 6


class Web(RequestLimits):
    """Keys that every source with a provider on the web has."""

    base_url: Url


class RetryableError(SourceError):
    """It failed in a way that may pass; `rest` is how long to leave the provider alone, where that is known."""

    def __init__(self, message: str, rest: float | None = None) -> None:
        super().__init__(message)
        self.rest = rest


class KeyTransport(httpx.HTTPTransport):
    """Puts the key into the query below all that logs or raises: no URL that anybody sees has it."""

    def __init__(self, host: str, key: Mapping[str, str]) -> None:
        scheme = httpx.URL(host).scheme
        super().__init__(proxy=None if proxy_bypass(httpx.URL(host).host) else getproxies().get(scheme))
        self.key = key

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url.copy_merge_params(self.key) if self.key else request.url  # merging writes a query anew
        keyed = httpx.Request(request.method, url, headers=request.headers, extensions=request.extensions)
        return super().handle_request(keyed)


class Client:
    """`key`: what joins every query; `login`: USER:PASSWORD, or a bearer's token. Both are told to nobody else."""

    def __init__(self, options: Web, pace: Pace, key: Mapping[str, str], login: str = "") -> None:
        self.options, self.pace, self.key = options, pace, key
        self.provider = httpx.URL(options.base_url).host
        coded = base64.b64encode(login.encode()).decode()
        told = [one for one in (login, coded, login.partition(":")[2]) if len(one) >= SECRET]
        self.secrets = [one.encode() for one in (*key.values(), *told)]
        allowed = {"Authorization": f"Basic {coded}" if ":" in login else f"Bearer {login}"} if login else {}
        self.http = httpx.Client(
            base_url=options.base_url, transport=KeyTransport(options.base_url, key), timeout=options.timeout_seconds,
            headers={"Accept-Encoding": "gzip", **allowed},
        )  # fmt: skip

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def get(self, path: str, query: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> httpx.Response:
        """The answer, a refusal too; raises SourceError when none is to be had, or when it holds a key or login."""
        return self._retrying(path, params=query, headers=headers)

    def save(self, path: str, to: Path, headers: Mapping[str, str]) -> httpx.Response:
        """As `get`, but the body of a 200 goes into the file; what was received in part raises SourceError, too.

        Where the provider sends one on, it is followed; the login stays with the provider, and with a key nobody is.
        """
        return self._retrying(path, to, headers=headers, follow_redirects=not self.key)

    def _retrying(self, path: str, to: Path | None = None, **how: Any) -> httpx.Response:
        retrying = Retrying(
            stop=stop_after_attempt(self.options.tries), wait=self._wait, retry=retry_if_exception_type(RetryableError),
            reraise=True,
        )  # fmt: skip
        return retrying(self._ask, path, to, **how)

    def _ask(self, path: str, to: Path | None, **how: Any) -> httpx.Response:
        while wait := self.pace.take(self.provider, 1 / self.options.requests_per_second):
            time.sleep(wait)
        try:
            with self.http.stream("GET", path, **how) as coming:
                answer = _received(coming, to)
        except (httpx.RequestError, EOFError, gzip.BadGzipFile, zlib.error) as error:
            says = f"{self.provider} cannot be reached: {str(error) or type(error).__name__}"
            if isinstance(error, LASTING) or "CERTIFICATE_VERIFY_FAILED" in says:
                raise SourceError(says) from None
            raise RetryableError(f"{says}; try again later") from None
        if answer.status_code in PASSING:
            says = f"{self.provider} answers {answer.status_code}"
            if (rest := _rest(answer)) and rest > PATIENCE_SECONDS:
                raise SourceError(f"{says} and asks to be left alone for {rest:.0f} seconds: run again after that")
            raise RetryableError(f"{says}, {self.options.tries} times; try again later", rest)
        received = to if to and answer.status_code == 200 else answer.content
        if any(_holds(received, secret) for secret in self.secrets):
            raise SourceError(f"{self.provider} repeats the key in its answer: it was not kept")
        return answer

    def _wait(self, state: RetryCallState) -> float:
        """A rest that the provider asks for is one for all copies: it goes into the budget, all wait for the turn."""
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, RetryableError) and error.rest is not None:
            self.pace.rest(self.provider, error.rest)
            return 0.0
        return float(_BACK_OFF(state))


def _received(answer: httpx.Response, to: Path | None) -> httpx.Response:
    """A transfer that is zipped is undone here: httpx takes one that ends early for whole."""
    is_zipped = answer.headers.pop("Content-Encoding", "") == "gzip"
    if to is None or answer.status_code != 200:
        content = gzip.decompress(answer.read()) if is_zipped else answer.read()
        return httpx.Response(answer.status_code, headers=answer.headers, content=content, request=answer.request)
    with to.open("wb") as file:
        for block in answer.iter_bytes():
            file.write(block)
    if is_zipped:
        zipped = to.rename(to.with_name("zipped"))
        with gzip.open(zipped) as source, to.open("wb") as file:
            shutil.copyfileobj(source, file)
    return answer


def _holds(received: Path | bytes, secret: bytes) -> bool:
    if isinstance(received, bytes):
        return secret in received
    if not received.stat().st_size:
        return False
    with received.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(secret) >= 0


def _rest(answer: httpx.Response) -> float | None:
    """Seconds of `Retry-After`, a number or a date; without it some for 429, None for others."""
    asked = answer.headers.get("Retry-After", "")
    try:
        until = parsedate_to_datetime(asked)
        return max(0.0, ((until if until.tzinfo else until.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds())
    except ValueError:
        known = float(asked) if asked.isascii() and asked.isdigit() else None
    return known if known is not None else REST_SECONDS if answer.status_code == 429 else None


def shown(content: bytes) -> str:
    """The beginning of a body that was not understood, for a message of one line."""
    return json.dumps(" ".join(content[:400].decode("utf-8", "replace").split())[:120], ensure_ascii=False)
