"""What decides a vector besides the asset, and whether a version's vectors were made so."""

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
"""What stood in the hash of a unit when all of `prepare` did."""


def embedding_config_hash(embed: EmbedConfig, prepare: PrepareConfig, fingerprint: str | None) -> str:
    """The hash of all but the asset that decides a unit's vectors: model, request, preparation.

    Where the server is and how fast it may be asked is not part of it, nor is a setting at its default: a new one makes
    nothing new. An emulator's fingerprint is, so that its vectors never pass for the API's.
    """
    return _hash([_request(embed, fingerprint), prepare.model_dump(mode="json", exclude_defaults=True), PREPARE_RULES])


def request_config_hash(embed: EmbedConfig, fingerprint: str | None) -> str:
    """The hash of model and request: units say it, and each of their rows says how it was prepared."""
    return _hash([_request(embed, fingerprint)])


def first_embedding_config_hash(embed: EmbedConfig, prepare: PrepareConfig, fingerprint: str | None) -> str:
    """What units of the first rules of preparation say: their rows do not say the settings."""
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
    """Why a version's vectors may not be taken over by this run, a sentence each; none when they may.

    How they were prepared is not among it: that is looked at row by row (transforms/sources/effective.py).
    """
    found = []
    made_by = MadeBy(config.embed.model, fingerprint, config.embed.dimension)
    for name, before, after in manifest.made_by.differences(made_by):
        if name == "model_fingerprint":
            came, comes = before or "the API itself", after or "the API itself"
            found.append(f"the vectors came from {came} and would come from {comes}")
        else:
            found.append(f"embed.{name} was {before!r} and is {after!r}")
    then, now = manifest.config.get("embed", {}), config.embed.model_dump(mode="json")
    found += [
        f"embed.{name} was {then.get(name)!r} and is {now[name]!r}"
        for name in ("dialect", "input_type")
        if then.get(name) != now[name]
    ]
    if stored_prepare(manifest.config) is None:
        found.append("the version's settings of prepare cannot be read")
    stored = manifest.config.get("index", {}).get("vector_type")
    if stored not in {config.index.vector_type, "float32"}:
        found.append(f"index.vector_type was {stored} and is {config.index.vector_type}, which needs more bits")
    return found
