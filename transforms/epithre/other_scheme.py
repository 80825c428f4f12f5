"""Finds out whether a server speaks http where it was asked by https, or the reverse. No key is sent for that."""

import socket
import ssl
from urllib.parse import urlsplit

from ...configs.caller import JOB, Caller
from ...configs.errors import WrongAddressError
from ...configs.schema import is_loopback

_TIMEOUT_S = 5.0
_PORTS = {"http": 80, "https": 443}


def wrong_scheme(base_url: str, caller: Caller = JOB) -> WrongAddressError | None:
    """The error of an address whose server speaks the other of http and https; None where that is not so.

    Asked after a request has failed. It connects at most twice, for five seconds each.
    """
    parts = urlsplit(base_url)
    host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    # A server of https may answer plain http too, with a 400 that says so; so the handshake decides.
    has_tls = _speaks_tls(host, port)
    if has_tls is None or has_tls == (parts.scheme == "https") or not (has_tls or _speaks_http(host, port)):
        return None
    other = "https" if has_tls else "http"
    netloc = parts.netloc if parts.port else f"{parts.netloc}:{port}"
    right = f"{other}://{netloc}{parts.path}"
    hint = ""
    if not has_tls and not is_loopback(right):
        hint = f" and set {caller.name('allow_plain_http')}, which sends the key in clear text"
    return WrongAddressError(
        f"{caller.name('base_url')} {base_url}: the server speaks {other}, not {parts.scheme}. Write {right}{hint}."
    )


def _speaks_tls(host: str, port: int) -> bool | None:
    """None: nothing answers there."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # who it is does not matter: nothing is sent
    try:
        with socket.create_connection((host, port), _TIMEOUT_S) as plain, context.wrap_socket(plain):
            return True
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")  # an alert is TLS as well: it wants another version, or a certificate
    except ConnectionResetError:
        return False
    except OSError:
        return None


def _speaks_http(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), _TIMEOUT_S) as plain:
            plain.sendall(f"HEAD / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode("ascii"))
            return plain.recv(5) == b"HTTP/"
    except (OSError, UnicodeEncodeError):
        return False
