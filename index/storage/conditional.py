"""Conditional writes of object stores: only if the object does not exist, or only if it is unchanged.

This module has the differences between the stores; `Store.swap` is the protocol on top. For other stores, `Store.swap`
compares and writes in two steps.
"""

from typing import Any


def has_conditions(fs: Any) -> bool:
    """Whether this module supports conditional writes of the file system: S3, GCS and Azure."""
    return _family(fs) is not None


def tag_of(fs: Any, path: str) -> str | None:
    """Return the etag or generation of an object, or None if there is no such object.

    Raises:
        OSError: If the store does not answer. Other errors of its driver are not converted.
    """
    try:
        if _family(fs) == "gcs":  # one request; `info` of gcsfs sends two, for an object and for a prefix
            bucket, name, _ = fs.split_path(path)
            return str(fs.call("GET", "b/{}/o/{}", bucket, name, json_out=True)["generation"])
        return str(fs.info(path)["ETag" if _family(fs) == "s3" else "etag"])
    except (FileNotFoundError, KeyError):  # a prefix of other objects has no tag
        return None


def write_if(fs: Any, path: str, data: bytes, tag: str | None) -> None:
    """Write the object in one request if it still has this `tag`, or with None if it does not exist.

    After any error, read the object back: the write may have succeeded. For example, the answer is lost, the client
    retries, and the store refuses the retry.
    """
    if not data:
        raise ValueError(f"{path}: the data must not be empty. Some clients write empty objects without the condition.")
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
    """Whether the store refused the write because of the condition, and not for another reason."""
    response = getattr(error.__cause__, "response", None)
    reported = response.get("Error", {}) if isinstance(response, dict) else {}
    codes = {str(reported.get("Code", "")), str(getattr(error, "status_code", ""))}
    return isinstance(error, FileExistsError) or bool(codes & {"PreconditionFailed", "412"})


def _family(fs: Any) -> str | None:
    """Return the store family of a file system, or None for others."""
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    families = {"s3": "s3", "gs": "gcs", "abfs": "azure"}
    return next((family for name, family in families.items() if name in protocols), None)


def _write_gcs(fs: Any, path: str, data: bytes, tag: str | None) -> None:
    """Send the upload request of gcsfs with a condition, since gcsfs supports creation but no swap."""
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
