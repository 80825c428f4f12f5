"""Write the manifest of a version, the last file of its folder."""

import datetime
import secrets

import faiss

from ...configs.errors import CatalogError
from ..storage.store import Store
from ..versions.layout import manifest_name, version_folder
from ..versions.manifest import Manifest, ManifestDraft, disagreement


def write_manifest(store: Store, draft: ManifestDraft) -> Manifest:
    """Write the manifest of a version. The draft's `files` have their full names in the store.

    Raises:
        CatalogError: If the manifest contradicts itself. Readers would refuse it.
    """
    prefix = version_folder(draft.version) + "/"
    files = [file.model_copy(update={"name": file.name.removeprefix(prefix)}) for file in draft.files]
    manifest = Manifest(
        **{
            **dict(draft),
            "files": tuple(sorted(files, key=lambda file: file.name)),
            "indexes": tuple(sorted(draft.indexes, key=lambda index: index.kind)),
            "timings_s": {name: round(seconds, 3) for name, seconds in draft.timings_s.items()},
        },
        created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        nonce=secrets.token_hex(8),
        faiss_version=faiss.__version__,
    )
    if (problem := disagreement(manifest)) is not None:
        raise CatalogError(
            f"{store.url}: the manifest of version {draft.version} contradicts itself: {problem}. "
            "Nothing was published. Please report this bug."
        )
    store.write(manifest_name(draft.version), manifest.to_bytes())
    return manifest
