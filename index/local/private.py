"""Private folders of the user that other users cannot write to."""

import os
from pathlib import Path
from typing import Literal, NamedTuple

from ...configs.errors import CatalogError

_NAME = "epithre-beam"


class UserFolder(NamedTuple):
    """A private folder of the user for one purpose."""

    what: str
    """Its name in error messages."""
    variable: str
    """The environment variable that sets another folder."""
    kind: Literal["cache", "config"]

    def path(self) -> Path:
        """Return the folder from the environment variable, or the system's default.

        Raises:
            CatalogError: If there is no default, since the user has no home folder.
        """
        if named := os.environ.get(self.variable, "").strip():
            return Path(named).expanduser().absolute()
        import platformdirs

        find = {"cache": platformdirs.user_cache_dir, "config": platformdirs.user_config_dir}[self.kind]
        folder = Path(find(_NAME))
        if not folder.is_absolute():  # no home: it would be created in the working directory
            raise CatalogError(
                f"There is no folder for the {self.what}: the user has no home folder. Set {self.variable} to a folder."
            )
        return folder

    def make_private(self, folder: Path) -> Path:
        """Create this folder, or one below it, if it does not exist. Return the folder.

        Raises:
            CatalogError: If it cannot be created, belongs to another user, or is writable by others.
        """
        advice = f"set {self.variable} to a folder of your own"
        if os.name != "posix":
            raise CatalogError(
                f"The {self.what} {folder} needs a POSIX system with file owners and locks, got {os.name}."
            )
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = folder.stat()
        except OSError as error:
            raise CatalogError(
                f"The {self.what} {folder} cannot be created ({error.strerror}). To fix it, {advice}."
            ) from error
        if found.st_uid != os.geteuid():
            raise CatalogError(
                f"The {self.what} {folder} must be owned by user {os.geteuid()}, got {found.st_uid}, who could write "
                f"any file to it. To fix it, {advice}."
            )
        if found.st_mode & 0o022:
            raise CatalogError(
                f"The {self.what} {folder} must be writable by its owner only, got mode {found.st_mode & 0o777:o}. "
                f"Run `chmod go-w` on it, or {advice}."
            )
        return folder


CACHE = UserFolder("cache", "EPITHRE_BEAM_CACHE", "cache")
TRUST = UserFolder("list of what catalogs may ask for", "EPITHRE_BEAM_TRUST", "config")
