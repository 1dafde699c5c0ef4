"""How a table fits into a width: words stay whole, columns that may go do, and else each row becomes a block."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

Rows = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Layout:
    """The columns that are shown, by their places, and the characters that each has."""

    shown: tuple[int, ...]
    widths: tuple[int, ...]


def layout(
    columns: Sequence[str],
    rows: Rows,
    *,
    left: int,
    width: int,
    gap: int,
    spare: Collection[str] = (),
) -> Layout | None:
    """The layout of the most columns that fit.

    Args:
        columns: Headings, which may be broken between words.
        rows: Cells; texts may be broken between words, numbers with their units may not.
        left: Number of columns that hold text; the others hold numbers.
        width: Characters that there are.
        gap: Characters that stand between two columns.
        spare: Headings of columns that are left out where there is no room, the first one first.

    Returns:
        None where no choice of columns fits.
    """
    for gone in range(len(spare) + 1):
        left_out = list(spare)[:gone]
        shown = tuple(place for place, name in enumerate(columns) if name not in left_out)
        cells = {place: [row[place] for row in rows] for place in shown}
        least = [_least(columns[place], cells[place], number=place >= left) for place in shown]
        room = width - gap * (len(shown) - 1)
        if sum(least) <= room:
            widths = [max(map(extent, [columns[place], *cells[place]])) for place in shown]
            return Layout(shown, _shared_out(widths, least, room))
    return None


def extent(text: str) -> int:
    """The characters that a text takes on a terminal, where those of East Asia take two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _least(heading: str, cells: Sequence[str], *, number: bool) -> int:
    whole = [*heading.split(), *(cells if number else [word for cell in cells for word in cell.split()])]
    return max(map(extent, whole), default=1)


def _shared_out(widths: list[int], least: Sequence[int], room: int) -> tuple[int, ...]:
    """Takes from the widest columns until all fit."""
    while sum(widths) > room:
        _, widest = max((width, place) for place, width in enumerate(widths) if width > least[place])
        widths[widest] -= 1
    return tuple(widths)


def blocks(columns: Sequence[str], rows: Rows, *, left: int, width: int) -> Iterator[str]:
    """The lines of a table that has no room side by side: of each row its texts, and a line for each number."""
    names = max(map(extent, columns[left:]), default=0)
    texts = [""] * left
    for row in rows:
        texts = [cell or above for cell, above in zip(row[:left], texts, strict=True)]  # tables say a text once
        yield from wrapped(", ".join(filter(None, texts)), width)
        for name, cell in zip(columns[left:], row[left:], strict=True):
            if cell:
                yield f"  {name}{' ' * (names - extent(name))}  {cell}"


def wrapped(text: str, width: int) -> list[str]:
    """A text in lines of whole words."""
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
