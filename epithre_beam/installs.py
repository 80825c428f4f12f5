"""Whether this library is installed once and whole. Needs nothing but Python, so that it can say so when it is not."""

import sys
from pathlib import Path

NAME = "epithre_beam"
SCRIPT = "epithre-beam"


def refuse_second_install(here: Path) -> None:
    """Raises ImportError when another install would be imported into the one at `here`; the console script ends.

    An editable install is found by a finder of its own, which is asked for every module that is found nowhere else:
    what one install lacks would come from the other without a word.
    """
    for finder in sys.meta_path:
        spec = finder.find_spec(NAME, None)
        if spec is not None and spec.origin is not None and Path(spec.origin).resolve().parent != here.resolve():
            sentence = (
                f"{NAME} is installed twice, in {here} and in {Path(spec.origin).parent}: uninstall one of them, or "
                "take it off the path."
            )
            if Path(sys.argv[0]).stem == SCRIPT:  # nothing of ours runs before this, to tell it
                sys.stderr.write(f"{SCRIPT}: {sentence}\n")
                raise SystemExit(2)
            raise ImportError(sentence, name=NAME)


def broken_install(error: ImportError) -> str | None:
    """What it amounts to that a module of this library is missing, in a sentence; None for another library's.

    It happens where an older install stands before a newer one on the path, or a part was removed.
    """
    if (error.name or "").partition(".")[0] != NAME:
        return None
    places = [Path(entry or ".").resolve() / NAME for entry in sys.path]
    installs = list(dict.fromkeys(str(place) for place in places if (place / "__init__.py").is_file()))
    if len(installs) > 1:
        others = ", ".join(installs)
        return f"{NAME}: {error}. It is installed {len(installs)} times, and the first is used: {others}. Remove it."
    return f"{NAME}: {error}. The install in {', '.join(installs) or 'an unknown place'} is not whole: reinstall it."
