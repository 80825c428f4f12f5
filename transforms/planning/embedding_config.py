"""The hash of the settings that determine a vector, and whether the vectors of a version can be reused."""

import hashlib

import orjson

from ...configs import CatalogConfig, EmbedConfig, PrepareConfig
from ...configs.schema import stored_prepare
from ...index.versions.layout import PREPARE_RULES
from ...index.versions.manifest import MadeBy, Manifest
from ..epithre.dialects import DIALECTS

_PREPARE_OF_FIRST_RULES = (
    "formats", "send_formats", "check", "max_file_bytes", "max_decode_pixels", "decode_timeout_s", "max_pixels",
    "max_image_bytes", "jpeg_quality", "max_text_chars",
)  # fmt: skip
"""The fields of `prepare` in the unit hash of the first preparation rules."""


def embedding_config_hash(embed: EmbedConfig, prepare: PrepareConfig, fingerprint: str | None) -> str:
    """Return the hash of everything except the asset that determines a vector: model, request, preparation.

    The address, the rate limits and settings at their default are not included, so that adding a setting does not
    invalidate vectors. The fingerprint of an emulator is included, so that its vectors are never used as the API's.
    """
    return _hash([_request(embed, fingerprint), prepare.model_dump(mode="json", exclude_defaults=True), PREPARE_RULES])


def request_config_hash(embed: EmbedConfig, fingerprint: str | None) -> str:
    """Return the hash of model and request. Units store it; each of their rows stores its preparation."""
    return _hash([_request(embed, fingerprint)])


def made_by_json(embed: EmbedConfig, fingerprint: str | None) -> str:
    """Return model and request as a JSON object with sorted keys. A vector is reused by equal ones only."""
    return orjson.dumps(_request(embed, fingerprint), option=orjson.OPT_SORT_KEYS).decode()


def first_embedding_config_hash(embed: EmbedConfig, prepare: PrepareConfig, fingerprint: str | None) -> str:
    """Return the hash in units of the first preparation rules, whose rows do not store the settings."""
    stated = prepare.model_dump(mode="json")
    return _hash([_request(embed, fingerprint), {name: stated[name] for name in _PREPARE_OF_FIRST_RULES}])


def _request(embed: EmbedConfig, fingerprint: str | None) -> dict[str, object]:
    request = {"dialect": embed.dialect, "model": embed.model, "dimension": embed.dimension, "server": fingerprint}
    if (input_type := DIALECTS[embed.dialect](embed).document_type) is not None:
        request["input_type"] = input_type
    return request


def _hash(value: object) -> str:
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()


def differences(manifest: Manifest, config: CatalogConfig, fingerprint: str | None) -> list[str]:
    """Return the reasons why a run may not reuse a version's vectors, one clause each; empty when it may.

    The preparation is not checked here, but for each row (transforms/sources/effective.py).
    """
    found = []
    made_by = MadeBy(config.embed.model, fingerprint, config.embed.dimension)
    for name, before, after in manifest.made_by.differences(made_by):
        if name == "model_fingerprint":
            came, comes = before or "the API itself", after or "the API itself"
            found.append(f"the vectors are from {came}, and the run uses {comes}")
        else:
            found.append(f"embed.{name} was {before!r} and is {after!r}")
    then, now = manifest.config.get("embed", {}), config.embed.model_dump(mode="json")
    found += [
        f"embed.{name} was {then.get(name)!r} and is {now[name]!r}"
        for name in ("dialect", "input_type")
        if then.get(name) != now[name]
    ]
    if stored_prepare(manifest.config) is None:
        found.append("the version's prepare settings cannot be read")
    stored = manifest.config.get("index", {}).get("vector_type")
    if stored not in {config.index.vector_type, "float32"}:
        found.append(f"index.vector_type was {stored} and is {config.index.vector_type}, which needs more bits")
    return found
