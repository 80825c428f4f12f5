"""The server's Prometheus metrics."""

import datetime
import time
from collections.abc import Mapping, MutableMapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_METHODS = ("GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE")


class Metrics:
    """The metrics of one server. Labels are a closed set: client input never becomes a label."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        name = "epithre_beam_"
        self._requests = Counter(
            f"{name}requests", "Requests answered.", ("route", "method", "status"), registry=registry
        )
        self._seconds = Histogram(
            f"{name}request_seconds", "Seconds to answer a request.", ("route",), registry=registry, buckets=_SECONDS
        )
        self.under_way = Gauge(f"{name}requests_under_way", "Requests in progress.", registry=registry)
        self.queries = Counter(f"{name}queries", "Searches, by type of query.", ("query",), registry=registry)
        self.hits = Counter(f"{name}hits", "Hits returned.", registry=registry)
        stages = Histogram(
            f"{name}stage_seconds",
            "Seconds of each stage of a search.",
            ("stage",),
            registry=registry,
            buckets=_SECONDS,
        )
        self.embed_seconds, self.search_seconds = stages.labels("embed"), stages.labels("search")
        self.batches = Histogram(
            f"{name}batch_queries", "Queries per search call.", registry=registry, buckets=(1, 2, 4, 8, 16, 32, 64)
        )
        self.embeds = Counter(
            f"{name}embeds", "Queries sent to be embedded, by result.", ("result",), registry=registry
        )
        self.thumbnails = Counter(
            f"{name}thumbnails", "Thumbnails requested, by result.", ("result",), registry=registry
        )
        self._info = Gauge(f"{name}catalog_info", "1 for the version served.", ("version", "model"), registry=registry)
        self._age = Gauge(
            f"{name}catalog_age_seconds", "Seconds since the version served was published.", registry=registry
        )
        self._assets = Gauge(f"{name}catalog_assets", "Assets of the version served.", ("kind",), registry=registry)
        self._refresh_failing = Gauge(
            f"{name}catalog_refresh_failing",
            "1 while the newest published version cannot be loaded.",
            registry=registry,
        )
        self._api_failing = Gauge(
            f"{name}embedding_api_failing", "1 while the embedding API fails or refuses queries.", registry=registry
        )
        self._can_embed = Gauge(
            f"{name}can_embed",
            "1 if this server embeds queries; 0: it has no key or model.",
            registry=registry,
        )
        for counter, labels in (
            (self.queries, ("text", "image", "vector", "asset")),
            (self.embeds, ("done", "refused", "failed")),
            (self.thumbnails, ("made", "kept", "refused")),
        ):
            for label in labels:  # from 0, because a rate needs a value before the first event
                counter.labels(label)
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def report_request(self, scope: MutableMapping[str, Any], route: str | None, status: int, seconds: float) -> None:
        """Count an answer. `route` is the path of the route, such as `/api/assets/{kind}`; None: there is none."""
        path = route
        method = scope["method"] if path and scope["method"] in _METHODS else "other"
        key = (path or "other", method, status)
        if key not in self._children:
            self._children[key] = (self._requests.labels(key[0], key[1], str(status)), self._seconds.labels(key[0]))
        count, histogram = self._children[key]
        count.inc()
        histogram.observe(seconds)

    def report_catalog(
        self, version: str, created_at: str, model: str, per_kind: Mapping[str, int], *, is_failing: bool
    ) -> None:
        self._info.clear()
        self._info.labels(version, model).set(1)
        published_s = datetime.datetime.fromisoformat(created_at).timestamp()
        self._age.set(max(0.0, time.time() - published_s))
        self._assets.clear()
        for kind, count in per_kind.items():
            self._assets.labels(kind).set(count)
        self._refresh_failing.set(int(is_failing))

    def report_embedding_api(self, *, is_failing: bool, can_embed: bool) -> None:
        self._api_failing.set(int(is_failing))
        self._can_embed.set(int(can_embed))

    def exposition(self) -> bytes:
        """Return all metrics as text, for /metrics."""
        return generate_latest(self._registry)
