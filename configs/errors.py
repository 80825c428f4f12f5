"""The tree of errors that this library raises.

    EpithreBeamError
    ├── ArgumentError            an argument is invalid; also a ValueError
    │   ├── QueryError           a query cannot be embedded
    │   └── UnknownAssetError    the catalog has no such asset
    ├── ConfigError              the job or the command line is invalid
    │   ├── OtherJobError        the catalog belongs to another job
    │   ├── EmulatorError        an emulator would replace the vectors of the API
    │   └── UntrustedCatalogError
    │                            a catalog requests what this user has not allowed
    ├── DataError
    │   └── SourceError          a source is invalid as a whole, not in a single asset
    │       └── UnreadableSourceError
    │                            the system failed to read it
    ├── ApiError                 the embedding API; the class itself: the API cannot be reached
    │   ├── ApiRefusedError      the API refuses every request; no retry helps
    │   │   ├── RefusedKeyError, UnknownModelError, SpentQuotaError, WrongAddressError, WrongDimensionError,
    │   │   │   UnusableVectorsError
    │   ├── SpendingLimitError   the run has reached its spending limit
    │   ├── ApiPausedError       the API requests a longer pause than the run may wait
    │   └── RateLimiterLostError the backend of a shared rate limiter cannot be reached
    ├── StorageError
    │   ├── StoreError           the storage refused an operation or failed
    │   │   ├── SwapConflictError, SwapUnknownError, LeaseLostError, DamagedFileError, UnwritableError,
    │   │   │   MissingDriverError
    │   ├── CatalogError         a catalog cannot be opened, trusted or changed
    │   │   ├── NoCatalogError, UnknownVersionError
    │   └── CatalogBusyError     another run is under way
    ├── RunnerError              Beam's runner failed, or one of its worker processes died
    ├── GateError                a version or a result is held back by a gate
    └── DefectError              a worker failed unexpectedly: please report it

Each error has a stable `code` for programs, an exit code for schedulers, a message for people, and `facts`, plain data
about the failure. All can be pickled. Any other exception is a defect of this library or of a dependency.
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import Any, ClassVar

from .scrubbing import without_credentials

__all__ = [
    "ApiError",
    "ApiPausedError",
    "ApiRefusedError",
    "ArgumentError",
    "CatalogBusyError",
    "CatalogError",
    "ConfigError",
    "DamagedFileError",
    "DataError",
    "DefectError",
    "EmulatorError",
    "EpithreBeamError",
    "ExitCode",
    "GateError",
    "LeaseLostError",
    "MissingDriverError",
    "NoCatalogError",
    "OtherJobError",
    "QueryError",
    "RateLimiterLostError",
    "RefusedKeyError",
    "RunnerError",
    "SourceError",
    "SpendingLimitError",
    "SpentQuotaError",
    "StorageError",
    "StoreError",
    "SwapConflictError",
    "SwapUnknownError",
    "UnknownAssetError",
    "UnknownModelError",
    "UnknownVersionError",
    "UnreadableSourceError",
    "UntrustedCatalogError",
    "UnusableVectorsError",
    "UnwritableError",
    "WrongAddressError",
    "WrongDimensionError",
]


class ExitCode(IntEnum):
    """The exit codes of the commands."""

    PUBLISHED = 0
    FAILED = 1
    USAGE = 2
    HELD_BY_GATE = 3
    BUSY = 4


class EpithreBeamError(Exception):
    """The root of all errors of this library.

    Args:
        message: For people: the place, what is wrong, the value, what to do. Passwords and signatures in URLs are
            hidden.
        **facts: Further information for programs: plain data, no secrets.
    """

    code: ClassVar[str] = "error"
    """For programs: stable, and unique to the class."""
    exit_code: ClassVar[ExitCode] = ExitCode.FAILED

    def __init__(self, message: str = "", **facts: Any) -> None:
        super().__init__(without_credentials(message))
        self.facts: dict[str, Any] = facts


class ArgumentError(EpithreBeamError, ValueError):
    """An argument is invalid; the message has the argument, the rule and the value."""

    code = "argument"
    exit_code = ExitCode.USAGE


class QueryError(ArgumentError):
    """A query cannot be embedded; the message says which and why."""

    code = "query"

    @property
    def reason(self) -> str:
        """A `Reason`, a `RefusalReason`, or `unsupported` for a kind that the API does not embed."""
        return str(self.facts.get("reason", ""))


class UnknownAssetError(ArgumentError):
    """The catalog has no such asset."""

    code = "unknown_asset"


class ConfigError(EpithreBeamError):
    """The config or the command line is invalid; the message says where, what is wrong and what to do."""

    code = "config"
    exit_code = ExitCode.USAGE


class UntrustedCatalogError(ConfigError):
    """A catalog requests what this user has not allowed, such as a key; `facts` has the requests."""

    code = "untrusted_catalog"


class OtherJobError(ConfigError):
    """The catalog belongs to another job; the message names both. Nothing was sent."""

    code = "other_job"


class EmulatorError(ConfigError):
    """The API made the vectors of the catalog, and an emulator would replace them. Nothing was sent."""

    code = "emulator"


class DataError(EpithreBeamError):
    """Input data is invalid."""

    code = "data"


class SourceError(DataError):
    """A source is invalid as a whole, not in a single asset; the message names the row."""

    code = "source"


class UnreadableSourceError(SourceError):
    """The system failed to list or read a source; the same source may be readable later."""

    code = "source_unreadable"


class ApiError(EpithreBeamError):
    """No further request can succeed; the message says why, and what to do."""

    code = "api"


class ApiRefusedError(ApiError):
    """The API refuses every request until a person changes something; no retry helps."""

    code = "api_refused"
    exit_code = ExitCode.USAGE


class RefusedKeyError(ApiRefusedError):
    """The API refuses the key, or a worker's environment has no key."""

    code = "key_refused"


class UnknownModelError(ApiRefusedError):
    """The API does not serve the model."""

    code = "unknown_model"


class SpentQuotaError(ApiRefusedError):
    """The account's quota is used up. If the API says until when, the fact `retry_at` has it (ISO 8601, UTC)."""

    code = "quota_spent"


class WrongAddressError(ApiRefusedError):
    """The API is not at this address: the server redirects or does not know the path."""

    code = "wrong_address"


class WrongDimensionError(ApiRefusedError):
    """The API returns vectors of another dimension than the configured one."""

    code = "wrong_dimension"


class UnusableVectorsError(ApiRefusedError):
    """The API returns invalid vectors: empty ones, or numbers in another format than float32."""

    code = "unusable_vectors"


class SpendingLimitError(ApiError):
    """A run reached `embed.max_requests` or `embed.max_cost`; `facts` has what was spent and what is left."""

    code = "spending_limit"


class ApiPausedError(ApiError):
    """The API requests a longer pause than `embed.max_retry_after_s`.

    The facts `retry_at` (ISO 8601, UTC) and `retry_after_s` say when to run again.
    """

    code = "api_paused"

    @property
    def retry_after_s(self) -> float:
        """The requested pause in seconds, from the time of the response."""
        return float(self.facts.get("retry_after_s", 0.0))


class RateLimiterLostError(ApiError):
    """The backend of a rate limiter that workers share cannot be reached, so nothing may be sent."""

    code = "rate_limiter_lost"


class StorageError(EpithreBeamError):
    """The storage or a file in it failed."""

    code = "storage"


class StoreError(StorageError):
    """The storage refused an operation or failed; the message names the file."""

    code = "store"


class SwapConflictError(StoreError):
    """The file changed since it was read: another process has written it."""

    code = "swap_conflict"
    is_certain = True
    """Whether certainly nothing was written. Otherwise the write may have succeeded and been overwritten since."""


class SwapUnknownError(StoreError):
    """It is unknown whether the storage wrote the file, and reading the file does not show it."""

    code = "swap_unknown"


class LeaseLostError(StoreError):
    """Another run took the lease, or it could not be renewed before it expired."""

    code = "lease_lost"


class DamagedFileError(StoreError):
    """A file of vectors is damaged and its content must be restored. The fact `file` is its name."""

    code = "damaged_file"

    @property
    def file(self) -> str:
        """The file's name in the store."""
        return str(self.facts["file"])


class UnwritableError(StoreError):
    """The catalog, or another folder that a job writes, cannot be written."""

    code = "unwritable"


class MissingDriverError(StoreError):
    """The package that reads a store, such as s3fs, is not installed; the message names the extra."""

    code = "driver_missing"
    exit_code = ExitCode.USAGE


class CatalogError(StorageError):
    """A catalog cannot be opened, trusted or changed; the message names the file, the rule and the value."""

    code = "catalog"


class NoCatalogError(CatalogError):
    """There is no catalog at this place: its name is wrong, or no run has published a version yet."""

    code = "no_catalog"
    exit_code = ExitCode.USAGE


class UnknownVersionError(CatalogError):
    """The catalog has no version of this name, or several that begin with it; the message lists them."""

    code = "unknown_version"
    exit_code = ExitCode.USAGE


class CatalogBusyError(StorageError):
    """Another run of the catalog is under way; the message says which."""

    code = "busy"
    exit_code = ExitCode.BUSY


class RunnerError(EpithreBeamError):
    """Beam's runner failed, or one of its worker processes died."""

    code = "runner"


class GateError(EpithreBeamError):
    """A version or a result was written and is held back by a gate until a person publishes it."""

    code = "held"
    exit_code = ExitCode.HELD_BY_GATE


class DefectError(EpithreBeamError):
    """A worker failed unexpectedly. The fact `traceback` is the worker's traceback."""

    code = "defect"


def error_of(code: str, message: str, facts: Mapping[str, Any] | None = None) -> EpithreBeamError:
    """Creates an error from its code, message and facts, as another process sent them.

    An unknown code, such as that of a later release, becomes an `EpithreBeamError`.
    """
    return _CLASSES.get(code, EpithreBeamError)(message, **(facts or {}))


def all_errors(root: type[EpithreBeamError] = EpithreBeamError) -> list[type[EpithreBeamError]]:
    """The classes of the tree, each before its subclasses."""
    return [root, *(found for child in root.__subclasses__() for found in all_errors(child))]


_CLASSES = {found.code: found for found in all_errors()}
