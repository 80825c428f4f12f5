"""What a server is told when it starts."""

import ipaddress
import re
from dataclasses import dataclass, field

MAX_K = 1000
"""Hits that one request may ask for."""
MAX_BODY_BYTES = 2_000_000
"""Of a request that is no picture: a vector of 65,536 numbers in JSON fits."""
MAX_OPTIONS_BYTES = 65_536
"""What may stand in a form beside its picture."""
_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)*/?")
_LONGEST_PREFIX = 256


def prefix_of(path: str) -> str | None:
    """A path that the server stands below, as `/search`; empty for the root, None for what is no such path."""
    if len(path) > _LONGEST_PREFIX or not _PREFIX.fullmatch(path) or {".", ".."} & set(path.split("/")):
        return None
    return path.rstrip("/")


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """A server's settings. The token is in no repr."""

    catalog: str
    host: str = "127.0.0.1"
    port: int = 8000
    """0: any free one."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that the server answers to beside its own; empty on an address that is not loopback: all."""
    token: str | None = field(default=None, repr=False)
    base_url: str | None = None
    """Of the API; None: as the catalog's manifest says."""
    api_key_env: str | None = None
    max_upload_bytes: int = 10_000_000
    max_concurrency: int = 64
    """Requests that are answered at the same time; the next one is asked to come back."""
    requests_per_minute: int = 300
    """Searches of one client; 0: any number."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses whose X-Forwarded-For, X-Forwarded-Proto and X-Forwarded-Prefix are believed."""
    root_path: str = ""
    """The path that a proxy shows the server below, as `/search`; whether or not the proxy takes it away."""
    max_connections: int = 1000
    """Fewer where the process may not open twice as many files."""
    max_client_connections: int = 100
    """Of one client: an address, of IPv6 its /64. Trusted proxies have the bound of all alone."""
    follow_every_s: float = 30.0
    request_timeout_s: float = 60.0
    body_timeout_s: float = 30.0
    """For a request's body, from its first byte to its last."""
    body_pause_s: float = 10.0
    """For the next piece of a body."""
    max_bodies_bytes: int = 256_000_000
    """Of all bodies that are being read; beyond, those that began first and are not whole are given up."""
    header_timeout_s: float = 10.0
    keep_alive_s: float = 75.0
    """For the next request of a connection; longer than a proxy keeps its own, which is 60 s with most."""
    max_image_pixels: int = 50_000_000
    """Of a picture that is searched by; more are refused by its header. The job's own cap holds too."""
    thumbnail_cache_bytes: int = 64_000_000

    @property
    def is_loopback(self) -> bool:
        """Whether the server is reached from this machine alone."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def answered_hosts(self) -> frozenset[str] | None:
        """The names in a Host header that are answered, lower case; None: all.

        A page of another site can point a name of its own at 127.0.0.1 and would be answered as if it were ours.
        """
        if self.is_loopback:
            return frozenset({"localhost", "127.0.0.1", "::1", self.host.lower(), *map(str.lower, self.allowed_hosts)})
        return frozenset(map(str.lower, self.allowed_hosts)) or None
