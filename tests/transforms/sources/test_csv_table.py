"""A csv is read with its mark, its quotes and its blank lines."""

from pathlib import Path

import pytest

from epithre_beam.configs.errors import SourceError

from .listing import table, write


def test_a_csv_may_begin_with_a_mark_and_hold_quoted_lines_commas_and_quotes(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", '\ufeffid,t\n007,"one\ntwo, ""three"""\n\n8,\n')
    assert [(r["asset_id"], r["text"]) for r in table(path)] == [("007", 'one\ntwo, "three"'), ("8", "")]


@pytest.mark.parametrize("content", ['id,t\n1,"x\n2,y\n3,z\n', 'id,t\n1,x\n2,"y""\n3,z\n'])
def test_a_quote_that_is_never_closed_is_refused_instead_of_swallowing_the_rows_behind_it(
    tmp_path: Path, content: str
) -> None:
    with pytest.raises(SourceError, match="must close every quote, got an odd number of them"):
        table(write(tmp_path / "t.csv", content))
