"""Any answer of a server gives valid vectors in the right rows, or an error, within limits."""

from hypothesis import strategies as st

from epithre_beam.transforms.epithre.dialects import DIALECTS

from ..transforms.epithre import test_replies as replies
from .budget import fuzz, fuzzing

pytestmark = fuzzing


def test_any_json_is_good_vectors_in_their_own_rows_or_an_error() -> None:
    names, statuses = st.sampled_from(["cohere", "epithre", "openai"]), st.sampled_from([200, 200, 200, 400, 429, 500])
    check = replies.test_any_json_gives_correct_vectors_or_an_error.hypothesis.inner_test
    fuzz(check, replies.ANSWERS, names, statuses)


def test_any_bytes_and_headers_are_an_error() -> None:
    def check(body: bytes, name: str, status: int, value: str, date: str) -> None:
        replies.test_arbitrary_bytes_give_an_error.hypothesis.inner_test(body, name, status)
        replies.test_limits_and_waits_from_headers_are_bounded.hypothesis.inner_test(value, date)

    fuzz(
        check,
        st.binary(max_size=2000),
        st.sampled_from(sorted(DIALECTS)),
        st.integers(200, 599),
        replies.HEADERS,
        replies.HEADERS,
    )
