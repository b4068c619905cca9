"""Tables of plain text, for a terminal."""

from collections.abc import Sequence


def align(rows: Sequence[Sequence[str]], num_left: int = 0) -> list[str]:
    """
    One line of text for each row, with the columns below one another.

    Args:
        rows: Cells of each row. All rows have the same number of cells.
        num_left: Number of columns, from the first on, that are aligned to the left. The others are aligned to the
            right.
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join(
            cell.ljust(width) if column < num_left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]
