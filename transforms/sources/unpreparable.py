"""The exception for an asset that cannot be sent."""

from ...index.versions.layout import Reason


class Unpreparable(Exception):  # noqa: N818 - not an error of the run: it becomes a dead letter
    """The asset cannot be sent. It becomes a dead letter with this reason and detail."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def words_of(error: BaseException) -> str:
    """Return the message of a decoder's error as one short line."""
    return " ".join(str(error).split())[:120] or type(error).__name__
