"""Which job a catalog belongs to, and whether a run is of that job.

A name decides. Without names a job is known by its sources, and where those are others, by the assets that they list:
a job that moved to another folder lists what the catalog has, another job does not.
"""

import hashlib
from collections.abc import Callable
from urllib.parse import urlsplit

from ...configs import RunConfig
from ...index.versions.manifest import JobIdentity, Manifest
from .compare import Overlap

_SHARED = 0.1
"""Of the smaller of listing and version. Less is another job; what is between this and all is left to the guards."""
_SHOWN = 3


def identity_of(config: RunConfig) -> JobIdentity:
    """The identity of a run."""
    sources = (f"{source.kind} {_place(source.files or source.table or '')}" for source in config.sources)
    return JobIdentity(name=config.job, sources=tuple(sorted(set(sources))))


def identity_of_import(name: str | None, folder: str) -> JobIdentity:
    """The identity of vectors from elsewhere.

    Args:
        name: The job's name, if it has one.
        folder: Where the vectors are, as an absolute path or a URL.
    """
    return JobIdentity(name=name, sources=(f"vectors {_place(folder)}",))


def other_job(catalog: str, current: Manifest | None, job: JobIdentity, overlap: Callable[[], Overlap]) -> str | None:
    """Why a run may not write a catalog, as a sentence without its end; None when it may.

    Args:
        catalog: Its URL.
        current: The manifest of the current version; None when there is none that can be read.
        job: Of the run.
        overlap: How much of what the run lists the current version has; called only where it decides.
    """
    before = None if current is None else current.job
    if current is None or before is None or not sum(current.counts.per_kind.values()):
        return None
    if before.name is not None and job.name is not None:
        if before.name == job.name:
            return None
        return f"{catalog} belongs to the job {_words(before)}, and this is the job {_words(job)}"
    if set(before.sources) <= set(job.sources):
        return None
    found = overlap()
    if found.shared and found.shared >= _SHARED * min(found.listed, found.rows):
        return None
    return (
        f"{catalog} belongs to the job {_words(before)}, and this is another job, {_words(job)}, which lists "
        f"{found.shared:,} of its {found.rows:,} assets"
    )


def _words(job: JobIdentity) -> str:
    shown = ", ".join(job.sources[:_SHOWN])
    more = f" and {len(job.sources) - _SHOWN} more" if len(job.sources) > _SHOWN else ""
    return f"{job.name} ({shown}{more})" if job.name else f"{shown}{more}"


def _place(location: str) -> str:
    """A location without what may be a signature: of a URL's query only a hash stays."""
    location = location.removeprefix("file://")
    if "://" not in location or not (query := urlsplit(location).query) or not location.startswith("http"):
        return location
    return location.replace(query, hashlib.sha256(query.encode()).hexdigest()[:8])
