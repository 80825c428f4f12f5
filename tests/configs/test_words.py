import pytest

from epithre_beam.configs.words import of_count


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 dead letters"), (1, "1 dead letter"), (2, "2 dead letters"), (12_345, "12,345 dead letters")],
)
def test_one_is_one_and_all_else_are_many(count: int, words: str) -> None:
    assert of_count(count, "dead letter") == words


def test_words_whose_plural_is_their_own_are_given_both() -> None:
    assert [of_count(n, "query has", "queries have") for n in (1, 3)] == ["1 query has", "3 queries have"]
