"""Estimate the work and cost of a run from its tables and a listing; no image is opened, nothing sent or written."""

from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.compute as pc
from rich.table import Table
from rich.text import Text

from ...configs import GateConfig, RunConfig
from ...configs.words import of_count
from ...index.publish.gates import check_shrinkage, check_turnover
from ...index.storage.store import Store
from ...index.vectors.units import ids_to_retry
from ...index.versions.latest import read_latest
from ...index.versions.layout import UNITS
from ...index.versions.layout import unit_name as unit_file
from ...index.versions.manifest import Manifest
from ...transforms.embedding.assets import cut_batches
from ...transforms.embedding.endpoint import is_key_set
from ...transforms.epithre.client import IMAGE_TOKENS
from ...transforms.planning.compare import Changes, Comparison
from ...transforms.planning.embedding_config import embedding_config_hash
from ...transforms.planning.job_identity import identity_of, other_job
from ...transforms.planning.plan import iterate_units, unit_name
from ...transforms.sources.references import references_of
from .base import compare, find_base, is_whole, overlap, replaces_api
from .launch import Runner

_FP16 = 2


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The work and cost of a run. Requests are counted as if no image is resized and no input is refused."""

    assets: dict[str, int]
    source_bytes: dict[str, int]
    passed_over: str
    """Files in the source folders that are skipped, such as `4 files (.avif, .jfif), 1 linked folder`."""
    base: str | None
    """The version whose vectors are reused."""
    every_vector_is_new_because: list[str]
    """Why the vectors of the current version cannot be reused; empty when they can, or there is no version."""
    uncertain_because: str | None
    """Why all vectors may be new: the server's address changed, and a plan sends no request to check its model."""
    another_job: str | None
    """Why a run would be refused: the catalog belongs to another job; None when it does not."""
    emulator_refused: str | None
    """Why a run would be refused: an emulator would replace vectors of the API; None when it would not."""
    unset_key_variable: str | None
    """The variable that a run reads the key from, if it is not set here; None if it is, or the run sends nothing."""
    gate_failures: list[str]
    """Failures of the gates on shrinkage and turnover."""
    possible_gate_failures: list[str]
    """Failures of the turnover gate if every file that looks changed is changed."""
    unchanged: int
    """Assets that are reused without being read."""
    dead: int
    """Unchanged assets with a permanent failure in the current version; they are not retried."""
    new: int
    differing: int
    """Known assets with another fingerprint or location, or with a transient failure in the current version."""
    prepared_anew: dict[str, int]
    """Unchanged assets to prepare again, by reason: they are read, and sent if the prepared content differs."""
    deleted: int
    """Rows that the new version drops."""
    likely_moved: int
    """New files that look like renamed known files; they are read and not sent."""
    other_metadata: int
    units: int
    units_done: int
    """Units embedded by an earlier run that stopped before it wrote its version."""
    assets_to_read: int
    assets_to_send: int
    """Upper bound: known contents are detected only when they are read, and are not sent."""
    requests: int
    upload_bytes: int
    minutes_at_limit: float | None
    """Minutes at the configured rate limits; None without limits."""
    cost: float | None
    """Cost at the configured prices, with estimated tokens; None without prices."""
    vectors_bytes: int
    index_bytes: int
    writes_nothing: bool
    """Nothing changed, so a run would end after the listing."""

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def estimate(config: RunConfig) -> Estimate:
    """Estimate a run.

    Raises:
        ConfigError: When a source matches no file, or Beam does not know the runner.
        SourceError: When an id is a duplicate.
        CatalogError: When LATEST.json is damaged; a run would not start either.
    """
    Runner().check(config.runner, config.beam_options, is_run=False)
    store = Store(config.catalog)
    found = find_base(config, store, read_latest(store))
    embed = config.embed
    units = done = to_read = to_send = requests = tokens = 0
    upload = 0.0
    made_with = embedding_config_hash(embed, config.prepare, found.fingerprint)
    with compare(config.sources, config.metadata_types) as comparison:
        another_job = other_job(
            config.catalog, found.manifest, identity_of(config), lambda: overlap(comparison, store, found.manifest)
        )
        if found.manifest is not None:
            comparison.set_base(
                store,
                found.manifest,
                prepare=config.prepare,
                retry_dead=embed.retry_dead,
                is_reusable=found.usable is not None,
            )
        changes = comparison.changes()
        gate_failures, possible_gate_failures = _foresee(comparison, changes, found.manifest, config.gates)
        known = comparison.known_texts()
        moved = comparison.likely_moved()
        done_units = set(store.names(UNITS)) if changes.todo else set()
        for part in iterate_units(comparison.todo(), embed.unit_references):
            units += 1
            if unit_file(name := unit_name(part, made_with)) in done_units:
                again = ids_to_retry(store, name, retry_dead=embed.retry_dead)
                if again == set():
                    done += 1
                    continue
                if again is not None:  # left by a spending limit or by transient failures
                    part = part.filter(pc.is_in(part.column("asset_id"), pa.array(sorted(again))))  # noqa: PLW2901
            to_read += len(part)
            # Texts with a known hash are not sent, and duplicates are sent once.
            is_text = pc.starts_with(part.column("fingerprint"), "sha256:").to_numpy(zero_copy_only=False)
            seen = set(known)
            sent = []
            for row, (fingerprint, hashed) in enumerate(
                zip(part.column("fingerprint").to_pylist(), is_text, strict=True)
            ):
                if not hashed or fingerprint not in seen:
                    sent.append(row)
                    seen.add(fingerprint)
            references = references_of(part)
            requests += len(cut_batches([(i, references[i]) for i in sent], embed, config.prepare))
            to_send += len(sent)
            chosen = [references[i] for i in sent]
            texts = part.column("kind")[0].as_py() == "text"
            tokens += sum(-(-(r.size_bytes or 0) // 4) if texts else IMAGE_TOKENS for r in chosen)
            upload += sum(r.size_bytes or 0 for r in chosen) * (1 if texts else 4 / 3)
        writes_nothing = (
            found.usable is not None
            and found.is_certain
            and another_job is None
            and changes.is_nothing
            and is_whole(store, found.usable, config.index, config.metadata_types, config.prepare)
        )
    needs_key = changes.todo > 0 or not found.is_certain
    limits = (
        (requests, embed.requests_per_minute),
        (to_send, embed.items_per_minute),
        (tokens, embed.tokens_per_minute),
    )
    minutes = [amount / limit for amount, limit in limits if limit]
    rows = sum(changes.assets.values()) - sum(changes.dead.values())
    bytes_each = 2 if config.index.vector_type == "float16" else 4
    uncertain = None
    if found.usable is not None and not found.is_certain:
        before = found.usable.config.get("embed", {}).get("base_url")
        uncertain = (
            f"embed.base_url changed from {before} to {embed.base_url}: "
            f"if it serves another model, all {of_count(sum(changes.assets.values()), 'asset')} are sent again"
        )
    return Estimate(
        assets=dict(changes.assets),
        source_bytes=dict(changes.size_bytes),
        passed_over=str(comparison.passed_over),
        base=found.usable.version if found.usable else None,
        every_vector_is_new_because=list(found.reasons),
        uncertain_because=uncertain,
        another_job=another_job,
        emulator_refused=replaces_api(config, found),
        unset_key_variable=None if is_key_set(embed) or not needs_key else embed.api_key_env,
        gate_failures=gate_failures,
        possible_gate_failures=possible_gate_failures,
        unchanged=sum(changes.unchanged.values()),
        dead=sum(changes.dead.values()),
        new=sum(changes.new.values()),
        differing=sum(changes.differing.values()),
        prepared_anew=dict(changes.again_because),
        deleted=sum(changes.deleted.values()),
        likely_moved=moved,
        other_metadata=changes.other_metadata,
        units=units,
        units_done=done,
        assets_to_read=to_read,
        assets_to_send=to_send,
        requests=requests,
        upload_bytes=int(upload),
        minutes_at_limit=max(minutes) if minutes else None,
        cost=embed.cost(requests=requests, items=to_send, tokens=tokens),
        vectors_bytes=rows * embed.dimension * bytes_each,
        index_bytes=rows * embed.dimension * _FP16,
        writes_nothing=writes_nothing,
    )


def _foresee(
    comparison: Comparison, changes: Changes, current: Manifest | None, gates: GateConfig
) -> tuple[list[str], list[str]]:
    """Return the gate failures of a listing, and those possible once its files are read."""
    if current is None:
        return [], []
    before = current.counts.per_kind
    left = {kind: count - changes.dead.get(kind, 0) for kind, count in changes.assets.items()}
    replaced = comparison.replaced() if "sources" in current.config else {}
    certain = {kind: counts[0] for kind, counts in replaced.items()}
    possible = {kind: sum(counts) for kind, counts in replaced.items()}
    foreseen = check_turnover(changes.gone, certain, before, gates)
    may = [] if foreseen else check_turnover(changes.gone, possible, before, gates)
    return [*check_shrinkage(left, before, gates), *foreseen], may


def _time_words(minutes: float | None) -> str:
    if minutes is None:
        return "no limit is configured"
    seconds = minutes * 60
    if seconds < 1:
        return "under 1 s (the rate limit allows it)"
    return (f"at least {seconds:,.0f} s" if seconds < 120 else f"at least {minutes:,.1f} minutes") + " at the limit"


def plan_table(found: Estimate) -> Table:
    """Format an estimate for the terminal."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for kind, count in found.assets.items():
        table.add_row(kind, f"{of_count(count, 'asset')}, {of_count(found.source_bytes[kind], 'byte')}")
    if found.passed_over:
        table.add_row("skipped", Text(f"{found.passed_over}: add a pattern that matches them to include them"))
    for reason in found.every_vector_is_new_because:
        table.add_row("all is new", Text(f"no vector of the current version can be reused: {reason}"))
    if found.uncertain_because is not None:
        table.add_row("not certain", Text(found.uncertain_because))
    if found.another_job is not None:
        table.add_row("another job", Text(f"the run will fail without --adopt: {found.another_job}."))
    if found.emulator_refused is not None:
        table.add_row("emulator", Text(f"the run will fail without --adopt: {found.emulator_refused}."))
    if found.unset_key_variable is not None:
        table.add_row(
            "no key",
            Text(f"the environment variable {found.unset_key_variable} is not set. The run will need it: export it."),
        )
    for reason in found.gate_failures:
        table.add_row("gate", Text(f"the version will be held back by a gate and not published: {reason}"))
    for reason in found.possible_gate_failures:
        table.add_row("not certain", Text(f"if the files to check have changed: {reason}"))
    if found.base is not None:
        moved = (
            f" ({of_count(found.likely_moved, 'looks like a known file', 'look like known files')} under another name)"
            if found.likely_moved
            else ""
        )
        touched = " (changed, or only written again)" if found.differing else ""
        table.add_row(
            "changes",
            f"{found.unchanged:,} unchanged, {found.new:,} added{moved}, {found.differing:,} to check{touched}, "
            f"{found.deleted:,} removed, {found.other_metadata:,} with changed metadata, since {found.base}",
        )
    for reason, count in found.prepared_anew.items():
        words = f"{of_count(count, 'unchanged asset')} to read again, and to send only if the pixels differ"
        table.add_row("prepared anew", Text(f"{words}: {reason}"))
    if found.dead:
        table.add_row("dead", f"{found.dead:,} have a permanent failure and are not retried")
    if found.writes_nothing:
        table.add_row("run", "nothing changed; a run would write nothing")
        return table
    done = f", {found.units_done:,} of {of_count(found.units, 'unit')} already embedded" if found.units_done else ""
    table.add_row("to read", f"{of_count(found.assets_to_read, 'asset')}{done}")
    same = "" if found.uncertain_because is None else " if the model is the same"
    if found.requests:
        requests = f"about {of_count(found.requests, 'request')}, plus a few to test the API"
        table.add_row("to send", f"at most {of_count(found.assets_to_send, 'asset')} in {requests}{same}")
        table.add_row("upload", f"about {found.upload_bytes:,} bytes; more if images must be converted")
        table.add_row("time", _time_words(found.minutes_at_limit))
    else:
        table.add_row("to send", f"nothing{same}")
    if found.cost is not None:
        table.add_row("cost", f"about {found.cost:,.2f} at the configured prices")
    table.add_row("vectors", f"{found.vectors_bytes:,} bytes in the new version")
    table.add_row("index", f"{found.index_bytes:,} bytes")
    return table
