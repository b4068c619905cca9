"""Tables of plain text, for a terminal."""

from collections.abc import Sequence


def align(rows: Sequence[Sequence[str]], num_left: int = 0) -> list[str]:
    """
    One line of text for each row of cells, with the columns below one another: the first `num_left` aligned to the
    left, the others to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join(
            cell.ljust(width) if column < num_left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]
