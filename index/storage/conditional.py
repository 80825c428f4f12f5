"""Writes that an object store does only on a condition: that there is no such object, or that it is still the one seen.

Here stands what differs between the stores; `Store.swap` is the protocol over it. A store without conditional writes
here gets the two steps of `Store.swap`, compare and write.
"""

from typing import Any


def has_conditions(fs: Any) -> bool:
    """Whether this file system's conditional writes are known here: those of S3, GCS and Azure."""
    return _family(fs) is not None


def tag_of(fs: Any, path: str) -> str | None:
    """What the store calls this state of the object (etag or generation), or None when there is no such object.

    Raises:
        OSError: When the store does not say; other errors of its driver pass through.
    """
    try:
        if _family(fs) == "gcs":  # in one request; its `info` asks in two whether it is an object or a prefix of some
            bucket, name, _ = fs.split_path(path)
            return str(fs.call("GET", "b/{}/o/{}", bucket, name, json_out=True)["generation"])
        return str(fs.info(path)["ETag" if _family(fs) == "s3" else "etag"])
    except (FileNotFoundError, KeyError):  # a prefix of other objects has no tag and is no object
        return None


def write_if(fs: Any, path: str, data: bytes, tag: str | None) -> None:
    """One request that writes the object if it still has this `tag`; None: if there is no such object.

    Any error may hide a write that was done: an answer is lost, the client asks again, and is refused. Read back.
    """
    if not data:
        raise ValueError(f"{path} must not be empty: some clients write an empty object without its condition.")
    match _family(fs):
        case "gcs":
            _write_gcs(fs, path, data, tag)
        case "azure" if tag is not None:
            from azure.core import MatchConditions

            fs.pipe_file(path, data, etag=tag, match_condition=MatchConditions.IfNotModified)
        case _ if tag is not None:
            fs.pipe_file(path, data, IfMatch=tag)
        case _:
            fs.pipe_file(path, data, mode="create")


def is_refusal(error: BaseException) -> bool:
    """Whether the store says that the condition did not hold, and not that it was away, busy or forbidden."""
    response = getattr(error.__cause__, "response", None)
    reported = response.get("Error", {}) if isinstance(response, dict) else {}
    codes = {str(reported.get("Code", "")), str(getattr(error, "status_code", ""))}
    return isinstance(error, FileExistsError) or bool(codes & {"PreconditionFailed", "412"})


def _family(fs: Any) -> str | None:
    """Which store's words this file system's driver speaks."""
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    families = {"s3": "s3", "gs": "gcs", "abfs": "azure"}
    return next((family for name, family in families.items() if name in protocols), None)


def _write_gcs(fs: Any, path: str, data: bytes, tag: str | None) -> None:
    """The request of gcsfs itself, with the condition: it knows creation, and has no name for a swap."""
    bucket, name, _ = fs.split_path(path)
    fs.call(
        "POST",
        fs.base.replace("/storage/v1/", "/upload/storage/v1/") + "b/{}/o",
        bucket,
        uploadType="media",
        name=name,
        ifGenerationMatch=tag or "0",
        headers={"Content-Type": "application/octet-stream"},
        data=data,
    )
