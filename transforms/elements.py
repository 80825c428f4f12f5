"""The elements of the public transforms: named tuples with a schema, which Beam YAML and other languages can read.

All fields are of types that a `RowCoder` encodes, the same value always as the same bytes, so that elements can be
compared, grouped and sent between languages. After a shuffle in another process, Beam may return a named tuple with the
same fields and another class; read fields, and do not test for a class.

Fields that may be None are `Optional[…]`: Beam gives `… | None` a coder of its own and no type in the schema.
"""

# ruff: noqa: UP045

import datetime
import json
import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

import apache_beam as beam
import numpy as np
from apache_beam.coders import RowCoder, registry
from apache_beam.typehints import typehints
from apache_beam.typehints.row_type import RowTypeConstraint

from ..configs.errors import ArgumentError
from ..index.versions.layout import KINDS

MetadataValue = str | int | float | bool | datetime.date | datetime.datetime | None
"""A value of an asset's metadata; dates and times become ISO 8601 strings."""


class Asset(NamedTuple):
    """An image or a text to embed. It has exactly one of `text`, `content` and `uri`.

    Create assets with `Asset.of_text` and `Asset.of_image`, which check their arguments.

    >>> asset = Asset.of_text("p1", "red ceramic mug", metadata={"price": 12.5})
    >>> asset.kind, asset.metadata
    ('text', '{"price":12.5}')
    """

    id: str
    """Unique within its kind, not empty."""
    kind: str
    """`image` or `text`."""
    uri: Optional[str] = None
    """Where the worker that embeds the asset reads it: an absolute path or an fsspec URL."""
    text: Optional[str] = None
    """The text itself."""
    content: Optional[bytes] = None
    """The bytes of the image file, or of a text."""
    fingerprint: Optional[str] = None
    """Changes when the content may have changed (an ETag, a revision); None: unknown."""
    metadata: Optional[str] = None
    """A JSON object with sorted keys. It travels with the asset and is not sent to the API."""
    size_bytes: Optional[int] = None
    """Size of the file at `uri`, in bytes, as it was listed; None: unknown."""
    source: Optional[str] = None
    """Set by `ReadAssets` only: a JSON object with the settings of the source, by which `uri` is read."""

    @classmethod
    def of_text(
        cls,
        id: str,  # noqa: A002 - the name of the field
        text: str,
        *,
        metadata: Mapping[str, MetadataValue] | None = None,
        fingerprint: str | None = None,
    ) -> "Asset":
        """Return a text.

        An empty or too long text is allowed here: it becomes a dead asset, which does not stop the pipeline.

        Raises:
            ArgumentError: When an argument has the wrong type, or the id is empty.
        """
        place = f"Asset {id!r:.80}"
        if not isinstance(text, str):
            raise ArgumentError(f"{place}: text must be a str, got {type(text).__name__}.")
        content = None if _is_unicode(text) else text.encode("utf-8", "surrogatepass")
        asset = cls(
            id=id,
            kind="text",
            text=text if content is None else None,
            content=content,  # a RowCoder cannot encode it as text; it becomes a dead asset (not_utf8)
            fingerprint=fingerprint,
            metadata=None if metadata is None else metadata_json(metadata, place),
        )
        return check_asset(asset)

    @classmethod
    def of_image(
        cls,
        id: str,  # noqa: A002 - the name of the field
        content: bytes | None = None,
        *,
        uri: str | None = None,
        metadata: Mapping[str, MetadataValue] | None = None,
        fingerprint: str | None = None,
    ) -> "Asset":
        """Return an image, either its file's bytes or where the file is.

        Args:
            id: Unique within the images.
            content: The bytes of the file in any format that `prepare.formats` allows.
            uri: An absolute path or an fsspec URL, read where the image is embedded. Nothing is read here.
            metadata: Values that travel with the asset.
            fingerprint: Changes when the content may have changed.

        Raises:
            ArgumentError: When an argument has the wrong type, the id is empty, or not exactly one of `content` and
                `uri` is given.
        """
        if isinstance(content, (bytearray, memoryview)):
            content = bytes(content)
        if (content is None) == (uri is None):
            given = "none" if uri is None else "both"
            raise ArgumentError(f"Asset {id!r:.80}: an image must have exactly one of content and uri, got {given}.")
        if uri == "":
            raise ArgumentError(f"Asset {id!r:.80}: uri must not be empty.")
        asset = cls(
            id=id,
            kind="image",
            uri=uri,
            content=content,
            fingerprint=fingerprint,
            metadata=None if metadata is None else metadata_json(metadata, f"Asset {id!r:.80}"),
        )
        return check_asset(asset)


class EmbeddedAsset(NamedTuple):
    """An asset with its vector. The content of an image is not part of it."""

    id: str
    """As in the asset."""
    kind: str
    """`image` or `text`."""
    uri: Optional[str]
    """As in the asset."""
    text: Optional[str]
    """The text that was embedded; None for an image."""
    content_sha256: str
    """SHA-256 of the original bytes, as 64 hexadecimal digits."""
    fingerprint: Optional[str]
    """As in the asset."""
    media_type: Optional[str]
    """Of the original bytes, such as `image/png`; `text/plain` for a text."""
    size_bytes: Optional[int]
    """Size of the original content in bytes."""
    width: Optional[int]
    """Of the original image, in pixels; None for a text."""
    height: Optional[int]
    """Of the original image, in pixels; None for a text."""
    prepared: Optional[str]
    """What was changed before the image was sent; None: nothing."""
    metadata: Optional[str]
    """As in the asset."""
    embedding: Sequence[np.float32]
    """The vector: a sequence of `float`, each a float32 value, with norm 1. The schema's type is an array of FLOAT.

    `EmbedAssets` returns one over an array, which `numpy.asarray` reads without a copy; a shuffle turns it into a list.
    `list(embedding)` is a list in both cases, for example for JSON.
    """
    made_by: Optional[str] = None
    """What made the vector: a JSON object with `model`, `dimension`, `dialect`, `input_type` where the dialect has one,
    and `server` (the fingerprint of an emulator, or null). Set it to None if you change the vector; None: unknown."""


class DeadAsset(NamedTuple):
    """An asset without a vector, and the reason."""

    id: str
    """As in the asset."""
    kind: str
    """`image` or `text`."""
    uri: Optional[str]
    """As in the asset."""
    stage: str
    """Where it failed: `list`, `read`, `prepare` or `embed`."""
    reason: str
    """From a closed list (`epithre_beam.index.Reason`), such as `missing` or `refused`."""
    detail: str
    """One short sentence, without payload and secrets."""
    attempts: int
    """Requests with this asset that were sent; 0: it was never sent."""


class EmbedResult(NamedTuple):
    """The output of `EmbedAssets`. Each asset is in one of the two."""

    embedded: beam.PCollection[EmbeddedAsset]
    """The assets with vectors."""
    dead: beam.PCollection[DeadAsset]
    """The assets without, each with its reason."""


_ELEMENTS = (Asset, EmbeddedAsset, DeadAsset)
log = logging.getLogger("epithre_beam.transforms")
_NOTHING = "A function of beam.Map must return an asset; one of beam.FlatMap may return none."
_CLASS = re.compile(r"<class '(?:[\w]+\.)*(\w+)'>|(?:[\w]+\.)+(?=\w)")
"""How Beam spells classes within types."""
for _element in _ELEMENTS:
    registry.register_coder(_element, RowCoder)


def metadata_json(metadata: Mapping[str, MetadataValue], place: str) -> str:
    """Return metadata as a JSON object with sorted keys: equal metadata is equal text.

    Raises:
        ArgumentError: When a key is not a str, or a value is not a `MetadataValue` or not finite.
    """
    if not isinstance(metadata, Mapping):
        raise ArgumentError(f"{place}: metadata must be a mapping, got {type(metadata).__name__}.")
    values: dict[str, str | int | float | bool | None] = {}
    for name, value in metadata.items():
        if not isinstance(name, str):
            raise ArgumentError(f"{place}: the keys of metadata must be str, got {name!r:.80}.")
        if isinstance(value, datetime.date):  # also datetime.datetime
            values[name] = value.isoformat()
        elif value is None or isinstance(value, (str, int, float)):
            values[name] = value
        else:
            raise ArgumentError(
                f"{place}: metadata[{name!r}] must be a str, int, float, bool, date, datetime or None, "
                f"got {type(value).__name__}. Convert it, for example with str() or float()."
            )
    try:
        text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ArgumentError(f"{place}: the numbers of metadata must be finite.") from error
    if not _is_unicode(text):
        raise ArgumentError(f"{place}: metadata must be text that UTF-8 can encode.")
    return text


def warn_of_empty(types: Iterable[str], filled: Iterable[Collection[str]], label: str) -> None:
    """Log a warning for each name of metadata that no asset has: it may be misspelt.

    Args:
        types: The names.
        filled: The names that assets have, from each part of them.
        label: The transform, for messages.
    """
    for name in sorted(set(types).difference(*filled)):
        log.warning("%s: no asset has metadata %r, so its column is empty. Check the name.", label, name)


def problem_of(asset: Asset) -> str | None:
    """Return why an asset cannot be embedded by anyone, as the rest of a sentence; None if nothing is wrong."""
    for name in ("id", "kind"):
        if not isinstance(value := getattr(asset, name), str):
            return f"{name} must be a str, got {type(value).__name__}"
    for name in ("uri", "text", "fingerprint", "metadata", "source"):
        if not isinstance(value := getattr(asset, name), (str, type(None))):
            return f"{name} must be a str, got {type(value).__name__}"
    if not isinstance(asset.content, (bytes, type(None))):
        hint = " For a path or URL use `uri`; decode base64 first" if isinstance(asset.content, str) else ""
        return f"content must be bytes, got {type(asset.content).__name__}.{hint}".removesuffix(".")
    if not asset.id:
        return "id must not be empty"
    if not _is_unicode(asset.id) or not _is_unicode(asset.uri or ""):
        return "id and uri must be text that UTF-8 can encode"
    if asset.kind not in KINDS:
        return f"kind must be image or text, got {asset.kind!r:.80}"
    given = [name for name in ("text", "content", "uri") if getattr(asset, name) is not None]
    allowed = ("content", "uri") if asset.kind == "image" else ("text", "content", "uri")
    # Without any, as from an empty cell of a table, it becomes a dead asset when it is read.
    if given and (len(given) > 1 or given[0] not in allowed):
        return f"an asset of kind {asset.kind} must have exactly one of {', '.join(allowed)}, got {given}"
    if asset.uri and asset.source is None and not _is_absolute(asset.uri):
        return f"uri must be an absolute path or a URL, got {asset.uri!r:.80}. Workers have other working folders"
    return None


def _is_absolute(uri: str) -> bool:
    return uri.startswith("/") or Path(uri).is_absolute() or "://" in uri


def check_asset(asset: Asset) -> Asset:
    """Return the asset if nothing is wrong with it.

    Raises:
        ArgumentError: With the id, the rule and the value.
    """
    if (problem := problem_of(asset)) is not None:
        raise ArgumentError(f"Asset {asset.id!r:.80}: {problem}.")
    return asset


def to_asset(element: Any) -> Asset:
    """Convert an `Asset`, a `beam.Row`, or a named tuple with fields of an asset. Other fields are ignored.

    Raises:
        ArgumentError: When the element is something else, or nonsense.
    """
    if isinstance(element, Asset):
        return check_asset(element)
    names = getattr(element, "_fields", None) or (element.as_dict() if isinstance(element, beam.Row) else None)
    if names is None or "id" not in names or "kind" not in names:
        raise ArgumentError(
            f"An element must be an Asset, or a beam.Row with its fields, got {type(element).__name__}. "
            + (_NOTHING if element is None else "Create it with Asset.of_text or Asset.of_image.")
        )
    return check_asset(Asset(**{name: getattr(element, name) for name in Asset._fields if name in names}))


def as_assets(elements: beam.PCollection, label: str) -> beam.PCollection[Asset]:
    """Return the elements as assets. What can be checked without them is checked now, the rest of it at run time.

    Args:
        elements: PCollection of `Asset`, of `beam.Row`, or of an unknown type.
        label: The transform, for messages.

    Raises:
        ArgumentError: When the type of the elements is known, and not that of assets.
    """
    check_elements(elements, Asset, label)
    return elements | "ToAssets" >> beam.Map(to_asset).with_output_types(Asset)


def check_elements(
    elements: Any, wanted: type, label: str, *, needed: Collection[str] | None = None, create: str | None = None
) -> None:
    """Check when a pipeline is built that a transform gets the elements that it takes.

    Args:
        elements: The input of the transform.
        wanted: `Asset`, `EmbeddedAsset`, `DeadAsset` or another named tuple.
        label: The transform, for messages.
        needed: The fields that a row has at least. None: those of the first three.
        create: What to do about other elements, for messages.

    Raises:
        ArgumentError: When it is not a PCollection, or the type of its elements is known, and another one.
    """
    name = wanted.__name__
    if not isinstance(elements, beam.PCollection):
        field = next((field for field in ("embedded", "assets") if hasattr(elements, field)), None)
        hint = "" if field is None else f" Pass its field `{field}`."
        if isinstance(elements, beam.pvalue.PBegin):
            hint = " Apply it to the output of another step, and not to the pipeline."
        raise ArgumentError(f"{label} takes a PCollection of {name}, got {type(elements).__name__}.{hint}")
    given = elements.element_type
    if given in (None, beam.Row) or given == typehints.Any or typehints.is_consistent_with(given, wanted):
        return
    if needed is None:
        needed = {"id", "kind", "embedding"} if wanted is EmbeddedAsset else {"id", "kind"}
    is_row = isinstance(given, RowTypeConstraint)
    row = given if is_row else RowTypeConstraint.from_user_type(given)
    if row is not None and given not in _ELEMENTS and {field[0] for field in row._fields}.issuperset(needed):
        return
    absent = sorted(set(needed) - {field[0] for field in row._fields}) if row is not None else []
    shown = "Row" if is_row else _CLASS.sub(r"\1", getattr(given, "__name__", str(given)))
    if absent and given not in _ELEMENTS:
        shown += f" without {' and '.join(absent)}"
    raise ArgumentError(
        f"{label} takes a PCollection of {name}, got one of {shown}. {create or _advice(given, wanted)}"
    )


def _advice(given: Any, wanted: type) -> str:
    """Return what to do about elements of another type."""
    if isinstance(given, typehints.IterableTypeConstraint | typehints.ListConstraint):
        return "If each element is a list of them, use beam.FlatMap instead of beam.Map before this step."
    if wanted is Asset:
        return "Map its elements with Asset.of_text or Asset.of_image first."
    if wanted is DeadAsset:
        return "Pass `dead` of the result of EmbedAssets."
    return "Pass `embedded` of the result of EmbedAssets, or beam.Row(id=…, kind=…, embedding=…) for your own vectors."


def as_row(element: Any, label: str) -> Mapping[str, Any]:
    """Return the fields of an `EmbeddedAsset`, of a `beam.Row`, or of a named tuple with fields of an embedded asset.

    Raises:
        ArgumentError: When the element is something else, or lacks `id`, `kind` or `embedding`.
    """
    row: Mapping[str, Any] | None = None
    if isinstance(element, beam.Row):
        row = element.as_dict()
    elif hasattr(element, "_asdict"):
        row = element._asdict()
    if row is None or not {"id", "kind", "embedding"} <= row.keys():
        raise ArgumentError(
            f"{label} takes elements of type EmbeddedAsset, or beam.Row with its fields, got {type(element).__name__}."
        )
    return row


def _is_unicode(text: str) -> bool:
    """Whether UTF-8 can encode a text: it has no lone surrogate."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)
