"""The gates: checks that stop a version from being published automatically."""

from collections.abc import Mapping, Sequence

from ...configs import GateConfig
from ...configs.words import of_count
from ..versions.manifest import IndexEntry

_DEFAULT_DEAD_SHARE = 0.01
_DEAD_LET_THROUGH = 5
_DEFAULT_SHRINKAGE = 0.2
_ROWS_LET_GO = 20
_DEFAULT_TURNOVER = 0.5


def check_gates(
    assets: Mapping[str, int],
    dead: Mapping[str, int],
    indexes: Sequence[IndexEntry],
    gates: GateConfig,
    target_recall: float,
    before: Mapping[str, int] | None = None,
    *,
    gone: Mapping[str, int] | None = None,
    changed: Mapping[str, int] | None = None,
    noun: tuple[str, str] = ("asset", "assets"),
) -> list[str]:
    """Return the reasons why this version should not be published automatically, one sentence each.

    Args:
        assets: Listed assets by kind.
        dead: Assets without a vector by kind.
        indexes: The indexes with their measured recall.
        gates: The allowed shares.
        target_recall: Required recall in every direction.
        before: Rows of the current version by kind; None if there is no current version.
        gone: Rows of the current version by kind that this version lacks.
        changed: Rows by kind whose content differs from the current version.
        noun: What the messages count, in singular and plural.
    """
    one, many = noun
    reasons = check_shrinkage({kind: n - dead.get(kind, 0) for kind, n in assets.items()}, before or {}, gates)
    reasons += check_turnover(gone or {}, changed or {}, before or {}, gates)
    lost, total = sum(dead.values()), sum(assets.values())
    if gates.max_dead_share is None:
        too_many = lost > max(_DEFAULT_DEAD_SHARE * total, min(_DEAD_LET_THROUGH, total / 2))
        rule = f"{_DEFAULT_DEAD_SHARE:.0%} (or {_DEAD_LET_THROUGH} in a small set, up to half of it)"
    else:
        too_many = lost > 0 and lost / total > gates.max_dead_share  # not the product, which rounds: 0.29 * 100 < 29
        rule = f"{gates.max_dead_share:.2%}"
    if too_many:
        reasons.append(
            f"gates.max_dead_share allows {rule}, but {lost} of {total} {many} ({lost / total:.1%}) got no vector."
        )
    reasons += [
        f"none of the {count} {kind} {many} got a vector." if count > 1 else f"the only {kind} {one} got no vector."
        for kind, count in assets.items()
        if count and dead.get(kind, 0) == count
    ]
    for index in indexes:
        reasons += [
            f"index.target_recall is {target_recall:g}, but {direction} reached {recall:.5g} at k={index.recall_k}."
            for direction, recall in index.recall.items()
            if recall < target_recall
        ]
    return reasons


def check_shrinkage(rows: Mapping[str, int], before: Mapping[str, int], gates: GateConfig) -> list[str]:
    """Return a sentence for each kind that loses too many rows compared with the current version."""
    reasons = []
    for kind, old in before.items():
        lost = old - rows.get(kind, 0)
        if gates.max_shrinkage is None:
            too_many = lost > max(_DEFAULT_SHRINKAGE * old, min(_ROWS_LET_GO, old / 2))
            rule = f"{_DEFAULT_SHRINKAGE:.0%} (or {_ROWS_LET_GO} in a small set, up to half of it)"
        else:
            too_many = lost > 0 and lost / old > gates.max_shrinkage
            rule = f"{gates.max_shrinkage:.2%}"
        if too_many:
            reasons.append(
                f"gates.max_shrinkage allows a kind to lose {rule}, but of {old} {kind} rows in the current version "
                f"{rows.get(kind, 0)} are left ({lost / old:.1%} less)."
            )
    return reasons


def check_turnover(
    gone: Mapping[str, int], changed: Mapping[str, int], before: Mapping[str, int], gates: GateConfig
) -> list[str]:
    """Return one sentence if too many rows of the current version would be replaced, else an empty list.

    This gate needs no exception for small sets: its default, half of the rows, is the most that the other gates allow
    in a small set.

    Args:
        gone: Rows of the current version by kind whose id is gone or has no vector now.
        changed: Rows of the current version by kind whose content changed.
        before: Rows of the current version by kind.
        gates: The allowed share.
    """
    old, lost, other = (sum(counts.values()) for counts in (before, gone, changed))
    allowed = _DEFAULT_TURNOVER if gates.max_turnover is None else gates.max_turnover
    share = (lost + other) / old if old else 0.0
    if share <= allowed:
        return []
    rule = f"{allowed:.0%}" if gates.max_turnover is None else f"{allowed:.2%}"
    sentence = (
        f"gates.max_turnover allows {rule} of the rows to be replaced, but of {of_count(old, 'row')} in the current "
        f"version {lost:,} are gone and {other:,} changed ({share:.1%})."
    )
    return [sentence]
