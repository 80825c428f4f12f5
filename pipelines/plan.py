"""What a run would do and cost, from a listing alone: nothing is read, sent or written."""

from dataclasses import asdict, dataclass

from ..configs import RunConfig
from ..index.layout import unit_name as unit_file
from ..index.manifest import read_latest, read_manifest
from ..index.store import Store
from ..transforms.epithre.client import IMAGE_TOKENS
from ..transforms.plan import bytes_by_kind, count_by_kind, cut_units, list_all, sort_references, unit_name
from ..transforms.references import references_of
from ..transforms.unit import cut_batches

_FP16 = 2
_FLOAT32 = 4


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run would do. Requests assume that pictures need not be shrunk and nothing is refused."""

    assets: dict[str, int]
    source_bytes: dict[str, int]
    units: int
    units_done: int
    assets_to_send: int
    """At most: contents that an earlier version has are found out only when they are read, and are not sent."""
    requests: int
    upload_bytes: int
    minutes_at_limit: float | None
    """At the configured limits; None when there are none."""
    cost: float | None
    """At the configured prices; None when there are none. Tokens are estimated."""
    vectors_bytes: int
    index_bytes: int

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def estimate(config: RunConfig) -> Estimate:
    """Estimates a run.

    Raises:
        ConfigError: When a source matches nothing.
        SourceError: When an id stands twice.
    """
    table = sort_references(list_all(config))
    store = Store(config.catalog)
    done_units = set(store.names("units"))
    fingerprint = _fingerprint(store)
    embed = config.embed
    units = done = to_send = requests = tokens = 0
    upload = 0.0
    for start, end in cut_units(table, embed.unit_references):
        units += 1
        part = table.slice(start, end - start)
        if unit_file(unit_name(part, embed, config.prepare, fingerprint)) in done_units:
            done += 1
            continue
        references = references_of(part)
        batches = cut_batches(range(len(references)), references, embed, config.prepare)
        requests += len(batches)
        to_send += len(references)
        texts = part.column("kind")[0].as_py() == "text"
        tokens += sum(-(-(r.size_bytes or 0) // 4) if texts else IMAGE_TOKENS for r in references)
        upload += sum(r.size_bytes or 0 for r in references) * (1 if texts else 4 / 3)
    limits = (
        (requests, embed.requests_per_minute),
        (to_send, embed.items_per_minute),
        (tokens, embed.tokens_per_minute),
    )
    minutes = [amount / limit for amount, limit in limits if limit]
    return Estimate(
        assets=count_by_kind(table),
        source_bytes=bytes_by_kind(table),
        units=units,
        units_done=done,
        assets_to_send=to_send,
        requests=requests,
        upload_bytes=int(upload),
        minutes_at_limit=max(minutes) if minutes else None,
        cost=embed.cost(requests=requests, items=to_send, tokens=tokens),
        vectors_bytes=len(table) * embed.dimension * _FLOAT32,
        index_bytes=len(table) * embed.dimension * _FP16,
    )


def _fingerprint(store: Store) -> str | None:
    """An emulator's fingerprint is known only from the last run; a server's is not part of a unit's name."""
    latest = read_latest(store)
    return read_manifest(store, latest[1]).model_fingerprint if latest else None
