"""Who may ask: keys of callers, by name, in API_KEYS; without it anybody may.

`API_KEYS=team-a=KEY,team-a-next=KEY`: several are valid at once, so a key is changed by adding the new one, moving the
callers over, and taking the old one out when its counter stands still. A caller sends its key as `X-API-Key`.
"""

import hashlib
import hmac
import re

from model_service.errors import UsageError

HEADER = "x-api-key"
SHORTEST = 24
GUARDED = ("/v1/", "/v2/models/", "/report")
FORM = "API_KEYS is not NAME=KEY, one or several with commas between"


class Keys:
    """Names of valid keys; of the keys themselves only digests are held."""

    def __init__(self, text: str | None) -> None:
        """Raises UsageError that quotes no key."""
        self._digests: dict[str, bytes] = {}
        for number, pair in enumerate(filter(None, (text or "").split(",")), 1):
            name, _, key = (part.strip() for part in pair.partition("="))
            if not re.fullmatch(r"[a-z0-9-]{1,40}", name) or name in self._digests:
                raise UsageError(f"{FORM}: name {number} is none (lower-case letters, digits, dashes), or there twice")
            if len(key) < SHORTEST or not key.isascii():
                raise UsageError(
                    f"{FORM}: the key of {name} has fewer than {SHORTEST} characters: make it `openssl rand -hex 24`"
                )
            self._digests[name] = hashlib.sha256(key.encode()).digest()
        self.names = list(self._digests)

    def guards(self, path: str) -> bool:
        """Whether `path` asks for a key: probes, metrics and the pages about the interface never do."""
        return bool(self._digests) and path.startswith(GUARDED)

    def owner(self, key: bytes) -> str | None:
        """Name of the key, or None; takes the same time whatever is given, and whichever it is."""
        given, found = hashlib.sha256(key).digest(), None
        for name, digest in self._digests.items():
            if hmac.compare_digest(given, digest):
                found = name
        return found
