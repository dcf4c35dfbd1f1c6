"""The landing page: one static file, under a policy that lets nothing in but itself and this service's answers."""

import hashlib
import re
from base64 import b64encode
from functools import cache
from pathlib import Path

from starlette.responses import Response

FILE = Path(__file__).parent / "page.html"


@cache
def _page() -> tuple[bytes, dict[str, str]]:
    content = FILE.read_bytes()
    script, style = (_hashes(tag, content) for tag in (b"script", b"style"))
    policy = {
        "default-src": "'none'",
        "script-src": script,
        "style-src": style,
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return content, {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }


def _hashes(tag: bytes, content: bytes) -> str:
    """What the policy allows of inline text: exactly what stands in the file."""
    found = re.findall(rb"<%s>(.*?)</%s>" % (tag, tag), content, re.DOTALL)
    return " ".join(f"'sha256-{b64encode(hashlib.sha256(one).digest()).decode()}'" for one in found)


def answer() -> Response:
    content, headers = _page()
    return Response(content, headers=headers, media_type="text/html")
