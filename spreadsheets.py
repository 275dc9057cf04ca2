"""CSV files that a spreadsheet opens without running anything."""

from __future__ import annotations

from collections.abc import Iterable

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""With these a spreadsheet takes a cell for a formula."""


def safe_row(cells: Iterable[object]) -> list[object]:
    """The cells of a row, those in front of which a spreadsheet would see a formula begun with ./, the same file.

    Args:
        cells: texts, paths and numbers; None is an empty cell. Numbers stay as they are.
    """
    return [f"./{cell}" if _is_formula(cell) else cell for cell in cells]


def _is_formula(cell: object) -> bool:
    return not isinstance(cell, (int, float)) and str(cell).startswith(FORMULA)
