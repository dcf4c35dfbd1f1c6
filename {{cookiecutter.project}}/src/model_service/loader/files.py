"""Files as payloads: below the project's folder, on the web, in a bucket. Those that did not change are not fetched."""

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from httpx import URL, InvalidURL, Response
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from model_service import periods
from model_service.errors import UsageError
from model_service.loader import ALWAYS, Ask, Payload, SourceError
from model_service.loader.web import Bring, Client, RequestLimits, Web, address
from model_service.mistakes import Section

GZIP, PARQUET, PLAIN = "application/gzip", "application/vnd.apache.parquet", "text/csv"
MAGIC = {b"\x1f\x8b": GZIP, b"PAR1": PARQUET}  # what a file is, whatever its name says
WEB = ("http://", "https://")


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _place(text: str) -> str:
    scheme, split, rest = text.partition("://")
    parts = () if split or Path(text).is_absolute() else Path(text).parts
    if parts and all(part == "**" or "**" not in part for part in parts):  # **.csv is no glob in every Python
        return text
    if scheme == "s3" and re.fullmatch(r"[^/*]+/.+", rest):
        return text
    if address(text) is None:
        raise ValueError('must be a file or glob below the project\'s folder, such as "data/us-macro/*.csv",'
                         " http(s)://HOST/PATH without a login, or s3://BUCKET/PATH")  # fmt: skip
    return text


Place = Annotated[str, AfterValidator(_place)]
Format = Annotated[str, AfterValidator(periods.checked)]


class Vintage(Section):
    """Since when the values were known: from the file's name without its endings, or from a column."""

    from_: Literal["file_name"] | None = Field(None, alias="from")
    column: str | None = None
    format: Format = "%Y-%m-%d"

    @model_validator(mode="after")
    def _one_place(self) -> "Vintage":
        if (self.from_ is None) == (self.column is None):
            raise ValueError('give either from = "file_name" or column = "..."')
        return self


class Files(RequestLimits):
    """Keys of a `[source.*]` table whose bytes are files."""

    path: Annotated[tuple[Place, ...], BeforeValidator(_listed), Field(min_length=1)]
    index: Place | None = None
    login: str = ""
    requests_per_second: Annotated[float, Field(gt=0)] = 5.0
    vintage: Vintage | None = None
    complete: bool = False

    @model_validator(mode="after")
    def _one_host(self) -> "Files":
        if self.index and not self.index.startswith(WEB):
            raise ValueError("index: must be http(s)://HOST/PATH, of a page that names the files")
        if self.login and len({_host(one) for one in (*self.path, self.index or "") if one.startswith(WEB)}) != 1:
            raise ValueError("login: for the files of one host, and no other is told it")
        return self


def fetch(options: Files, ask: Ask) -> Iterator[Payload]:
    """Files that match `options.path`, by (vintage, name); of the vintages in the window only.

    Raises SourceError: before the first one, for no match or a name that holds no vintage; for one that cannot be had,
    or is empty. UsageError for a window where the names hold no vintages, for a login or package that is not there.
    """
    if ask.window != ALWAYS and not (options.vintage and options.vintage.from_):
        raise UsageError("--from and --to choose vintages, and the names of these files hold none: leave them out")
    with ExitStack() as stack:
        to = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "file"
        client = cache(partial(_client, options, ask, stack))
        found: dict[str, Bring] = {}
        for place in options.path:
            if place.startswith("s3://"):
                matching = _bucket().matching(place, options, folder(place), matcher(place))
            elif place.startswith(WEB):
                matching = _web(place, options.index, client, to)
            else:
                paths = [path for path in ask.root.glob(place) if path.is_file()]
                matching = {path.relative_to(ask.root).as_posix(): partial(_look, path) for path in paths}
            seen = {name: bring for name, bring in matching.items() if not _base(name).startswith(".")}
            if not seen:
                where = "" if "://" in place else f" in {ask.root}"
                raise SourceError(f"no file matches {place!r}{where}: put the data there, or change `path`")
            found |= seen
        dated = [(_vintage(name, options.vintage), name) for name in found]
        for vintage, name in sorted(dated, key=lambda one: (one[0] or datetime.min.replace(tzinfo=UTC), one[1])):
            if ask.window == ALWAYS or (vintage and ask.window.holds(vintage)):
                try:
                    mark, path = found[name](to, ask.mark(name))
                    media_type = _media_type(name, path) if path else ""
                except OSError as error:
                    raise SourceError(f"{name}: cannot be read: {error.strerror}") from None
                yield Payload(name, path or to, media_type, vintage, complete=options.complete, mark=mark)


def matcher(pattern: str) -> Callable[[str], object]:
    """Whether a name on the web or in a bucket matches: * stands for part of a name, **/ for any folders."""
    parts = re.split(r"(\*\*/|\*)", pattern)
    return re.compile("".join({"**/": "(?:.*/)?", "*": "[^/]*"}.get(one, re.escape(one)) for one in parts)).fullmatch


def folder(pattern: str) -> str:
    """What stands before its first *, up to a slash."""
    return "".join(pattern.partition("*")[0].rpartition("/")[:2])


def _bucket() -> Any:
    try:
        from model_service.loader import bucket
    except ImportError:
        raise UsageError(
            "s3:// needs a package: write `obstore>=0.12` into requirements/s3.in, then `make lock setup`"
        ) from None
    return bucket


def _web(place: str, index: str | None, client: Callable[[str], Client], to: Path) -> dict[str, Bring]:
    """The one file, or those that match of the ones that a page names: the index, or else the folder's own."""
    download = partial(_download, client)
    if "*" not in place:
        return {place: partial(download, place)}
    page, matches = index or folder(place), matcher(place)
    download(page, to, "")
    found: set[str] = set()
    for word in set(re.findall(r"(?:href=)?([^\s\"'<>]+)", to.read_text("utf-8", "replace"), re.IGNORECASE)):
        with suppress(InvalidURL, ValueError):  # the latter for a host in [ ] that is no address
            found.add(str(URL(page).join(word)))
    return {url: partial(download, url) for url in found if matches(url)}


def _host(url: str) -> str:
    parts = URL(url)
    return f"{parts.scheme}://{parts.netloc.decode()}"


def _client(options: Files, ask: Ask, stack: ExitStack, host: str) -> Client:
    login = os.environ.get(options.login, "").strip() if options.login else ""
    if options.login and not (login and login.isprintable() and (":" in login or login.isascii())):
        raise UsageError(
            f"{options.login} holds no login: set it to USER:PASSWORD or a bearer's token, see docs/csv.md"
        )
    web = Web(base_url=host, **options.model_dump(include=set(RequestLimits.model_fields)))
    return stack.enter_context(Client(web, ask.pace, {}, login))


def _download(client: Callable[[str], Client], url: str, to: Path, mark: str) -> tuple[str, Path | None]:
    asked = {"If-None-Match" if mark.endswith('"') else "If-Modified-Since": mark} if mark else {}
    answer = client(_host(url)).save(url, to, asked)
    if mark and answer.status_code == 304:
        return mark, None
    if answer.status_code != 200:
        hint = "check `login`" if answer.status_code in {401, 403} else "check `path` and `index`"
        raise SourceError(f"{url}: the answer is {answer.status_code} {answer.reason_phrase} ({hint})")
    return _validator(answer), to


def _validator(answer: Response) -> str:
    """What tells its body from a later one. A date does not, where the file may change within the same second."""
    if etag := answer.headers.get("ETag"):
        return str(etag)
    changed, now = (answer.headers.get(name, "") for name in ("Last-Modified", "Date"))
    with suppress(ValueError, TypeError):
        if parsedate_to_datetime(now) - parsedate_to_datetime(changed) > timedelta(seconds=1):
            return str(changed)
    return ""


def _look(path: Path, to: Path, mark: str) -> tuple[str, Path]:
    seen = path.stat()
    return f"{seen.st_size} bytes, {seen.st_mtime_ns} ns", path


def _base(name: str) -> str:
    return PurePosixPath(URL(name).path if name.startswith(WEB) else name).name


def _vintage(name: str, declared: Vintage | None) -> datetime | None:
    if declared is None or declared.from_ is None:
        return None
    try:
        return periods.known_from(PurePosixPath(_base(name).removesuffix(".gz")).stem, declared.format)
    except ValueError as error:
        raise SourceError(f"{name}: the file's name holds no vintage: {error}") from None


def _media_type(name: str, path: Path) -> str:
    with path.open("rb") as file:
        first = file.read(4)
    if not first:
        raise SourceError(f"{name}: the file is empty")
    return next((kind for magic, kind in MAGIC.items() if first.startswith(magic)), PLAIN)
