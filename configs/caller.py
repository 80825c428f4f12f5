"""Who embeds, and how messages for them name settings: keys of a job, options of a command, or arguments."""

from dataclasses import dataclass

from .schema import TRIAL


@dataclass(frozen=True, kw_only=True)
class Caller:
    """The users of one interface. An error of the API is raised deep below it, but must use their names."""

    names: tuple[tuple[str, str], ...] = ()
    """The settings that the interface takes by themselves, with the name of each there."""
    other: str = "embed.{}"
    """The name of any other setting of `embed`."""
    trial: str = ""
    """How to try without a server; empty where another address or key is the only remedy."""
    sends_queries: bool = False
    """Whether queries are embedded for a search, and not assets."""
    keeps_vectors: bool = False
    """Whether vectors are kept for the next run when this one fails."""

    def name(self, setting: str) -> str:
        """The name that users write for a setting of `embed`."""
        return dict(self.names).get(setting, self.other.format(setting))

    @property
    def again(self) -> str:
        """What to do once the server works: the beginning of a sentence."""
        if self.sends_queries:
            return "Search again"
        return "Finished work is kept. Run again" if self.keeps_vectors else "Run again"


JOB = Caller(
    trial=f"try the job without a server in another catalog (`{TRIAL}`)",
    keeps_vectors=True,
)
"""The author of a job."""
EMBED = Caller(sends_queries=True)
"""A program that gives the argument `embed`, an `EmbedConfig`, to embed queries."""
ARGUMENTS = Caller(
    names=tuple((name, name) for name in ("base_url", "api_key_env", "require_embedding")),
    other="embed.{} of the catalog's job",
    sends_queries=True,
)
"""A program that searches a catalog, and gives an address or a key of its own as arguments."""
COMMAND = Caller(
    names=(
        ("base_url", "--base-url"),
        ("api_key_env", "--api-key-env"),
        ("require_embedding", "--require-embedding"),
    ),
    other=ARGUMENTS.other,
    sends_queries=True,
)
"""The user of a command that searches a catalog."""
