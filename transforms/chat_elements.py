"""The elements of `ChatAssets`: rows with fields and images, answers, and rows without an answer."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import orjson
from apache_beam.coders import RowCoder, registry

from ..configs.errors import ArgumentError

# `X | None` would do in Python; Beam's RowCoder wants Optional.


class ChatRow(NamedTuple):
    """A row that is asked about. Create it with `ChatRow.of`."""

    id: str
    """Comes back with the answer."""
    fields: str
    """A JSON object: what the prompt's template may use."""
    images: Sequence[bytes] | None = None
    """Image files, in the order in which they are sent."""
    uris: Sequence[str] | None = None
    """Absolute paths or URLs of images, which are read where the row is asked about; after `images`."""
    source: str | None = None
    """Set by the library only: the settings of the source, by which uris are read."""

    @classmethod
    def of(
        cls,
        id: str,  # noqa: A002 - the name of the field
        fields: Mapping[str, Any] | None = None,
        *,
        images: Sequence[bytes | str] = (),
    ) -> "ChatRow":
        """Return a row.

        Args:
            id: Comes back with the answer.
            fields: What the template may use, by name: texts, numbers, booleans, None, dates, and lists and mappings
                of them. `id` is added.
            images: The bytes of image files, or absolute paths and URLs of images; not both in one row.

        Raises:
            ArgumentError: When an argument has the wrong type.
        """
        place = f"ChatRow {id!r:.80}"
        if not isinstance(id, str) or not id:
            raise ArgumentError(f"{place}: id must be a str that is not empty.")
        given = dict(fields or {})
        if bad := [name for name in given if not isinstance(name, str)]:
            raise ArgumentError(f"{place}: the names of fields must be str, got {bad[0]!r:.80}.")
        try:
            text = orjson.dumps({"id": id, **given}, option=orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY).decode()
        except (TypeError, ValueError) as error:
            raise ArgumentError(f"{place}: fields must be JSON ({error}). Convert the value first.") from None
        if isinstance(images, (str, bytes)):
            raise ArgumentError(f"{place}: images must be a list, got {type(images).__name__}.")
        contents = [image for image in images if isinstance(image, bytes)]
        uris = [image for image in images if isinstance(image, str)]
        if len(contents) + len(uris) != len(images) or (contents and uris):
            raise ArgumentError(f"{place}: images must be all bytes or all paths and URLs.")
        return cls(id=id, fields=text, images=contents or None, uris=uris or None)


class ChatAnswer(NamedTuple):
    """The answer of the model to a row."""

    id: str
    """As in the row."""
    answer: str
    """What the model answered."""
    parsed: str | None
    """The answer as a JSON object of the schema; None without a schema."""
    finish_reason: str
    """`stop`, or another word of the server."""
    model: str
    """As the server names it."""
    emulator: str | None
    """The fingerprint of the emulator that answered; None for any other server."""
    input_tokens: int
    """Of all requests for the answer, as billed; estimated if the server states none."""
    output_tokens: int
    """As `input_tokens`."""
    cost: float | None
    """Of this pipeline, at the configured prices; None without prices."""
    requests: int
    """Requests of this pipeline with an answer: more than 1 if an answer was repaired, 0 if it is from the cache."""
    request_sha256: str
    """Hash of all that decides about the answer: model, settings, prompt, images and schema."""


class DeadChatRow(NamedTuple):
    """A row without an answer, and the reason."""

    id: str
    """As in the row."""
    stage: str
    """Where it failed: `prompt`, `read`, `prepare`, `send` or `answer`."""
    reason: str
    """From a closed list, such as `not_of_the_schema`, `refused_by_model` or `missing`."""
    detail: str
    """One short sentence, without payload and secrets."""
    attempts: int
    """Requests that were sent for it; 0: none."""
    answer: str | None
    """What the model answered, if it did."""


class ChatResult(NamedTuple):
    """The output of `ChatAssets`. Each row is in one of the two."""

    answered: beam.PCollection[ChatAnswer]
    """The rows with answers."""
    dead: beam.PCollection[DeadChatRow]
    """The rows without, each with its reason."""


for _element in (ChatRow, ChatAnswer, DeadChatRow):
    registry.register_coder(_element, RowCoder)
