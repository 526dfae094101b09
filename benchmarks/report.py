"""Tables of medians, as Markdown."""

from collections import defaultdict
from statistics import median


class Table:
    """Figures in rows and columns, several for each cell.

    Args:
        title: what stands above it.
        columns: their names, in order.
        base: the column to which the others are compared.
    """

    def __init__(self, title: str, columns: list[str], *, base: str) -> None:
        self.title = title
        self.columns = columns
        self.base = base
        self._figures: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def add(self, row: str, column: str, figure: float) -> None:
        self._figures[row][column].append(figure)

    def __str__(self) -> str:
        rows = [[self.title, *self.columns], *([row, *self._cells(row)] for row in self._figures)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "| " + " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + " |" for row in rows
        ]
        lines.insert(
            1, "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
        )
        return "\n".join(lines)

    def _cells(self, row: str) -> list[str]:
        medians = {column: median(figures) for column, figures in self._figures[row].items()}
        base = medians.get(self.base)
        return [_cell(medians.get(column), base) for column in self.columns]


def _cell(figure: float | None, base: float | None) -> str:
    """A figure of three digits, and how many times the base it is."""
    if figure is None:
        return "–"
    digits = 0 if figure >= 99.95 else 1 if figure >= 9.995 else 2
    ratio = f" ({figure / base:.2f})" if base else ""
    return f"{figure:,.{digits}f}{ratio}"
