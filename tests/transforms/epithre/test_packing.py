"""Requests stay within the server's size limits, which are learned and recover to just below the refused size."""

from hypothesis import given
from hypothesis import strategies as st

from epithre_beam.configs import EmbedConfig
from epithre_beam.transforms.epithre.client import Refusal
from epithre_beam.transforms.epithre.emulator import Limits
from epithre_beam.transforms.epithre.packing import Cap, Item, Packer

from .asking import assert_right, embed, serve, texts


def test_limits_of_the_server_are_learned_and_rarely_exceeded():
    contents = texts(1000)
    with serve(limits=Limits(max_inputs=20, max_body_bytes=700)) as emulator:
        results, client = embed(emulator, contents)
        refused = sum(a.status in {400, 413} for a in emulator.log)
    assert_right(contents, results)
    assert not [r for r in results if isinstance(r, Refusal)]
    assert refused <= 0.5 * client.meter.requests


def test_a_learned_limit_recovers_to_just_below_the_refused_size():
    cap = Cap(64)
    cap.shrink(64)
    assert cap.now == 32
    seen = []
    for _ in range(2000):
        cap.grow()
        seen.append(cap.now)
    assert seen == sorted(seen)
    assert seen[-1] == 63


ITEMS = st.lists(
    st.builds(
        Item, piece=st.integers(1, 400).map(lambda n: b"x" * n), tokens=st.integers(0, 90), is_query=st.booleans()
    ),
    max_size=60,
)


@given(ITEMS, st.integers(1, 9), st.integers(50, 200))
def test_pack_keeps_order_and_size_limits(items: list[Item], most: int, tokens: int) -> None:
    """An item that is too large on its own is sent alone, and the server decides."""
    packer = Packer(EmbedConfig(batch_items=most, batch_bytes=1024, batch_tokens=tokens), 100)
    packs = packer.pack(items)
    assert [i for pack in packs for i in pack] == list(range(len(items)))
    for pack in packs:
        packed = [items[i] for i in pack]
        assert len({item.is_query for item in packed}) == 1
        assert len(packed) <= most
        if len(packed) > 1:
            assert 100 + sum(len(item.piece) + 1 for item in packed) <= 1024
            assert sum(item.tokens for item in packed) <= tokens
