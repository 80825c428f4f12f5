"""Object stores through fsspec drivers: connections, conversion of errors, and paged listings."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import fsspec
from fsspec.asyn import sync

from ...configs.errors import ArgumentError, EpithreBeamError, MissingDriverError
from ...configs.scrubbing import without_credentials

_S3_ATTEMPTS = 4
_DRIVERS = ("adlfs.", "aiobotocore.", "aiohttp.", "azure.", "botocore.", "gcsfs.", "google.auth.", "requests.", "s3fs.")
"""Packages whose errors are storage errors, even if they are not an OSError."""
_REFUSALS = {
    "ClientAuthenticationError",
    "CredentialRetrievalError",
    "CredentialUnavailableError",
    "DefaultCredentialsError",
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "RefreshError",
    "TokenRetrievalError",
    "UnauthorizedSSOTokenError",
}
_EXTRAS = {"s3fs": "s3", "gcsfs": "gcs", "adlfs": "azure"}
_PROTOCOLS = {
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("abfs", "abfss", "adl", "az"), "adlfs"),
    **dict.fromkeys(("http", "https"), "aiohttp"),
}
"""The driver of each protocol."""
_BARE = ("unable to connect to account", "Bad Request: ", "Forbidden: ")
"""Prefixes of messages that drivers raise without a specific error type."""


def connect(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """Return the fsspec file system of `url`, without listing caches and with limited retries, and the path on it.

    A failing request is retried three to seven times within 30 s, by one layer only. By default, the retries of s3fs
    and botocore would multiply, and the Azure client would wait for 90 s.

    Raises:
        MissingDriverError: If the driver of the store is not installed.
        PermissionError: If there are no credentials.
        ArgumentError: If fsspec does not know the protocol.
    """
    # Listing caches have returned deleted files and outdated sizes.
    options = {"use_listings_cache": False, **options}
    _choose_gcsfs()
    is_s3 = fsspec.core.split_protocol(url)[0] in {"s3", "s3a"}
    is_ours = (
        is_s3 and "config_kwargs" not in options and not {"AWS_RETRY_MODE", "AWS_MAX_ATTEMPTS"} & os.environ.keys()
    )
    if is_ours:
        options["config_kwargs"] = {"retries": {"mode": "standard", "total_max_attempts": _S3_ATTEMPTS}}
    try:
        with storage_errors(url):
            fs, path = fsspec.url_to_fs(url, **options)
    except ImportError as error:
        raise _missing_driver(fsspec.core.split_protocol(url)[0] or "file", error) from error
    except ValueError as error:
        if not str(error).startswith("Protocol not known"):
            raise
        raise ArgumentError(f"{url} must be a path, or a URL with a protocol that fsspec supports.") from error
    if is_ours:
        fs.retries = 2
    configuration = getattr(getattr(fs, "service_client", None), "_config", None)
    if (policy := getattr(configuration, "retry_policy", None)) is not None:
        policy.initial_backoff, policy.increment_base, policy.random_jitter_range = 1, 2, 1
    return fs, str(path)


def driver_class(protocol: str) -> Any:
    """Return the file system class of a protocol. Imports the driver, but does not connect.

    Raises:
        MissingDriverError: If the driver is not installed.
        ValueError: If fsspec does not know the protocol.
    """
    _choose_gcsfs()
    try:
        return fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        raise _missing_driver(protocol, error) from error


def _missing_driver(protocol: str, error: ImportError) -> MissingDriverError:
    driver = _PROTOCOLS.get(protocol)
    if driver is None:
        return MissingDriverError(f"The driver of {protocol}:// is not installed: {str(error).rstrip('.')}.")
    missing = getattr(error.__cause__, "name", None) or error.name or driver  # may be a package that the driver needs
    extra = _EXTRAS.get(driver)
    remedy = f"Install the extra `{extra}`, in the checkout: pip install -c constraints.txt '.[{extra}]'"
    return MissingDriverError(f"{missing} is not installed. {remedy if extra else f'Run `pip install {driver}`'}.")


def _choose_gcsfs() -> None:
    """Disable the gRPC lookup of bucket types in gcsfs. Call it before gcsfs is imported.

    The lookup breaks after a fork, and emulators do not answer it.
    """
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")


@contextlib.contextmanager
def storage_errors(place: str) -> Iterator[None]:
    """Convert driver errors to OSErrors with a one-sentence message that names `place`. Others are not changed."""
    try:
        yield
    except Exception as error:
        reported = as_os_error(error, place)
        if reported is error:
            raise
        raise reported from error


def as_os_error(error: Exception, place: str) -> Exception:
    """Convert a driver error to PermissionError, FileNotFoundError or OSError. Return any other error unchanged."""
    text = str(error)
    if isinstance(error, (EpithreBeamError, FileNotFoundError, FileExistsError, PermissionError, ImportError)):
        return error
    # Some drivers wrap the error of their client in a generic error.
    known = [e for e in (error.__cause__, error) if f"{type(e).__module__}.".startswith(_DRIVERS)]
    if not known and not text.startswith(_BARE):
        return error
    statuses = {str(getattr(e, "status_code", "") or getattr(e, "code", "")) for e in known}
    words = without_credentials(f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}")[:200]
    place = without_credentials(place)
    if (
        statuses & {"401", "403"}
        or {type(e).__name__ for e in known} & _REFUSALS
        or text.startswith(("unable to connect to account", "Forbidden: "))
    ):
        return PermissionError(
            f"{place}: access was refused ({words}). Provide credentials where the cloud's own tools look for them"
        )
    if "404" in statuses:
        return FileNotFoundError(f"{place} does not exist ({words}). Create the bucket or container first")
    return error if isinstance(error, OSError) else OSError(f"{place} cannot be used now ({words})")


@dataclass(frozen=True, kw_only=True)
class Page:
    """One page of a listing, sorted by name."""

    files: list[tuple[str, dict[str, Any]]]
    """Path and details of each file: size, and etag or time."""
    folders: list[str]
    """Paths of folders; empty in a flat listing."""
    token: str | None
    """Token of the next page; None on the last page."""


def has_pages(fs: Any) -> bool:
    """Whether `list_page` supports this file system. Others return the whole listing at once."""
    return _page_of(fs) is not None and not getattr(fs, "version_aware", False)


def list_page(fs: Any, folder: str, token: str | None = None, *, is_flat: bool = True) -> Page:
    """List one page of the files below `folder`, in one request.

    Args:
        fs: A file system with `has_pages(fs)`.
        folder: A bucket or container, or a path in it.
        token: Token from the previous page; None for the first page.
        is_flat: Whether to list all files below the folder, and not only its direct content.

    Raises:
        OSError: If the store does not answer; FileNotFoundError if it has no such bucket.
    """
    asked = _page_of(fs)
    if asked is None:
        raise ValueError(f"{type(fs).__name__} does not support paged listings.")
    bucket, name, *_ = fs.split_path(folder)
    prefix = f"{name.rstrip('/')}/" if name.strip("/") else ""
    with storage_errors(folder):
        page: Page = asked(fs, bucket, prefix, token, "" if is_flat else "/")
    return page


def _page_of(fs: Any) -> Any:
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    asked = {"s3": _page_of_s3, "gs": _page_of_gcs, "abfs": _page_of_azure}
    return next((page for name, page in asked.items() if name in protocols), None)


def _page_of_s3(fs: Any, bucket: str, prefix: str, token: str | None, delimiter: str) -> Page:
    more = {"ContinuationToken": token} if token else {}
    answer = fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, Delimiter=delimiter, **more, **fs.req_kw)
    names = ("ETag", "LastModified")
    return Page(
        files=[
            (f"{bucket}/{item['Key']}", {"size": item["Size"], **{key: item[key] for key in names if key in item}})
            for item in answer.get("Contents", [])
            if not item["Key"].endswith("/")
        ],
        folders=[f"{bucket}/{item['Prefix'].rstrip('/')}" for item in answer.get("CommonPrefixes", [])],
        token=answer.get("NextContinuationToken") if answer.get("IsTruncated") else None,
    )


def _page_of_gcs(fs: Any, bucket: str, prefix: str, token: str | None, delimiter: str) -> Page:
    names = ("etag", "md5Hash", "updated")
    answer = fs.call(
        "GET",
        "b/{}/o",
        bucket,
        prefix=prefix or None,
        delimiter=delimiter or None,
        pageToken=token,
        fields=f"nextPageToken,prefixes,items(name,size,{','.join(names)})",
        json_out=True,
    )
    return Page(
        files=[
            (
                f"{bucket}/{item['name']}",
                {"size": int(item["size"]), **{key: item[key] for key in names if key in item}},
            )
            for item in answer.get("items", [])
            if not item["name"].endswith("/")
        ],
        folders=[f"{bucket}/{name.rstrip('/')}" for name in answer.get("prefixes", [])],
        token=answer.get("nextPageToken"),
    )


def _page_of_azure(fs: Any, bucket: str, prefix: str, token: str | None, delimiter: str) -> Page:
    return sync(fs.loop, _azure_page, fs, bucket, prefix, token, delimiter)  # type: ignore[no-any-return]


async def _azure_page(fs: Any, bucket: str, prefix: str, token: str | None, delimiter: str) -> Page:
    files: list[tuple[str, dict[str, Any]]] = []
    folders: list[str] = []
    async with fs.service_client.get_container_client(bucket) as container:
        # An item takes 10 kB while a page is read, and a page may have 5000 items.
        what: dict[str, Any] = {"name_starts_with": prefix, "include": ["metadata"], "results_per_page": 1000}
        items = container.walk_blobs(delimiter=delimiter, **what) if delimiter else container.list_blobs(**what)
        pages = items.by_page(token)
        async for item in await anext(pages):
            if not hasattr(item, "size"):
                folders.append(f"{bucket}/{item.name.rstrip('/')}")
            elif not _is_azure_folder(item):
                info = {"size": item.size, "etag": item.etag, "last_modified": item.last_modified}
                files.append((f"{bucket}/{item.name}", info))
        return Page(files=files, folders=folders, token=pages.continuation_token or None)


def _is_azure_folder(item: Any) -> bool:
    """Whether a blob is a folder. Accounts with a hierarchical namespace list folders as marked empty files."""
    metadata = {name.lower(): value for name, value in (item.metadata or {}).items()}
    return item.name.endswith("/") or "true" in {metadata.get("hdi_isfolder"), metadata.get("is_directory")}
