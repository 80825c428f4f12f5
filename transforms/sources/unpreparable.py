"""What is raised where an asset cannot be sent."""

from ...index.versions.layout import Reason


class Unpreparable(Exception):  # noqa: N818 - not an error of ours: it becomes a dead letter
    """The asset cannot be sent."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def words_of(error: BaseException) -> str:
    """A decoder's sentence, in one short line."""
    return " ".join(str(error).split())[:120] or type(error).__name__
