"""An invalid command line gives one message with a suggestion and the help command."""

import pytest

from ..conftest import Place


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("serch", "No such command 'serch'. Did you mean 'search', 'serve'? See `epithre-beam --help`."),
        ("versions lst", "No such command 'lst'. Did you mean 'list'? See `epithre-beam versions --help`."),
        ("quux", "No such command 'quux'. See `epithre-beam --help`."),
        ("run a --quit", "No such option: --quit. Did you mean --quiet? See `epithre-beam run --help`."),
        ("search c --txet x", "No such option: --txet. Did you mean --text? See `epithre-beam search --help`."),
        ("run a --zzzzzz", "No such option: --zzzzzz. See `epithre-beam run --help`."),
        (
            "run a --runner=PrismRunner",
            (
                "No such option: --runner. Put Beam options after `--`: epithre-beam run … -- --runner=…. "
                "See `epithre-beam run --help`."
            ),
        ),
        ("search c --runner=PrismRunner", "No such option: --runner. See `epithre-beam search --help`."),
        ("search", "Missing argument 'CATALOG'. See `epithre-beam search --help`."),
        (
            "run a --max-requests x",
            "Invalid value for '--max-requests': must be a valid integer. See `epithre-beam run --help`.",
        ),
        (
            "run a --log-format xml",
            (
                "Invalid value for '--log-format' (env var: 'EPITHRE_LOG_FORMAT'): 'xml' is not one of 'text', 'json'. "
                "See `epithre-beam run --help`."
            ),
        ),
    ],
)
def test_an_invalid_command_line_is_one_message_with_a_suggestion(tmp_path, words, sentence):
    done = Place(tmp_path).cli(*words.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"epithre-beam: {sentence}\n"


def test_without_a_command_the_help_is_shown(tmp_path):
    done = Place(tmp_path).cli("versions")
    assert done.returncode == 2
    shown = " ".join(done.stderr.split())
    assert "Read a version completely and verify its files, rows, ids, indexes and norms, and LATEST.json." in shown
    assert "epithre-beam: " not in done.stderr
