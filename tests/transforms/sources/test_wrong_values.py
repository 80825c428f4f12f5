"""All wrong values of a table are counted, and the first ten are told with their lines, for each column in a line."""

from pathlib import Path

import pytest

from epithre_beam.configs import SourceConfig
from epithre_beam.configs.errors import SourceError
from epithre_beam.transforms.sources.list_sources import list_references


def refusal(path: Path, rows: list[str]) -> str:
    path.write_text("\n".join(["id,t,price,day", *rows]) + "\n", "utf-8")
    types = {"price": "double", "day": "date"}
    source = SourceConfig(kind="text", table=str(path), id="id", text="t", metadata=types)  # type: ignore[arg-type]
    with pytest.raises(SourceError) as caught:
        list(list_references(source, 0, types))
    return str(caught.value).replace(str(path), "TABLE")


def test_values_of_several_columns_are_told_at_once_with_the_types_of_the_job(tmp_path: Path) -> None:
    rows = ["1,x,1.5,2024-12-31", "2,x,n/a,2024-12-31", ",x,2,31.12.2024", '4,x,"1,5",2024-12-30', ",x,1,"]
    assert refusal(tmp_path / "t.csv", rows).splitlines() == [
        "sources[0].id: TABLE: 2 values are empty: line 4, line 6.",
        (
            "sources[0].metadata.price: TABLE: 2 values are not valid as double: 'n/a' (line 3), '1,5' (line 5). "
            "Write numbers as 1234.5, or declare another type."
        ),
        (
            "sources[0].metadata.day: TABLE line 4: '31.12.2024' is not valid as date. "
            "Write dates as 2024-12-31, or declare another type."
        ),
    ]


def test_of_many_values_all_are_counted_and_ten_are_told(tmp_path: Path) -> None:
    """In batches of 8192 rows: the first and the last have some."""
    rows = [f"{i},x,{'bad' if i % 3000 == 5 else i},2024-12-31" for i in range(40_000)]
    said = refusal(tmp_path / "t.csv", rows)
    assert said.startswith("sources[0].metadata.price: TABLE: 14 values are not valid as double: 'bad' (line 7), ")
    assert said.count("'bad' (line ") == 10
    assert "'bad' (line 27007) and 4 more. Write numbers" in said


def test_a_column_of_wrong_values_is_not_read_to_its_end(tmp_path: Path) -> None:
    said = refusal(tmp_path / "t.csv", [f"{i},x,bad,2024-12-31" for i in range(30_000)])
    assert "TABLE: 10,000 or more values are not valid as double: 'bad' (line 2), " in said
