"""Choose the proxy for the API from the environment, and configure an HTTP client to use it.

Addresses of this machine never use a proxy: a proxy on another machine cannot reach them, and the API key would leave
this machine over plain http. For all other addresses, the rules are those of httpx.
"""

import ipaddress
import os
import re
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from ...configs.errors import ConfigError
from ...configs.schema import is_loopback


@dataclass(frozen=True, kw_only=True)
class Way:
    """How requests reach an address: directly or through a proxy."""

    proxy: str | None = field(repr=False)
    """URL of the proxy, which may contain a password; None if no proxy is used."""
    words: str
    """Suffix for messages, such as ` through the proxy http://proxy:3128 (from HTTPS_PROXY)`; empty without a proxy."""
    answers_itself: bool
    """Whether an answer may come from the proxy: over plain http it can read and write answers and keys."""

    def client_options(self) -> dict[str, Any]:
        """Return httpx client arguments for this proxy; only certificates are still read from the environment.

        Raises:
            ConfigError: If a certificate file that the environment names cannot be read.
        """
        try:
            tls = httpx.create_ssl_context()  # obeys SSL_CERT_FILE and SSL_CERT_DIR
        except OSError as error:
            named = next((name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)), "certifi")
            raise ConfigError(
                f"{named}: the certificates cannot be read ({error.strerror or error}). "
                "Set it to a PEM file, or unset the variable."
            ) from error
        return {"proxy": self.proxy, "trust_env": False, "verify": tls}


def way_to(base_url: str) -> Way:
    """Choose the proxy from `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`, in upper or lower case.

    Raises:
        ConfigError: If the proxy's address is invalid.
    """
    parts = urlsplit(base_url)
    host = (parts.hostname or "").removesuffix(".")
    proxies = urllib.request.getproxies()  # includes the proxy settings of macOS and Windows
    scheme = next((name for name in (parts.scheme, "all") if proxies.get(name)), None)
    stays_here = is_loopback(base_url) or host.endswith(".localhost") or host in {"0.0.0.0", "::"}  # noqa: S104
    if scheme is None or stays_here or _is_excepted(base_url, proxies):
        return Way(proxy=None, words="", answers_itself=False)
    proxy = proxies[scheme] if "://" in proxies[scheme] else f"http://{proxies[scheme]}"
    shown, source = _without_user(proxy), _variable(scheme)
    try:
        httpx.HTTPTransport(proxy=proxy, verify=False).close()
    except (ValueError, httpx.InvalidURL):
        raise ConfigError(
            f"{source}: {shown!r} is not a proxy address. Set it to an address such as http://proxy:3128, or unset it."
        ) from None
    except ImportError:
        raise ConfigError(
            f"{source}: the proxy {shown} is a SOCKS proxy. Install httpx[socks], or use an http proxy."
        ) from None
    words = f" through the proxy {shown} (from {source})"
    return Way(proxy=proxy, words=words, answers_itself=parts.scheme == "http")


def _is_excepted(url: str, proxies: Mapping[str, str]) -> bool:
    """Whether `NO_PROXY` matches the address, by httpx's rules: hosts, domains with subdomains, `.domain`, `*`."""
    asked = httpx.URL(url)
    for name in map(str.strip, proxies.get("no", "").split(",")):
        if name == "*":
            return True
        if not name:
            continue
        has_scheme = "://" in name
        is_whole = has_scheme or name.lower() == "localhost" or _is_address(name)
        try:
            named = httpx.URL(name if has_scheme else f"all://[{name}]" if name.count(":") > 1 else f"all://{name}")
        except httpx.InvalidURL:
            continue
        host = named.host
        if has_scheme and host.startswith("*"):
            host, is_whole = host[1:], False
        is_below = not is_whole and asked.host.endswith(host if host.startswith(".") else f".{host}")
        if (
            named.scheme in {"all", asked.scheme}
            and named.port in {None, asked.port}
            and (host in {"", asked.host} or is_below)
        ):
            return True
    return False


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("/")[0])
    except ValueError:
        return False
    return True


def _without_user(proxy: str) -> str:
    scheme, _, rest = proxy.partition("://")
    return f"{scheme}://{re.split('[/?#]', rest)[0].rpartition('@')[2]}"


def _variable(scheme: str) -> str:
    """Return the variable that `getproxies` reads for this scheme: the lower-case name wins."""
    found = sorted(name for name in os.environ if name.lower() == f"{scheme}_proxy")
    return found[-1] if found else "the system's settings"
