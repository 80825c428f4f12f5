"""Check that this library is installed completely and only once. Uses only the standard library."""

import sys
from pathlib import Path

NAME = "epithre_beam"
SCRIPT = "epithre-beam"


def refuse_second_install(here: Path) -> None:
    """Raise ImportError when a second install could be mixed with the one at `here`; the console script exits instead.

    An editable install adds a finder for modules that are not found elsewhere, so modules that are missing from one
    install would be imported from the other without an error.
    """
    for finder in sys.meta_path:
        spec = finder.find_spec(NAME, None)
        if spec is not None and spec.origin is not None and Path(spec.origin).resolve().parent != here.resolve():
            sentence = (
                f"{NAME} is installed twice, in {here} and in {Path(spec.origin).parent}. Uninstall one of them, or "
                "remove it from sys.path."
            )
            if Path(sys.argv[0]).stem == SCRIPT:  # no code of the command line runs yet that could report the error
                sys.stderr.write(f"{SCRIPT}: {sentence}\n")
                raise SystemExit(2)
            raise ImportError(sentence, name=NAME)


def broken_install(error: ImportError) -> str | None:
    """Return a message about a missing module of this library; None if the module belongs to another library.

    A module is missing when an older install is first on the path, or when a part was removed.
    """
    if (error.name or "").partition(".")[0] != NAME:
        return None
    places = [Path(entry or ".").resolve() / NAME for entry in sys.path]
    installs = list(dict.fromkeys(str(place) for place in places if (place / "__init__.py").is_file()))
    if len(installs) > 1:
        others = ", ".join(installs)
        return f"{NAME}: {error}. It is installed {len(installs)} times ({others}). Keep only one install."
    return f"{NAME}: {error}. The install in {', '.join(installs) or 'an unknown place'} is incomplete. Reinstall it."
