"""Draw a few rows from many, with every group among them."""

import random
from collections.abc import Sequence


def stratified(groups: Sequence[str], limit: int | None, seed: int) -> list[int]:
    """
    Draw rows so that each group has its share of them; all if `limit` is `None`. Returns their numbers, from 0, in
    ascending order. Shares are rounded so that they add up to `limit`, and each group has at least one row. If `limit`
    is below the number of groups, the largest groups have one row each.
    """
    if limit is None or limit >= len(groups):
        return list(range(len(groups)))
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    largest = sorted(members, key=lambda group: -len(members[group]))[:limit]
    exact = {group: limit * len(members[group]) / len(groups) for group in largest}
    wanted = {group: max(1, int(exact[group])) for group in largest}
    while sum(wanted.values()) != limit:  # correct for rounding and for the minimum of one row
        if sum(wanted.values()) < limit:
            group = max(largest, key=lambda each: (exact[each] - wanted[each], len(members[each])))
            wanted[group] += 1
        else:
            group = min((each for each in largest if wanted[each] > 1), key=lambda each: exact[each] - wanted[each])
            wanted[group] -= 1
    draw = random.Random(seed)
    return sorted(index for group in largest for index in draw.sample(members[group], wanted[group]))
