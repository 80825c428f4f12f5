"""Writes that an object store does only on a condition: that there is no such object, or that it is still the one seen.

Here stands what differs between the stores; `Store.swap` is the protocol over it. A store without conditional writes
here gets the two steps of `Store.swap`, compare and write.
"""

from typing import Any


def has_conditions(fs: Any) -> bool:
    """Whether this file system's conditional writes are known here: S3's today."""
    return "s3" in ([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol)


def tag_of(fs: Any, path: str) -> str | None:
    """The object's etag, or None when there is no such object.

    Raises:
        OSError: When the store does not say; other errors of its driver pass through.
    """
    try:
        return str(fs.info(path)["ETag"])
    except (FileNotFoundError, KeyError):  # a prefix of other objects has no etag and is no object
        return None


def write_if(fs: Any, path: str, data: bytes, tag: str | None) -> None:
    """One request that writes the object if it still has this `tag`; None: if there is no such object.

    Any error may hide a write that was done: an answer is lost, the client asks again, and is refused. Read back.
    """
    if not data:
        raise ValueError(f"{path} must not be empty: some clients write an empty object without its condition.")
    if tag is None:
        fs.pipe_file(path, data, mode="create")
    else:
        fs.pipe_file(path, data, IfMatch=tag)


def is_refusal(error: BaseException) -> bool:
    """Whether the store says that the condition did not hold, and not that it was away, busy or forbidden."""
    response = getattr(error.__cause__, "response", None) or {}
    code = str(response.get("Error", {}).get("Code", ""))
    return isinstance(error, FileExistsError) or code in {"PreconditionFailed", "412"}
