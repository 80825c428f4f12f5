"""Settings of a server."""

import ipaddress
import re
from dataclasses import dataclass, field

from ...configs.caller import ARGUMENTS, Caller

MAX_K = 1000
"""Limit of `k` in a request."""
MAX_BODY_BYTES = 2_000_000
"""Limit of a request other than an image upload: a vector of 65,536 numbers in JSON fits."""
MAX_OPTIONS_BYTES = 65_536
"""Limit of the `options` field in a form with an image."""
_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)*/?")
_LONGEST_PREFIX = 256


def prefix_of(path: str) -> str | None:
    """Normalise a path prefix such as `/search`; empty for the root, None when it is invalid."""
    if len(path) > _LONGEST_PREFIX or not _PREFIX.fullmatch(path) or {".", ".."} & set(path.split("/")):
        return None
    return path.rstrip("/")


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """The settings of a server. The repr omits the token."""

    catalog: str
    host: str = "127.0.0.1"
    port: int = 8000
    """0: any free port."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names to accept in addition to loopback names; empty on another address: all names."""
    token: str | None = field(default=None, repr=False)
    base_url: str | None = None
    """Base URL of the embedding API; None: as in the catalog's manifest."""
    api_key_env: str | None = None
    caller: Caller = ARGUMENTS
    """Whose names messages use for these settings."""
    require_embedding: bool = False
    """Do not start if queries cannot be embedded, for example without a key."""
    max_upload_bytes: int = 10_000_000
    max_concurrency: int = 64
    """Concurrent requests; further ones get status 503 with Retry-After."""
    requests_per_minute: int = 300
    """Searches of one client; 0: no limit."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses whose X-Forwarded-For, X-Forwarded-Proto and X-Forwarded-Prefix headers are trusted."""
    root_path: str = ""
    """Path prefix at the proxy, such as `/search`, whether or not the proxy removes it."""
    max_connections: int = 1000
    """Reduced when the process may not open twice as many files."""
    max_client_connections: int = 100
    """Per client: an IPv4 address or an IPv6 /64. Trusted proxies are only limited by `max_connections`."""
    follow_every_s: float = 30.0
    request_timeout_s: float = 60.0
    body_timeout_s: float = 30.0
    """For a request body, from its first byte to its last."""
    body_pause_s: float = 10.0
    """For the next chunk of a body."""
    max_bodies_bytes: int = 256_000_000
    """Of all bodies that are being read; above it, the oldest incomplete bodies are dropped."""
    header_timeout_s: float = 10.0
    keep_alive_s: float = 75.0
    """Idle time of a connection; longer than that of most proxies, which is 60 s."""
    max_image_pixels: int = 50_000_000
    """Of a query image; larger ones are refused by their header. The job's own limit applies too."""
    thumbnail_cache_bytes: int = 64_000_000

    @property
    def is_loopback(self) -> bool:
        """Whether the server can only be reached from this machine."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def answered_hosts(self) -> frozenset[str] | None:
        """The accepted names in a Host header, in lower case; None: all.

        The check prevents DNS rebinding: a foreign site can point its own name at 127.0.0.1.
        """
        if self.is_loopback:
            return frozenset({"localhost", "127.0.0.1", "::1", self.host.lower(), *map(str.lower, self.allowed_hosts)})
        return frozenset(map(str.lower, self.allowed_hosts)) or None
