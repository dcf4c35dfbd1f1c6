"""Files in a bucket of S3 or of what speaks like it; where and as whom stands in the AWS_* variables."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

from obstore.exceptions import BaseError, NotModifiedError
from obstore.store import S3Store

from model_service.loader import SourceError
from model_service.loader.web import Bring, RequestLimits


def matching(place: str, options: RequestLimits, begins: str, matches: Callable[[str], object]) -> dict[str, Bring]:
    """The one object, or those that match of the ones that the bucket lists from `begins` on.

    Raises SourceError when it does not.
    """
    name, _, pattern = place.removeprefix("s3://").partition("/")
    with _refusals(place):
        bucket = S3Store(
            name,
            client_options={
                "allow_http": True,  # an endpoint says itself how it is spoken to
                "read_timeout": timedelta(seconds=options.timeout_seconds),
                "timeout": timedelta(days=1),  # of a whole object, however large
            },
            retry_config={"max_retries": options.tries - 1},
        )
        if "*" not in pattern:
            return {place: partial(_bring, bucket, place, pattern, "")}
        pages = bucket.list(begins.removeprefix(f"s3://{name}/"))
        listed = ((f"s3://{name}/{one['path']}", one) for page in pages for one in page)
        found = {each: one for each, one in listed if matches(each)}
    return {each: partial(_bring, bucket, each, one["path"], one["e_tag"] or "") for each, one in found.items()}


def _bring(bucket: S3Store, name: str, key: str, etag: str, to: Path, mark: str) -> tuple[str, Path | None]:
    """`etag`: what the listing gave. That of the answer counts: the object may have changed since."""
    if mark and mark == etag:
        return mark, None
    with _refusals(name):
        try:
            answer = bucket.get(key, options={"if_none_match": mark} if mark else None)
        except NotModifiedError:
            return mark, None
        seen = answer.meta
        with to.open("wb") as file:
            for block in answer.stream():
                file.write(block)
    if to.stat().st_size != seen["size"]:
        raise SourceError(f"{name}: {seen['size']} bytes were announced, {to.stat().st_size} came; run again")
    return seen["e_tag"] or "", to


@contextmanager
def _refusals(name: str) -> Iterator[None]:
    """As SourceError of one line: the answer's code and message, or what else the driver says."""
    try:
        yield
    except (BaseError, OSError, ValueError) as error:
        says = " ".join(str(error).partition("\n\nDebug source")[0].split())
        told = [found[1] for tag in ("Code", "Message") if (found := re.search(f"<{tag}>([^<]*)</{tag}>", says))]
        says = ": ".join(told) or says.rpartition(" - ")[2]
        raise SourceError(f"{name}: the bucket cannot be read: {says[:300]} (check `path` and AWS_*)") from None
