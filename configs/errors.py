"""Every error that this library raises on purpose, in one tree.

    EpithreBeamError
    ├── ArgumentError            a call's argument is wrong; also a ValueError
    │   ├── QueryError           a query cannot be embedded
    │   └── UnknownAssetError    the catalog has no such asset
    ├── ConfigError              the job or the command line is wrong
    │   ├── OtherJobError        the catalog belongs to another job
    │   └── UntrustedCatalogError
    │                            a catalog asks for what nobody here has allowed
    ├── DataError
    │   └── SourceError          a source breaks a rule that no single asset can be blamed for
    ├── ApiError                 the embedding API; raised itself, it is not there or does not answer
    │   ├── ApiRefusedError      no retry helps:
    │   │   ├── RefusedKeyError, UnknownModelError, SpentQuotaError, WrongAddressError, WrongDimensionError,
    │   │   │   UnusableVectorsError
    │   ├── SpendingLimitError   the run has spent what it may
    │   ├── ApiPausedError       it asks for a longer pause than is waited for
    │   └── RateLimiterLostError what keeps count of a shared limit is gone
    ├── StorageError
    │   ├── StoreError           the storage refused or broke a promise
    │   │   ├── SwapConflictError, SwapUnknownError, LeaseLostError, DamagedFileError, UnwritableError
    │   ├── CatalogError         a catalog cannot be opened, trusted or changed
    │   │   ├── NoCatalogError, UnknownVersionError
    │   └── CatalogBusyError     another run holds the catalog
    ├── RunnerError              Beam's runner failed, or one of its worker processes died
    ├── GateError                a version or a result is held by a gate
    └── DefectError              a worker failed as nobody foresaw: please report it

Each has a stable `code` for programs, an exit code for schedulers, one message for people, and `facts`, plain data
that goes with it. All can be pickled. Any other exception is a defect of this library or of one below it.
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
    "EpithreBeamError",
    "ExitCode",
    "GateError",
    "LeaseLostError",
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
    "UntrustedCatalogError",
    "UnusableVectorsError",
    "UnwritableError",
    "WrongAddressError",
    "WrongDimensionError",
]


class ExitCode(IntEnum):
    """What a scheduler is told."""

    PUBLISHED = 0
    FAILED = 1
    USAGE = 2
    HELD_BY_GATE = 3
    BUSY = 4


class EpithreBeamError(Exception):
    """The root of all errors of this library.

    Args:
        message: One sentence for a person: the place, what is wrong, the value, what to do. Passwords and signatures
            in its URLs are hidden.
        **facts: What a program may want to know besides: plain data, no secrets.
    """

    code: ClassVar[str] = "error"
    """For programs: never changes, and no two classes share one."""
    exit_code: ClassVar[ExitCode] = ExitCode.FAILED

    def __init__(self, message: str = "", **facts: Any) -> None:
        super().__init__(without_credentials(message))
        self.facts: dict[str, Any] = facts


class ArgumentError(EpithreBeamError, ValueError):
    """An argument of a call is wrong; the message has the argument, the rule and the value."""

    code = "argument"
    exit_code = ExitCode.USAGE


class QueryError(ArgumentError):
    """A query cannot be embedded; the message says which and why."""

    code = "query"

    @property
    def reason(self) -> str:
        """For programs: a `Reason`, a `RefusalReason`, or `unsupported` for a kind that the API does not embed."""
        return str(self.facts.get("reason", ""))


class UnknownAssetError(ArgumentError):
    """The catalog has no such asset."""

    code = "unknown_asset"


class ConfigError(EpithreBeamError):
    """The config or the command line is wrong; the message is one sentence for the person who wrote it."""

    code = "config"
    exit_code = ExitCode.USAGE


class UntrustedCatalogError(ConfigError):
    """A catalog asks for what this user has not allowed, such as a key; `facts` has what it asks for."""

    code = "untrusted_catalog"


class OtherJobError(ConfigError):
    """The catalog belongs to another job; the message names both. Nothing was sent."""

    code = "other_job"


class DataError(EpithreBeamError):
    """Data from outside breaks a rule."""

    code = "data"


class SourceError(DataError):
    """The data of a source breaks a rule that no single asset can be blamed for; the message names the row."""

    code = "source"


class ApiError(EpithreBeamError):
    """No further request makes sense; the message says why, and what to do."""

    code = "api"


class ApiRefusedError(ApiError):
    """The API will refuse every request until a person changes something: no retry helps."""

    code = "api_refused"
    exit_code = ExitCode.USAGE


class RefusedKeyError(ApiRefusedError):
    """The API refuses the key, or a worker's environment has none."""

    code = "key_refused"


class UnknownModelError(ApiRefusedError):
    """The API does not serve the model."""

    code = "unknown_model"


class SpentQuotaError(ApiRefusedError):
    """The account's quota is used up."""

    code = "quota_spent"


class WrongAddressError(ApiRefusedError):
    """The API is not at this address: it redirects elsewhere, or has nothing of the kind there."""

    code = "wrong_address"


class WrongDimensionError(ApiRefusedError):
    """The API answers vectors of another dimension than the one that is configured."""

    code = "wrong_dimension"


class UnusableVectorsError(ApiRefusedError):
    """The API answers vectors that are none: empty ones, or numbers in another format than float32."""

    code = "unusable_vectors"


class SpendingLimitError(ApiError):
    """A run has sent what `embed.max_requests` or `embed.max_cost` allows; `facts` say what was spent and is left."""

    code = "spending_limit"


class ApiPausedError(ApiError):
    """The API asks for a longer pause than `embed.max_retry_after_s`; asking again earlier makes no sense.

    The facts `retry_at` (ISO 8601, UTC) and `retry_after_s` say when it does.
    """

    code = "api_paused"

    @property
    def retry_after_s(self) -> float:
        """As the API asked, from when it did."""
        return float(self.facts.get("retry_after_s", 0.0))


class RateLimiterLostError(ApiError):
    """What keeps count of a limit that several workers share cannot be reached, so nothing may be sent."""

    code = "rate_limiter_lost"


class StorageError(EpithreBeamError):
    """The storage, or what lies in it."""

    code = "storage"


class StoreError(StorageError):
    """The storage refused or broke a promise; the message names the file."""

    code = "store"


class SwapConflictError(StoreError):
    """The file is not what it was when it was read: somebody else has written it since."""

    code = "swap_conflict"
    is_certain = True
    """Whether nothing was written. Otherwise it may have been, and was written over by somebody else."""


class SwapUnknownError(StoreError):
    """The storage did not say whether it wrote the file, and it cannot be found out by reading it."""

    code = "swap_unknown"


class LeaseLostError(StoreError):
    """The lease was taken over, or could not be renewed for as long as it lasts."""

    code = "lease_lost"


class DamagedFileError(StoreError):
    """A file of vectors cannot be trusted: what it held must come from elsewhere. The fact `file` is its name."""

    code = "damaged_file"

    @property
    def file(self) -> str:
        """The file's name in the store."""
        return str(self.facts["file"])


class UnwritableError(StoreError):
    """The catalog, or another folder that a job writes, cannot be written at the moment."""

    code = "unwritable"


class CatalogError(StorageError):
    """A catalog cannot be opened, trusted or changed; the message names the file, the rule and the value."""

    code = "catalog"


class NoCatalogError(CatalogError):
    """There is no catalog at this place: its name is mistyped, or no run has published anything there yet."""

    code = "no_catalog"
    exit_code = ExitCode.USAGE


class UnknownVersionError(CatalogError):
    """The catalog has no version of this name, or several that begin with it; the message lists what it has."""

    code = "unknown_version"
    exit_code = ExitCode.USAGE


class CatalogBusyError(StorageError):
    """Another run holds the catalog; the message says who."""

    code = "busy"
    exit_code = ExitCode.BUSY


class RunnerError(EpithreBeamError):
    """Beam's runner failed, or one of its worker processes died."""

    code = "runner"


class GateError(EpithreBeamError):
    """A version or a result was written and is held by a gate until a person has looked at it."""

    code = "held"
    exit_code = ExitCode.HELD_BY_GATE


class DefectError(EpithreBeamError):
    """A worker failed as nobody foresaw. The fact `traceback` is the worker's own."""

    code = "defect"


def error_of(code: str, message: str, facts: Mapping[str, Any] | None = None) -> EpithreBeamError:
    """The error that a code stands for: an error crosses to another process as code, message and facts.

    A code that is not known, such as a later release's, becomes an `EpithreBeamError`.
    """
    return _CLASSES.get(code, EpithreBeamError)(message, **(facts or {}))


def all_errors(root: type[EpithreBeamError] = EpithreBeamError) -> list[type[EpithreBeamError]]:
    """The classes of the tree, each before those below it."""
    return [root, *(found for child in root.__subclasses__() for found in all_errors(child))]


_CLASSES = {found.code: found for found in all_errors()}
