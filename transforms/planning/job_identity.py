"""Check whether a run belongs to the same job as the catalog.

If both have a job name, the names decide. Otherwise the sources decide. If the sources differ, the listed assets
decide: a job that moved to another folder lists the assets of the catalog, another job does not.
"""

import hashlib
from collections.abc import Callable
from urllib.parse import urlsplit

from ...configs import RunConfig
from ...index.versions.manifest import JobIdentity, Manifest
from .compare import Overlap

_SHARED = 0.1
"""Share of the smaller of listing and version. Below it, the run is another job; above it, the gates decide."""
_SHOWN = 3


def identity_of(config: RunConfig) -> JobIdentity:
    """Return the identity of a run's job."""
    sources = (f"{source.kind} {_place(source.files or source.table or '')}" for source in config.sources)
    return JobIdentity(name=config.job, sources=tuple(sorted(set(sources))))


def identity_of_import(name: str | None, folder: str) -> JobIdentity:
    """Return the identity of an import of vectors.

    Args:
        name: The job's name, if it has one.
        folder: The folder of the vectors, as an absolute path or a URL.
    """
    return JobIdentity(name=name, sources=(f"vectors {_place(folder)}",))


def other_job(catalog: str, current: Manifest | None, job: JobIdentity, overlap: Callable[[], Overlap]) -> str | None:
    """Return the reason why a run may not write a catalog, as a sentence without a full stop; None when it may.

    Args:
        catalog: URL of the catalog.
        current: The manifest of the current version; None when there is no readable one.
        job: The job of the run.
        overlap: Computes the overlap of the listing and the current version; called only when needed.
    """
    before = None if current is None else current.job
    if current is None or before is None or not sum(current.counts.per_kind.values()):
        return None
    if before.name is not None and job.name is not None:
        if before.name == job.name:
            return None
        return f"{catalog}: the catalog belongs to the job {_words(before)}, and this is the job {_words(job)}"
    if set(before.sources) <= set(job.sources):
        return None
    found = overlap()
    if found.shared and found.shared >= _SHARED * min(found.listed, found.rows):
        return None
    return (
        f"{catalog}: the catalog belongs to the job {_words(before)}, and this is another job, {_words(job)}, which "
        f"lists {found.shared:,} of its {found.rows:,} assets"
    )


def _words(job: JobIdentity) -> str:
    shown = ", ".join(job.sources[:_SHOWN])
    more = f" and {len(job.sources) - _SHOWN} more" if len(job.sources) > _SHOWN else ""
    return f"{job.name} ({shown}{more})" if job.name else f"{shown}{more}"


def _place(location: str) -> str:
    """Return a location without secrets: the query of a URL, which may have a signature, is replaced by its hash."""
    location = location.removeprefix("file://")
    if "://" not in location or not (query := urlsplit(location).query) or not location.startswith("http"):
        return location
    return location.replace(query, hashlib.sha256(query.encode()).hexdigest()[:8])
