"""The command `epithre-beam serve`."""

import asyncio
import contextlib
import gc
import ipaddress
import json
import logging
import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from ...configs.caller import COMMAND
from ...configs.errors import ConfigError
from ..console.logs import set_format
from ..console.options import ApiKeyEnv, BaseUrl, CatalogUrl, LogLines

if TYPE_CHECKING:
    from ..serve.settings import ServeSettings

_SHORTEST_TOKEN = 16
_EVENTS = ("epithre_beam.index.search.following", "epithre_beam.pipelines.serve")
"""Loggers that also report what succeeds: a new version, an API that answers again. Others report warnings."""


def serve(
    catalog: CatalogUrl,
    host: Annotated[
        str, typer.Option(help="The address to listen on. Loopback addresses cannot be reached from other machines.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="The port. 0: any free port.")] = 8000,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A Host header that is accepted. Repeatable.")
    ] = None,
    token_env: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The environment variable with the token, which is required for /api and /metrics."
        ),
    ] = None,
    base_url: BaseUrl = None,
    api_key_env: ApiKeyEnv = None,
    max_upload_mb: Annotated[float, typer.Option(min=0.001, help="Maximum size of an image upload.")] = 10.0,
    max_concurrency: Annotated[int, typer.Option(min=1, help="Maximum requests in parallel.")] = 64,
    rate: Annotated[int, typer.Option(min=0, help="Maximum searches per client and minute. 0: no limit.")] = 300,
    trust_proxy: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDRESS", help="A proxy whose X-Forwarded-* headers are trusted. Repeatable."),
    ] = None,
    root_path: Annotated[
        str, typer.Option(metavar="PATH", help="The path prefix of the server behind a proxy, e.g. /search.")
    ] = "",
    max_connections: Annotated[int, typer.Option(min=1, help="Maximum open connections.")] = 1000,
    max_client_connections: Annotated[int, typer.Option(min=1, help="Maximum open connections per client.")] = 100,
    keep_alive: Annotated[
        float, typer.Option(metavar="S", min=0.1, help="Seconds that an idle connection stays open.")
    ] = 75.0,
    max_image_mp: Annotated[float, typer.Option(min=0.001, help="Maximum megapixels of an image query.")] = 50.0,
    follow_every: Annotated[
        float, typer.Option(metavar="S", min=0.05, help="Seconds between checks for a new version.")
    ] = 30.0,
    require_embedding: Annotated[
        bool,
        typer.Option(
            "--require-embedding",
            help="Do not start without a key or a known model; start while the API does not answer.",
        ),
    ] = False,
    log_format: LogLines = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the start line as JSON.")] = False,
) -> None:
    """Serve CATALOG: a JSON API and a page to search it with texts and images. Stop it with Ctrl-C."""
    from ..serve.settings import ServeSettings

    if log_format is not None:
        set_format(log_format)
    for name in _EVENTS:
        logging.getLogger(name).setLevel(logging.INFO)
    settings = ServeSettings(
        catalog=catalog,
        host=host,
        port=port,
        allowed_hosts=tuple(allow_host or ()),
        token=None if token_env is None else _token(token_env),
        base_url=base_url,
        api_key_env=api_key_env,
        caller=COMMAND,
        require_embedding=require_embedding,
        max_upload_bytes=int(max_upload_mb * 1_000_000),
        max_concurrency=max_concurrency,
        requests_per_minute=rate,
        trusted_proxies=tuple(map(_network, trust_proxy or ())),
        root_path=_prefix(root_path),
        max_connections=max_connections,
        max_client_connections=max_client_connections,
        keep_alive_s=keep_alive,
        max_image_pixels=int(max_image_mp * 1_000_000),
        follow_every_s=follow_every,
    )
    asyncio.run(_serve(settings, as_json=as_json))


def _network(address: str) -> str:
    try:
        ipaddress.ip_network(address)
    except ValueError as error:
        raise ConfigError(f"--trust-proxy must be an IP address or network, got {address!r}: {error}.") from error
    return address


def _prefix(path: str) -> str:
    from ..serve.settings import prefix_of

    prefix = prefix_of(path)
    if prefix is None:
        rule = "contain only letters, digits and .~_- between single slashes" if path[:1] == "/" else "start with `/`"
        raise ConfigError(
            f"--root-path must {rule}, got {path!r}. Give the path at which the proxy serves this server, e.g. /search."
        )
    return prefix


async def _serve(settings: "ServeSettings", *, as_json: bool) -> None:
    from ..serve.app import create_app
    from ..serve.log_rate import bounded_logs
    from ..serve.server import Server, listen, url_of

    app = create_app(settings)
    async with app.router.lifespan_context(app):
        with listen(settings) as listening, bounded_logs():
            version = app.state.service.catalog.version
            url = f"{url_of(listening).rstrip('/')}{settings.root_path}/"
            said = json.dumps({"url": url, "version": version}) if as_json else f"serving {version} at {url}"
            gc.collect()
            gc.freeze()  # these objects live until the end: scanning them would delay requests
            with contextlib.suppress(OSError):  # the server runs even if standard output is closed
                sys.stdout.write(said + "\n")
                sys.stdout.flush()
            await Server(app, settings).serve(sockets=[listening])


def _token(name: str) -> str:
    """Raises ConfigError if the variable does not hold a valid token."""
    token = os.environ.get(name, "").strip()
    if not token:
        raise ConfigError(
            f"--token-env {name}: the environment variable {name} is not set. "
            "Create a token with `openssl rand -hex 32` and export it."
        )
    if len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"--token-env {name}: the variable must hold at least {_SHORTEST_TOKEN} printable ASCII characters without "
            "spaces. Create a token with `openssl rand -hex 32`."
        )
    return token
