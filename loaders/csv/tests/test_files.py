"""Files on the web, in a bucket, in Parquet: what is fetched and what is not, what is refused, and no login shows."""

import gzip
import json
import logging
import re
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from conftest import ROOT
from desk import HEAD, Service
from fake_s3 import KEY, REGION, SECRET, Bucket
from fake_web import Site, basic, serving
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from model_service import contract as contracts
from model_service import loader, mistakes
from model_service.errors import UsageError
from model_service.loader import Ask, Cell, Reject, SourceError, sources
from model_service.loader import parquet as rows_of
from model_service.loader.sources import csv as source

SOURCE = """
[source.files]
kind = "csv"
path = {path}
layout = "wide"
date = {{ column = "date" }}
requests_per_second = 1000
tries = {tries}
{more}
[series.A]
source = "files"
frequency = "month"
unit = "1"
release_lag_days = 1
{rules}
"""
DATED = 'vintage = { from = "file_name" }'
LOGIN = "modeller:correct-horse-battery"
TOKEN = "0123456789abcdef.token"


def table(*values: float) -> bytes:
    """A file with these values of A, one a month from January 2016."""
    return "".join(["date,A\n", *(f"2016-{month:02}-01,{value:g}\n" for month, value in enumerate(values, 1))]).encode()


@dataclass
class Desk(Service):
    url: str
    root: Path
    path: Any = ""
    more: str = ""
    rules: str = ""
    tries: int = 2
    said: list[str] = field(default_factory=list)

    @property
    def toml(self) -> str:
        source = SOURCE.format(path=json.dumps(self.path), tries=self.tries, more=self.more, rules=self.rules)
        return HEAD.format(target="A") + source

    def loaded(self) -> list[str]:
        """Loads; names of what was loaded."""
        return [one["file"] for one in self.load() if one["outcome"] == "loaded"]

    def values(self) -> list[float | None]:
        return [value for _, _, value in self.held()]


@pytest.fixture
def desk(url: str, tmp_path: Path) -> Desk:
    return Desk(url, tmp_path)


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(Site()) as site:
        yield site


@pytest.fixture
def one(desk: Desk, site: Site) -> Desk:
    """One file on the web."""
    site.files["/a.csv"] = table(1, 2)
    desk.path = f"{site.url}/a.csv"
    return desk


# ---- the web ----


def test_a_file_on_the_web_is_loaded_by_the_vintage_in_its_name(desk: Desk, site: Site) -> None:
    site.files |= {"/macro/2016-06-29.csv": table(1), "/macro/2016-07-29.csv.gz": gzip.compress(table(1.5, 2))}
    desk.path, desk.more = [f"{site.url}{path}" for path in site.files], DATED
    assert desk.loaded() == desk.path
    assert desk.held() == [
        ("2016-01-01", "2016-06-29", 1),
        ("2016-01-01", "2016-07-29", 1.5),
        ("2016-02-01", "2016-07-29", 2),
    ]
    assert desk.rows("SELECT DISTINCT media_type FROM raw_object ORDER BY 1") == [("application/gzip",), ("text/csv",)]


def test_an_unchanged_file_is_not_downloaded(one: Desk, site: Site) -> None:
    assert one.loaded() == [one.path]
    assert one.load()[0]["outcome"] == "nothing new"
    assert site.asked(200) == site.asked(304) == ["/a.csv"]
    assert site.log[1]["if-none-match"].startswith('"')
    site.files["/a.csv"] = table(1, 3)
    assert one.loaded() == [one.path]
    assert one.values() == [1, 2, 3]


def test_an_unchanged_file_is_read_again_when_the_rules_changed(one: Desk, site: Site) -> None:
    one.rules = "range = [0, 1]"
    one.load()
    assert one.values() == [1]
    one.rules = ""
    one.load()
    assert one.values() == [1, 2]
    assert site.asked(200) == ["/a.csv"] * 2


def test_of_three_hundred_files_only_those_that_changed_are_downloaded(tmp_path: Path, site: Site) -> None:
    names = [f"{date(2016, 2, 1) + timedelta(days=number)}.csv" for number in range(300)]
    site.files |= {f"/macro/{name}": table(number) for number, name in enumerate(names)}
    chosen = options(
        path=f"{site.url}/macro/*.csv", requests_per_second=1000, vintage={"from": "file_name", "format": "%Y-%m-%d"}
    )
    marks: dict[str, str] = {}

    def fetched() -> list[str]:
        """Names of those that look otherwise than last time."""
        ask = Ask(tmp_path, mark=lambda name: marks.get(name, ""))
        news = {one.name: one.mark for one in source.fetch(chosen, ask) if one.mark != marks.get(one.name)}
        marks.update(news)
        return [name.rpartition("/")[2] for name in news]

    assert fetched() == names
    site.log.clear()
    changed = [names[number] for number in (0, 7, 99)]
    for name in changed:
        site.files[f"/macro/{name}"] += b"2016-02-01,5\n"
    site.files["/macro/2016-01-15.csv"] = table(9)
    assert fetched() == ["2016-01-15.csv", *changed]
    assert site.asked(200) == ["/macro/", "/macro/2016-01-15.csv", *(f"/macro/{name}" for name in changed)]
    assert len(site.asked(304)) == 297


def test_a_date_stands_for_an_etag_but_not_one_of_this_very_second(one: Desk, site: Site) -> None:
    site.etags = False
    one.load()
    assert one.load()[0]["outcome"] == "nothing new"
    assert site.asked(304) == ["/a.csv"]
    site.written["/a.csv"] = site.now = 1.5e9  # in this very second it may be written again without another date
    site.files["/a.csv"] = table(1, 3)
    assert one.loaded() == [one.path]
    site.files["/a.csv"] = table(1, 4)
    assert one.loaded() == [one.path]
    assert one.values() == [1, 2, 3, 4]


def test_a_server_that_knows_no_conditions_costs_a_download_and_nothing_more(one: Desk, site: Site) -> None:
    site.faults["/a.csv"] = "no conditions"
    one.load()
    assert one.load()[0]["outcome"] == "nothing new"
    assert site.asked(200) == ["/a.csv"] * 2
    assert one.values() == [1, 2]


def test_a_file_that_changes_between_two_requests_is_never_mixed(one: Desk, site: Site) -> None:
    site.faults["/a.csv"] = "changing"
    for _ in range(3):
        one.load()
    assert one.values() == [1, 2]
    assert site.asked(200) == ["/a.csv"] * 3
    assert not [request for request in site.log if "range" in request]  # no part is ever asked for


@pytest.mark.parametrize("name", ["/a.csv", "/a.csv.gz"])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_transfer_that_is_zipped_is_undone_and_a_file_that_is_zipped_is_kept(
    desk: Desk, site: Site, name: str, zipped: bool
) -> None:
    """Also where the server names a plain file .gz, and where it zips a .gz once more."""
    content = gzip.compress(table(1, 2)) if zipped else table(1, 2)
    site.files[name], site.faults[name] = content, "encoded"
    desk.path = f"{site.url}{name}"
    desk.load()
    assert desk.values() == [1, 2]
    assert desk.kept() == [content]


def test_a_file_that_was_moved_is_followed_and_keeps_its_name(one: Desk, site: Site) -> None:
    site.faults["/a.csv"], site.files["/a.csv.moved"] = "moved", table(7)
    assert one.loaded() == [one.path]
    assert one.values() == [7]
    assert one.load()[0]["outcome"] == "nothing new"
    assert site.asked(304) == ["/a.csv.moved"]


def test_what_moves_in_circles_is_said(one: Desk, site: Site) -> None:
    site.faults |= {f"/a.csv{'.moved' * times}": "moved" for times in range(30)}
    assert one.refused() == "127.0.0.1 cannot be reached: Exceeded maximum allowed redirects."
    assert site.asked().count("/a.csv") == 1  # it does not help to ask again


def test_a_certificate_that_is_not_trusted_is_said_at_once(one: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def untrusted(_: Any, request: httpx.Request) -> None:
        asked.append(request.url)
        raise httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")

    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", untrusted)
    assert one.refused() == "127.0.0.1 cannot be reached: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"
    assert len(asked) == 1


@pytest.mark.parametrize("index", ["folder", "page", "plain page", "text"])
def test_files_that_a_page_names_are_chosen_by_pattern(desk: Desk, site: Site, index: str) -> None:
    wanted = ["/macro/2016-06-29.csv", "/macro/2016-07-29.csv"]
    site.files |= {
        path: table(number)
        for number, path in enumerate([*wanted, "/macro/old/2015-01-01.csv", "/macro/notes.txt", "/macro/.hidden.csv"])
    }
    desk.path, desk.more = f"{site.url}/macro/*.csv", DATED
    if index != "folder":
        site.listing = False
        desk.more += f'\nindex = "{site.url}/list/all.html"'
        names = [path.replace("/macro/", "../macro/") for path in site.files]
        quote = "" if index == "plain page" else "'"
        shown = [f"<li>http://[host]/<a class=x href={quote}{name}{quote}>{name}</a>" for name in names]
        links = "\n".join(names if index == "text" else shown)
        site.files["/list/all.html"] = links.encode()
    assert desk.loaded() == [f"{site.url}{path}" for path in wanted]


def test_folders_of_any_depth(desk: Desk, site: Site) -> None:
    site.files |= {f"/macro/{path}": table(1) for path in ("a.csv", "2016/b.csv", "2016/07/c.csv")}
    site.files["/list"] = "\n".join(site.files).encode()
    desk.path, desk.more = f"{site.url}/macro/**/*.csv", f'index = "{site.url}/list"'
    assert len(desk.loaded()) == 3


def test_a_page_that_names_no_such_file(desk: Desk, site: Site) -> None:
    desk.path = f"{site.url}/macro/*.csv"
    assert desk.refused() == f"no file matches '{desk.path}': put the data there, or change `path`"
    site.listing = False
    assert desk.refused() == f"{site.url}/macro/: the answer is 404 Not Found (check `path` and `index`)"


def test_local_files_and_those_on_the_web_are_one_source(one: Desk, site: Site) -> None:
    (one.root / "b.csv").write_bytes(table(1, 2, 3))
    one.path = [one.path, "*.csv"]
    assert one.loaded() == ["b.csv", f"{site.url}/a.csv"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_a_file_on_the_web_is_in_the_declared_encoding(one: Desk, site: Site, encoding: str) -> None:
    site.files["/a.csv"] = "date,note,A\n2016-01-01,é,1\n".encode(encoding)
    one.more = f'encoding = "{encoding}"'
    one.load()
    assert one.values() == [1]
    site.files["/a.csv"], one.more = "date,note,A\n2016-01-01,é,2\n".encode("cp1252"), ""
    assert re.match(rf"{one.path}: byte \d+ is not utf-8-sig", one.refused())


# ---- what goes wrong on the web: one clear line, nothing half-loaded ----


@pytest.mark.parametrize("fault", ["cut", "cut chunks", "encoded and cut"])
def test_a_body_that_ends_early_is_not_loaded(one: Desk, site: Site, fault: str) -> None:
    site.faults["/a.csv"] = fault
    assert one.refused().endswith("; try again later")
    assert site.asked(200) == ["/a.csv"] * 2
    assert one.kept() == []
    site.times["/a.csv"] = 1
    one.load()
    assert one.values() == [1, 2]


@pytest.mark.parametrize(("fault", "status"), [("internal error", 500), ("bad gateway", 502), ("maintenance", 503)])
def test_an_error_that_passes_is_asked_again_and_one_that_stays_is_said(
    one: Desk, site: Site, fault: str, status: int
) -> None:
    site.faults["/a.csv"] = fault
    assert one.refused() == f"127.0.0.1 answers {status}, 2 times; try again later"
    site.times["/a.csv"] = 1
    one.load()
    assert site.asked(status) == ["/a.csv"] * 3
    assert one.values() == [1, 2]


def test_too_many_requests_are_followed_by_the_rest_that_is_asked_for(one: Desk, site: Site) -> None:
    site.faults["/a.csv"], site.retry_after = "too many requests", "3600"
    assert one.refused() == "127.0.0.1 answers 429 and asks to be left alone for 3600 seconds: run again after that"
    site.retry_after, site.times["/a.csv"] = "0", 1
    one.load()
    assert one.values() == [1, 2]


def test_a_file_that_is_not_there(one: Desk, site: Site) -> None:
    del site.files["/a.csv"]
    assert one.refused() == f"{one.path}: the answer is 404 Not Found (check `path` and `index`)"


def test_a_file_that_is_empty(one: Desk, site: Site) -> None:
    site.files["/a.csv"] = b""
    assert one.refused() == f"{one.path}: the file is empty"


def test_a_page_where_a_file_should_be(one: Desk, site: Site) -> None:
    site.files["/a.csv"] = b"<html><body>\n<h1>Sign in</h1>\n</body></html>\n"
    with pytest.raises(SourceError, match="the header does not fit service.toml"):
        one.load()
    assert one.held() == []


def test_a_server_that_is_down(one: Desk) -> None:
    with serving(Site()) as gone:
        one.path = f"{gone.url}/a.csv"
    assert re.match("127.0.0.1 cannot be reached: .*; try again later$", one.refused())


def test_what_was_loaded_before_a_file_failed_stays(desk: Desk, site: Site) -> None:
    site.files |= {"/2016-06-29.csv": table(1), "/2016-07-29.csv": table(2), "/2016-08-29.csv": table(3)}
    desk.path, desk.more, site.faults["/2016-07-29.csv"] = f"{site.url}/*.csv", DATED, "cut"
    with pytest.raises(SourceError):
        desk.load()
    assert desk.values() == [1]
    del site.faults["/2016-07-29.csv"]
    desk.load()
    assert desk.values() == [1, 2, 3]


# ---- logins ----


@pytest.mark.parametrize(("login", "header"), [(LOGIN, basic(LOGIN)), (TOKEN, f"Bearer {TOKEN}")])
def test_a_login_from_the_environment_opens_the_file(
    one: Desk, site: Site, monkeypatch: pytest.MonkeyPatch, login: str, header: str
) -> None:
    site.login = header
    assert one.refused() == f"{one.path}: the answer is 401 Unauthorized (check `login`)"
    one.more = 'login = "FILES_LOGIN"'
    monkeypatch.setenv("FILES_LOGIN", f"{login}\n")
    one.load()
    assert one.values() == [1, 2]
    monkeypatch.setenv("FILES_LOGIN", login[::-1])
    site.files["/a.csv"] = table(3)
    assert one.refused() == f"{one.path}: the answer is 401 Unauthorized (check `login`)"


@pytest.mark.parametrize("login", [None, "", "secret\r\nX-Header: 1", "kein-ASCII-ü"])
def test_no_login_and_one_that_is_none(
    one: Desk, site: Site, monkeypatch: pytest.MonkeyPatch, login: str | None
) -> None:
    one.more = 'login = "FILES_LOGIN"'
    if login is not None:
        monkeypatch.setenv("FILES_LOGIN", login)
    says = one.refused(UsageError)
    assert says.startswith("FILES_LOGIN holds no login: set it to USER:PASSWORD or a bearer's token")
    assert site.log == []


def test_a_login_stays_with_the_host_that_it_is_for(one: Desk, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FILES_LOGIN", TOKEN)
    one.more = 'login = "FILES_LOGIN"'
    with serving(Site({"/a.csv.moved": table(7)})) as other:
        site.faults["/a.csv"], site.elsewhere = "moved", other.url
        one.load()
        assert one.values() == [7]
        assert site.log[0]["authorization"] == f"Bearer {TOKEN}"
        assert "authorization" not in other.log[0]
        one.path = [f"{site.url}/a.csv", f"{other.url}/b.csv"]
        with pytest.raises(UsageError, match="login: for the files of one host"):
            one.load()


def taken_away(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """As if the package that it imports were not there."""
    monkeypatch.delattr(loader, module, raising=False)
    monkeypatch.setitem(sys.modules, f"model_service.loader.{module}", None)


def leaks(desk: Desk, caplog: pytest.LogCaptureFixture, secrets: list[str], breaks: Any) -> list[str]:
    """Where a secret shows: what was said, raised and logged, the tables, the kept bytes."""
    errors = []
    with caplog.at_level(logging.DEBUG):
        desk.load()
        for again in breaks:
            again()
            with pytest.raises(SourceError) as refusal:
                desk.load()
            errors += [str(refusal.value), repr(refusal.getrepr(style="long"))]
    seen = {"said": str(desk.said), "raised": str(errors), "logged": caplog.text, **desk.everything()}
    assert len(seen) > 10
    return [where for where, text in seen.items() if any(secret in text for secret in secrets)]


@pytest.mark.parametrize("login", [LOGIN, TOKEN])
def test_a_login_shows_nowhere(
    one: Desk, site: Site, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, login: str
) -> None:
    monkeypatch.setenv("FILES_LOGIN", login)
    one.more = 'login = "FILES_LOGIN"'

    def broken(fault: str) -> Any:
        def breaks() -> None:
            site.faults["/a.csv"], site.files["/a.csv"] = fault, table(len(site.log))

        return breaks

    secrets = [login, basic(login).split()[1], login.partition(":")[2] or login]
    faults = ["cut", "internal error", "the login"]
    assert leaks(one, caplog, secrets, [broken(fault) for fault in faults]) == []
    assert "HTTP Request: GET" in caplog.text  # there was something to be seen
    assert {request["fault"] for request in site.log} == {"", *faults}


def test_an_answer_that_repeats_the_login_would_be_kept(one: Desk, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sabotage: nobody looks for it."""
    monkeypatch.setenv("FILES_LOGIN", TOKEN)
    one.more, site.faults["/a.csv"] = 'login = "FILES_LOGIN"', "the login"
    assert one.refused() == "127.0.0.1 repeats the key in its answer: it was not kept"
    monkeypatch.setattr("model_service.loader.web._holds", lambda received, secret: False)
    one.load()
    assert TOKEN.encode() in one.kept()[0]


# ---- keys ----


@pytest.mark.parametrize(
    ("path", "more", "says"),
    [
        ("ftp://example.org/x.csv", "", "must be a file or glob below the project's folder"),
        ("https://me:secret@example.org/x.csv", "", "without a login"),
        ("https:///x.csv", "", "must be a file or glob"),
        ("s3://bucket", "", "s3://BUCKET/PATH"),
        ("s3://*/x.csv", "", "s3://BUCKET/PATH"),
        (".", "", "must be a file or glob"),
        ("data/**.csv", "", "must be a file or glob"),
        ("/etc/x.csv", "", "must be a file or glob below"),
        ("https://example.org/*.csv", 'index = "x.csv"', "index: must be http(s)://HOST/PATH"),
        ("x.csv", 'login = "L"', "login: for the files of one host"),
        ("https://example.org/*.csv", 'indx = "https://example.org/"', "did you mean 'index'"),
    ],
)
def test_a_wrong_key_of_the_source(desk: Desk, path: str, more: str, says: str) -> None:
    desk.path, desk.more = path, more
    with pytest.raises(UsageError, match=re.escape(says)):
        desk.load()


# ---- a source of one's own ----


def test_the_source_that_the_documentation_writes(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs/source.md").read_text("utf-8").partition("## A source of your own")[2]
    code, toml = (re.search(rf"```{kind}\n(.*?)```", text, re.DOTALL)[1] for kind in ("python", "toml"))  # type: ignore[index]
    (tmp_path / "kinds").mkdir()
    (tmp_path / "kinds/meter.py").write_text(code)
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(tmp_path / "kinds")])
    declared = desk.declared(HEAD.format(target="KWH") + toml)
    with pytest.raises(SourceError, match="data/meter.jsonl is not there"):
        desk.load(declared)
    (tmp_path / "data").mkdir()
    lines = ['{"day": "2016-06-29", "kwh": 12.5}', '{"day": "2016-06-30", "kwh": NaN}', "[]", '{"day": "2016-06-29"}']
    (tmp_path / "data/meter.jsonl").write_text("\n".join([*lines, lines[0]]))
    desk.load(declared)
    assert [(period, value) for period, _, value in desk.held("KWH")] == [("2016-06-29", 12.5)]
    rules = desk.rows("SELECT line, rule FROM quarantine ORDER BY line")
    assert rules == [(2, "finite"), (3, "date"), (4, "number"), (5, "duplicate")]
    assert desk.load(declared)[0]["outcome"] == "nothing new"


# ---- a bucket ----

try:
    import obstore
except ImportError:
    obstore = None
needs_obstore = pytest.mark.skipif(obstore is None, reason="obstore is not installed: see Buckets in docs/csv.md")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    with serving(Bucket("macro")) as bucket:
        for name, value in {
            "ENDPOINT_URL": bucket.url,
            "ACCESS_KEY_ID": KEY,
            "SECRET_ACCESS_KEY": SECRET,
            "REGION": REGION,
        }.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        yield bucket


@pytest.fixture
def stored(desk: Desk, bucket: Bucket) -> Desk:
    """Three files in a bucket, the third of them zipped, and some that are not meant."""
    bucket.objects |= {f"us/2016-0{month}-29.csv": table(month) for month in (5, 6)}
    bucket.objects |= {"us/2016-07-29.csv.gz": gzip.compress(table(7)), "us/old/2015-01-01.csv": table(0)}
    bucket.objects |= {"us/notes.txt": b"x", "us/.hidden.csv": table(0), "us.csv": table(0), "us/2016 ä&+.txt": b"x"}
    desk.path, desk.more = "s3://macro/us/*.csv*", DATED
    return desk


@needs_obstore
def test_objects_of_a_bucket_are_loaded_by_the_vintage_in_their_names(stored: Desk) -> None:
    names = ["2016-05-29.csv", "2016-06-29.csv", "2016-07-29.csv.gz"]
    assert stored.loaded() == [f"s3://macro/us/{name}" for name in names]
    assert stored.held() == [("2016-01-01", f"2016-0{month}-29", month) for month in (5, 6, 7)]


@needs_obstore
def test_an_unchanged_object_is_known_by_the_listing_alone(stored: Desk, bucket: Bucket) -> None:
    stored.load()
    bucket.log.clear()
    assert {one["outcome"] for one in stored.load()} == {"nothing new"}
    assert bucket.asked() == [""]
    bucket.objects["us/2016-06-29.csv"] = table(6, 6)
    assert stored.loaded() == ["s3://macro/us/2016-06-29.csv"]
    assert bucket.asked() == ["", "", "us/2016-06-29.csv"]


@needs_obstore
def test_one_object_is_asked_for_without_a_listing_and_on_condition(desk: Desk, bucket: Bucket) -> None:
    bucket.objects["us/a ä.csv"] = table(1)
    desk.path, bucket.faults[""] = "s3://macro/us/a ä.csv", "denied"
    desk.load()
    assert desk.load()[0]["outcome"] == "nothing new"
    assert [(request["key"], request["status"]) for request in bucket.log] == [("us/a ä.csv", 200), ("us/a ä.csv", 304)]


@needs_obstore
def test_a_listing_of_many_pages(desk: Desk, bucket: Bucket) -> None:
    bucket.page = 100
    bucket.objects = {f"us/{number:03}.csv": table(number) for number in range(250)}
    desk.path, desk.more = "s3://macro/us/24*.csv", ""
    assert len(desk.loaded()) == 10
    assert [request["key"] for request in bucket.log].count("") == 3


@needs_obstore
def test_an_object_that_changes_after_it_was_listed_is_marked_as_it_came(stored: Desk, bucket: Bucket) -> None:
    plain = bucket._listing

    def then_change(query: Any) -> Any:
        answer = plain(query)
        bucket.objects["us/2016-05-29.csv"] = table(55)
        return answer

    bucket._listing = then_change  # type: ignore[method-assign]
    stored.load()
    assert stored.values()[0] == 55
    bucket._listing = plain  # type: ignore[method-assign]
    bucket.log.clear()
    stored.load()
    assert bucket.asked() == [""]


@needs_obstore
@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (
            {"AWS_SECRET_ACCESS_KEY": "x" * 40},
            "SignatureDoesNotMatch: The request signature we calculated does not match.",
        ),
        (
            {"AWS_ACCESS_KEY_ID": "AKIDOFNOBODY"},
            "InvalidAccessKeyId: The AWS Access Key Id you provided does not exist",
        ),
        ({"path": "s3://nowhere/us/*.csv"}, "NoSuchBucket: The specified bucket does not exist"),
        ({"fault": "denied"}, "AccessDenied: Access Denied"),
        ({"fault": "slow down"}, "SlowDown: Please reduce your request rate."),
        ({"fault": "internal error"}, "InternalError: We encountered an internal error."),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "HTTP error: error sending request"),
    ],
)
def test_a_bucket_that_cannot_be_read(
    stored: Desk, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, break_it: dict[str, str], says: str
) -> None:
    stored.path = break_it.get("path", stored.path)
    bucket.faults[""] = break_it.get("fault", "")
    for name, value in break_it.items():
        if name.startswith("AWS_"):
            monkeypatch.setenv(name, value)
    refusal = stored.refused()
    assert refusal.startswith(f"{stored.path}: the bucket cannot be read: {says}")
    assert refusal.endswith("(check `path` and AWS_*)")


@needs_obstore
@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("gone", "NoSuchKey: The specified key does not exist."),
        ("cut, range ignored", "Generic S3 error: Content-Range header not present in partial response"),
        ("cut, then changed", "Generic S3 error: HTTP error: request or response body error"),
    ],
)
def test_an_object_that_cannot_be_had_whole_is_not_loaded(stored: Desk, bucket: Bucket, fault: str, says: str) -> None:
    key = "us/2016-05-29.csv"
    bucket.faults[key] = fault
    assert stored.refused().startswith(f"s3://macro/{key}: the bucket cannot be read: {says}")
    bucket.faults.clear()
    bucket.objects[key] = table(5)
    stored.load()
    assert stored.values() == [5, 6, 7]


@needs_obstore
def test_an_object_that_broke_off_is_fetched_on_from_there(stored: Desk, bucket: Bucket) -> None:
    bucket.faults["us/2016-05-29.csv"] = "cut"
    stored.load()
    assert stored.values() == [5, 6, 7]
    assert [request["status"] for request in bucket.log if request["key"] == "us/2016-05-29.csv"] == [200, 206]


@needs_obstore
def test_an_error_of_the_bucket_that_passes_is_asked_again(stored: Desk, bucket: Bucket) -> None:
    bucket.faults, bucket.times = (
        {"": "slow down", "us/2016-05-29.csv": "internal error"},
        {"": 1, "us/2016-05-29.csv": 1},
    )
    stored.load()
    assert stored.values() == [5, 6, 7]


@needs_obstore
def test_no_such_object(stored: Desk) -> None:
    stored.path = "s3://macro/eu/*.csv"
    assert stored.refused() == "no file matches 's3://macro/eu/*.csv': put the data there, or change `path`"


@needs_obstore
def test_the_key_of_a_bucket_shows_nowhere(
    stored: Desk, bucket: Bucket, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    breaks = [
        lambda: bucket.faults.update({"": "denied"}),
        lambda: bucket.faults.update({"": "expired"}),  # it repeats the token
        lambda: monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY[::-1]),
    ]
    assert leaks(stored, caplog, [SECRET, TOKEN], breaks) == []
    assert [one["fault"] for one in bucket.log if one["status"] != 200] == ["denied", "expired", "expired"]


def test_a_bucket_without_its_package_says_what_to_do(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    taken_away(monkeypatch, "bucket")
    desk.path = "s3://macro/us/*.csv"
    says = desk.refused(UsageError)
    assert says == "s3:// needs a package: write `obstore>=0.12` into requirements/s3.in, then `make lock setup`"


# ---- Parquet ----


def options(**keys: Any) -> source.Options:
    given = {"path": "x.parquet", "layout": "wide", "date": {"column": "date"}}
    return mistakes.validate(source.Options, given | keys, "service.toml, [source.test]")


def read(folder: Path, columns: dict[str, Any], keys: dict[str, Any], **how: Any) -> Any:
    """(cells, rejects) of one Parquet file in which A and B are mapped."""
    parquet.write_table(pa.table(columns), folder / "x.parquet", **how)
    chosen = options(**keys)
    (payload,) = source.fetch(chosen, Ask(folder))
    mapped = dict.fromkeys(("A", "B"), contracts.Series(source="test", frequency="month", unit="1", release_lag_days=0))
    found = list(source.parse(payload, chosen, mapped))
    return [one for one in found if isinstance(one, Cell)], [one for one in found if isinstance(one, Reject)]


def brief(cells: list[Cell]) -> list[tuple[str, str, float, int]]:
    return [(one.series, f"{one.valid_time:%Y-%m-%d}", one.value, one.line) for one in cells]


DAYS = [date(2016, 1, 1), date(2016, 2, 1)]
BERLIN = timezone(timedelta(hours=2))


def test_a_wide_parquet_file(tmp_path: Path) -> None:
    cells, rejects = read(tmp_path, {"date": DAYS, "A": [1.5, None], "ignored": ["x", "y"], "B": [3, 4]}, {})
    assert brief(cells) == [("A", "2016-01-01", 1.5, 1), ("B", "2016-01-01", 3, 1), ("B", "2016-02-01", 4, 2)]
    assert (rejects, {one.known_from for one in cells}) == ([], {None})


def test_a_long_parquet_file_with_its_vintages(tmp_path: Path) -> None:
    known = pa.array([datetime(2016, 3, 1, 9, 30, tzinfo=BERLIN), None], pa.timestamp("ns", "Europe/Berlin"))
    columns = {"series": pa.array(["A", "B"]).dictionary_encode(), "date": DAYS, "value": [1, 2], "known": known}
    cells, rejects = read(tmp_path, columns, {"layout": "long", "vintage": {"column": "known"}})
    assert [(one.series, one.known_from) for one in cells] == [("A", datetime(2016, 3, 1, 7, 30, tzinfo=UTC))]
    assert [(one.series, one.line, one.raw, one.rule) for one in rejects] == [("B", 2, "2", "date")]


@pytest.mark.parametrize(
    ("kind", "values", "decimal", "expected"),
    [
        (pa.float64(), [0.1, -1e300], ".", [0.1, -1e300]),
        (pa.float64(), [0.1, 2.5], ",", [0.1, 2.5]),
        (pa.float32(), [0.5, 0.1], ".", [0.5, struct.unpack("f", struct.pack("f", 0.1))[0]]),
        (pa.decimal128(20, 3), [Decimal("16575.125"), Decimal("-0.001")], ".", [16575.125, -0.001]),
        (pa.decimal128(20, 3), [Decimal("16575.125"), None], ",", [16575.125]),
        (pa.int64(), [2**53, -1], ".", [2**53, -1]),
        (pa.uint8(), [255, 0], ".", [255, 0]),
        (pa.string(), [" 1,5 ", ""], ",", [1.5]),
        (pa.large_string(), ["1.5", "n/a"], ".", [1.5]),
        (pa.null(), [None, None], ".", []),
    ],
)
def test_values_of_any_type_that_holds_numbers(
    tmp_path: Path, kind: Any, values: Any, decimal: str, expected: list[float]
) -> None:
    columns = {"date": DAYS, "A": pa.array(values, kind), "B": pa.nulls(2)}
    cells, rejects = read(tmp_path, columns, {"decimal": decimal, "missing": ["n/a"]})
    assert [one.value for one in cells] == expected
    assert rejects == []


@pytest.mark.parametrize(
    ("kind", "format"),
    [
        (pa.date32(), "%d.%m.%Y"),
        (pa.date64(), "%Y-%m-%d"),
        *((pa.timestamp(unit), "%Y-%m-%d") for unit in ("s", "ms", "us", "ns")),
        (pa.timestamp("ms", "UTC"), "%Y"),
    ],
)
def test_dates_of_any_type_need_no_format(tmp_path: Path, kind: Any, format: str) -> None:
    moments = [datetime(1850, 6, 30, 23, 59, 59), datetime(2200, 2, 1)]
    columns = {
        "date": pa.array(moments, pa.timestamp("us")).cast(pa.timestamp("ns")).cast(kind, safe=False),
        "A": [1, 2],
        "B": [None, None],
    }
    cells, rejects = read(tmp_path, columns, {"date": {"column": "date", "format": format}})
    assert (brief(cells), rejects) == ([("A", "1850-06-01", 1, 1), ("A", "2200-02-01", 2, 2)], [])


@pytest.mark.parametrize(
    ("kind", "values", "format"), [(pa.string(), ["2016-Q1", "x"], "%Y-Q%q"), (pa.int32(), [2016, 1], "%Y")]
)
def test_dates_in_texts_and_numbers_have_the_declared_format(
    tmp_path: Path, kind: Any, values: Any, format: str
) -> None:
    parquet.write_table(pa.table({"date": pa.array(values, kind), "A": [1, 2]}), tmp_path / "x.parquet")
    chosen = options(date={"column": "date", "format": format})
    (payload,) = source.fetch(chosen, Ask(tmp_path))
    mapped = {"A": contracts.Series(source="test", frequency="year", unit="1", release_lag_days=0)}
    found = list(source.parse(payload, chosen, mapped))
    assert [type(one) for one in found] == [Cell, Reject]
    assert isinstance(found[0], Cell)
    assert f"{found[0].valid_time:%Y-%m-%d}" == "2016-01-01"


@pytest.mark.parametrize(
    ("columns", "line", "raw", "rule"),
    [
        ({"A": [1, float("nan")]}, 2, "nan", "finite"),
        ({"A": [float("-inf"), 1]}, 1, "-inf", "finite"),
        ({"A": ["1", "x"]}, 2, "x", "number"),
        ({"A": [True, None]}, 1, "true", "number"),
        ({"A": [1, 2], "date": [DAYS[0], DAYS[0]]}, 2, "2", "duplicate"),
        ({"A": [1, 2], "date": [DAYS[0], None]}, 2, "2", "date"),
        ({"A": [1, 2], "date": pa.array([0, 4 * 10**11], pa.timestamp("s"))}, 2, "2", "date"),  # year 14645
    ],
)
def test_a_bad_cell_of_parquet(tmp_path: Path, columns: dict[str, Any], line: int, raw: str, rule: str) -> None:
    cells, rejects = read(tmp_path, {"date": DAYS, "B": [None, None]} | columns, {})
    assert [(one.line, one.raw, one.rule) for one in rejects] == [(line, raw, rule)]
    assert len(cells) == sum(value is not None for value in columns["A"]) - 1


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"Date": DAYS, "A": [1, 2], "B": [1, 2]}, "no column 'date'; did you mean 'Date'?"),
        ({"date": DAYS, "A": [1, 2]}, "no column 'B'"),
        ({"date": DAYS, "A": [[1], [2]], "B": [1, 2]}, "cannot be read as Parquet: "),
        (
            {"date": pa.array([], pa.date32()), "A": pa.array([], pa.int8()), "B": pa.array([], pa.int8())},
            "nothing below",
        ),
    ],
)
def test_a_parquet_file_that_does_not_fit(tmp_path: Path, columns: dict[str, Any], says: str) -> None:
    with pytest.raises(SourceError, match=re.escape(says)):
        read(tmp_path, columns, {})


def test_columns_whose_names_have_points_are_columns(tmp_path: Path) -> None:
    columns = {"date": DAYS, "A": [1, 2], "A.B": [3, 4], "B": [5, 6], "S": [{"date": 1, "A": 9}] * 2}
    assert [one.value for one in read(tmp_path, columns, {})[0]] == [1, 5, 2, 6]


def test_a_parquet_file_is_kept_as_it_came_and_read_again_from_that(desk: Desk, tmp_path: Path) -> None:
    parquet.write_table(pa.table({"date": DAYS, "A": [1.0, 20.0]}), tmp_path / "2016-07-29.parquet", compression="zstd")
    desk.path, desk.more, desk.rules = "*.parquet", DATED, "range = [0, 10]"
    (result,) = desk.load()
    assert desk.kept() == [(tmp_path / "2016-07-29.parquet").read_bytes()]
    assert desk.rows("SELECT line, raw, rule FROM quarantine") == [(2, "20", "range")]
    (tmp_path / "2016-07-29.parquet").unlink()
    desk.rules = ""
    desk.again(result["load_id"], "retry", "the range was too small")
    assert desk.held() == [("2016-01-01", "2016-07-29", 1), ("2016-02-01", "2016-07-29", 20)]


def test_a_parquet_file_that_is_broken(desk: Desk, tmp_path: Path) -> None:
    columns = {"date": DAYS, "A": [1.0, 2.0], "spare": [1, 2]}
    parquet.write_table(pa.table(columns), tmp_path / "x.parquet", compression="zstd")
    whole = (tmp_path / "x.parquet").read_bytes()
    desk.path = "x.parquet"
    no_name = whole.replace(b"spare", b"spar\x80")
    for content in (whole[:-9], whole[:40], whole[:4] + bytes(40) + whole[44:], no_name):
        (tmp_path / "x.parquet").write_bytes(content)
        assert desk.refused().startswith("x.parquet: cannot be read as Parquet: ")


def test_memory_of_a_parquet_file_is_that_of_a_row_group(tmp_path: Path) -> None:
    """Four times the row groups, and no more memory of Arrow's."""

    def peak(groups: int) -> int:
        rows = 40_000 * groups
        table = pa.table(
            {
                "date": pa.array([DAYS[0]] * rows),
                "A": pa.array(np.random.default_rng(1).random(rows)),
                "B": pa.nulls(rows),
            }
        )
        parquet.write_table(table, tmp_path / "x.parquet", row_group_size=40_000)
        del table
        chosen = options()
        (payload,) = source.fetch(chosen, Ask(tmp_path))
        pa.default_memory_pool().release_unused()
        most = 0
        with rows_of.opened(payload) as file:
            for number, _ in rows_of.rows(file, ["date", "A"], "."):
                if number % 10_000 == 0:
                    most = max(most, pa.total_allocated_bytes())
        assert number == rows
        return most

    few, many = peak(6), peak(24)
    assert 0 < many <= 1.2 * few


def test_parquet_without_its_package_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken_away(monkeypatch, "parquet")
    with pytest.raises(
        UsageError, match=re.escape("write `pyarrow>=22` into requirements/parquet.in, then `make lock setup`")
    ):
        read(tmp_path, {"date": DAYS, "A": [1, 2], "B": [1, 2]}, {})


NUMBERS = st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.dates(date(1, 1, 6), date(9998, 12, 30)), NUMBERS, NUMBERS),
        min_size=1,
        max_size=12,
        unique_by=lambda row: (row[0].year, row[0].month),
    ),
    st.sampled_from(["s", "ms", "us"]),
    st.booleans(),
    st.integers(1, 5),
)
def test_any_table_reads_back_from_parquet(
    tmp_path_factory: pytest.TempPathFactory, rows: Any, unit: str, stamps: bool, group: int
) -> None:
    folder = tmp_path_factory.mktemp("table")
    kind = pa.timestamp(unit) if stamps else pa.date32()
    moments = [datetime.combine(day, time(23, 59)) if stamps else day for day, _, _ in rows]
    columns = {
        "date": pa.array(moments, kind),
        "A": pa.array([a for _, a, _ in rows], pa.float64()),
        "B": pa.array([b for _, _, b in rows], pa.float64()),
    }
    cells, rejects = read(folder, columns, {}, row_group_size=group)
    expected = {
        (name, day.replace(day=1)): value
        for day, a, b in rows
        for name, value in (("A", a), ("B", b))
        if value is not None
    }
    assert rejects == []
    assert {(one.series, one.valid_time.date()): one.value for one in cells} == expected
    assert [one.line for one in cells] == sorted(one.line for one in cells)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 900), st.booleans())
def test_whatever_the_bytes_are_they_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, place: int, replace: bool
) -> None:
    folder = tmp_path_factory.mktemp("junk")
    parquet.write_table(pa.table({"date": DAYS, "A": [1.0, 2.0], "B": [1, 2]}), folder / "x.parquet")
    whole = (folder / "x.parquet").read_bytes()
    (folder / "x.parquet").write_bytes(b"PAR1" + (whole[:place] + junk + whole[place + replace * len(junk) :])[4:])
    chosen = options()
    (payload,) = source.fetch(chosen, Ask(folder))
    mapped = dict.fromkeys(("A", "B"), contracts.Series(source="test", frequency="month", unit="1", release_lag_days=0))
    try:
        list(source.parse(payload, chosen, mapped))
    except SourceError as refusal:
        assert str(refusal).startswith("x.parquet: ")
