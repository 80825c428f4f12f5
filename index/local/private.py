"""Folders of this user's own: nobody else can have put there what is found in them."""

import os
from pathlib import Path
from typing import Literal, NamedTuple

from ...configs.errors import CatalogError

_NAME = "epithre-beam"


class UserFolder(NamedTuple):
    """A place that this user has for one purpose."""

    what: str
    """As errors call it."""
    variable: str
    """The environment variable that names another."""
    kind: Literal["cache", "config"]

    def path(self) -> Path:
        """What the variable names, or the system's place for it.

        Raises:
            CatalogError: When this user has no such place.
        """
        if named := os.environ.get(self.variable, "").strip():
            return Path(named).expanduser().absolute()
        import platformdirs

        find = {"cache": platformdirs.user_cache_dir, "config": platformdirs.user_config_dir}[self.kind]
        folder = Path(find(_NAME))
        if not folder.is_absolute():  # no home: it would be made in whatever folder this process runs in
            raise CatalogError(
                f"The {self.what} must have a folder, but this user has no home: name one by {self.variable}."
            )
        return folder

    def make_private(self, folder: Path) -> Path:
        """Makes a folder, this one or below it, unless it is there.

        Raises:
            CatalogError: When it cannot be made, is another user's, or others may write to it.
        """
        advice = f"name a folder of your own by {self.variable}"
        if os.name != "posix":
            raise CatalogError(f"The {self.what} {folder} needs the owners and locks of a POSIX system, got {os.name}.")
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = folder.stat()
        except OSError as error:
            raise CatalogError(f"The {self.what} {folder} cannot be made ({error.strerror}): {advice}.") from error
        if found.st_uid != os.geteuid():
            raise CatalogError(
                f"The {self.what} {folder} must be owned by user {os.geteuid()}, got {found.st_uid}, who could put "
                f"anything into it: {advice}."
            )
        if found.st_mode & 0o022:
            raise CatalogError(
                f"The {self.what} {folder} must be writable by its owner alone, got mode {found.st_mode & 0o777:o}: "
                f"`chmod go-w` it, or {advice}."
            )
        return folder


CACHE = UserFolder("cache", "EPITHRE_BEAM_CACHE", "cache")
TRUST = UserFolder("list of what catalogs may ask for", "EPITHRE_BEAM_TRUST", "config")
