"""A bucket as S3 answers for it, version 4 signatures checked. `log` shows every request and its answer.

Written from the API reference of Amazon S3: ListObjectsV2, GetObject, its error responses, and "Signature Calculations
for the Authorization Header".
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import escape

from fake_web import Answer, path_and_query

KEY, SECRET, REGION = "AKIDEXAMPLE00000000A", "wJalrXUtnFEMI-K7MDENG-bPxRfiCYEXAMPLEKEY", "eu-central-1"


@dataclass
class Bucket:
    """`objects` by key. faults, by key ("" for the listing): what is wrong. page: keys in one answer of the listing."""

    name: str
    objects: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    times: dict[str, int] = field(default_factory=dict)
    page: int = 1000
    log: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""

    def asked(self) -> list[str]:
        return [one["key"] for one in self.log]

    def answer(self, target: str, headers: Mapping[str, str]) -> Answer:
        path, query = path_and_query(target)
        bucket, _, key = path.lstrip("/").partition("/")
        fault = self.faults.get(key, "")
        if key in self.times:
            fault = fault if self.times[key] else ""
            self.times[key] -= 1
        self.log.append({"key": key, "query": query, "fault": fault})
        status, told, body = self._answer(target, bucket, key, query, headers, fault)
        self.log[-1]["status"] = status
        return status, {"x-amz-request-id": "4442587FB7D0A2F9"} | told, body

    def _answer(
        self, target: str, bucket: str, key: str, query: Mapping[str, str], headers: Mapping[str, str], fault: str
    ) -> Answer:
        if fault == "slow down":
            return _error(503, "SlowDown", "Please reduce your request rate.")
        if fault == "internal error":
            return _error(500, "InternalError", "We encountered an internal error. Please try again.")
        if KEY not in headers.get("Authorization", ""):
            return _error(
                403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."
            )
        if not _signed(target, headers):
            return _error(
                403,
                "SignatureDoesNotMatch",
                "The request signature we calculated does not match.",
                f"<AWSAccessKeyId>{KEY}</AWSAccessKeyId>",
            )
        if fault == "expired":
            token = headers["X-Amz-Security-Token"]
            return _error(400, "ExpiredToken", "The provided token has expired.", f"<Token-0>{token}</Token-0>")
        if fault == "denied":
            return _error(403, "AccessDenied", "Access Denied")
        if bucket != self.name:
            return _error(
                404, "NoSuchBucket", "The specified bucket does not exist", f"<BucketName>{bucket}</BucketName>"
            )
        if not key:
            return self._listing(query)
        if key not in self.objects or fault == "gone":
            return _error(404, "NoSuchKey", "The specified key does not exist.", f"<Key>{escape(key)}</Key>")
        content = self.objects[key]
        told = {"ETag": _etag(content), "Last-Modified": formatdate(1e9, usegmt=True), "Accept-Ranges": "bytes"}
        if headers.get("If-None-Match") == told["ETag"]:
            return 304, told, b""
        told["Content-Length"], size = str(len(content)), len(content)
        if "Range" in headers and fault != "cut, range ignored":
            first = int(headers["Range"].removeprefix("bytes=").partition("-")[0])
            content = content[first:]
            told |= {"Content-Length": str(len(content)), "Content-Range": f"bytes {first}-{size - 1}/{size}"}
            return 206, told, content
        if fault == "cut, then changed":
            self.objects[key] = content[::-1]
        return 200, told, content[:-4] if fault.startswith("cut") else content

    def _listing(self, query: Mapping[str, str]) -> Answer:
        prefix, start = query.get("prefix", ""), query.get("continuation-token", "")
        keys = sorted(key for key in self.objects if key.startswith(prefix) and key > start)
        shown = keys[: self.page]
        more = f"<NextContinuationToken>{escape(shown[-1])}</NextContinuationToken>" if len(keys) > len(shown) else ""
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2001-09-09T01:46:40.000Z</LastModified>"
            f"<ETag>{escape(_etag(self.objects[key]), {chr(34): '&quot;'})}</ETag>"
            f"<Size>{len(self.objects[key])}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for key in shown
        )
        body = (
            '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{self.name}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(shown)}</KeyCount>"
            f"<MaxKeys>{self.page}</MaxKeys><IsTruncated>{str(bool(more)).lower()}</IsTruncated>{contents}{more}"
            "</ListBucketResult>"
        )
        return 200, {"Content-Type": "application/xml"}, body.encode()


def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'


def _error(status: int, code: str, message: str, more: str = "") -> Answer:
    body = (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message>{more}</Error>'
    )
    return status, {"Content-Type": "application/xml"}, body.encode()


def _signed(target: str, headers: Mapping[str, str]) -> bool:
    """Whether the Authorization header is that of SECRET for this request."""
    given = {name.lower(): value for name, value in headers.items()}
    _, _, fields = given["authorization"].partition(" ")
    parts = dict(one.strip().split("=", 1) for one in fields.split(","))
    scope = parts["Credential"].split("/", 1)[1]
    path, query = path_and_query(target)
    pairs = sorted((quote(k, safe="-_.~"), quote(v, safe="-_.~")) for k, v in query.items())
    names = parts["SignedHeaders"].split(";")
    canonical = "\n".join([
        "GET", quote(path, safe="/-_.~"), "&".join(f"{k}={v}" for k, v in pairs),
        *(f"{name}:{' '.join(given[name].split())}" for name in names), "", ";".join(names),
        given["x-amz-content-sha256"],
    ])  # fmt: skip
    hashed = hashlib.sha256(canonical.encode()).hexdigest()
    text = "\n".join(["AWS4-HMAC-SHA256", given["x-amz-date"], scope, hashed])
    key = f"AWS4{SECRET}".encode()
    for part in (*scope.split("/"), text):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return hmac.compare_digest(key.hex(), parts["Signature"])
