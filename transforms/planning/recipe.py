"""What decides a vector besides the asset, and whether a version's vectors were made so."""

import hashlib

import orjson

from ...configs import CatalogConfig, EmbedConfig, PrepareConfig
from ...index.versions.manifest import MadeBy, Manifest
from ..epithre.dialects import DIALECTS


def recipe(embed: EmbedConfig, prepare: PrepareConfig, fingerprint: str | None) -> str:
    """The hash of all but the asset that decides a vector: model, request, preparation.

    Where the server is and how fast it may be asked is not part of it. An emulator's fingerprint is, so that its
    vectors never pass for the API's.
    """
    request = {"dialect": embed.dialect, "model": embed.model, "dimension": embed.dimension, "server": fingerprint}
    if (input_type := DIALECTS[embed.dialect](embed).document_type) is not None:
        request["input_type"] = input_type
    data = orjson.dumps([request, prepare.model_dump(mode="json")], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(data).hexdigest()


def differences(manifest: Manifest, config: CatalogConfig, fingerprint: str | None) -> list[str]:
    """Why a version's vectors may not be taken over by this run, a sentence each; none when they may."""
    found = []
    made_by = MadeBy(config.embed.model, fingerprint, config.embed.dimension)
    for name, before, after in manifest.made_by.differences(made_by):
        if name == "model_fingerprint":
            came, comes = before or "the API itself", after or "the API itself"
            found.append(f"the vectors came from {came} and would come from {comes}")
        else:
            found.append(f"embed.{name} was {before!r} and is {after!r}")
    for section, names in (("embed", ("dialect", "input_type")), ("prepare", tuple(PrepareConfig.model_fields))):
        then, now = manifest.config.get(section, {}), getattr(config, section).model_dump(mode="json")
        found += [
            f"{section}.{name} was {then.get(name)!r} and is {now[name]!r}"
            for name in names
            if then.get(name) != now[name]
        ]
    stored = manifest.config.get("index", {}).get("vector_type")
    if stored not in {config.index.vector_type, "float32"}:
        found.append(f"index.vector_type was {stored} and is {config.index.vector_type}, which needs more bits")
    return found
