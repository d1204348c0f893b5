"""Tables of text: columns aligned, two spaces between them, no lines drawn."""

from __future__ import annotations

from collections.abc import Sequence

ABSENT = "-"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows under a head.

    Args:
        left: how many columns, from the left, hold words; the others hold numbers and are set right.

    Example:
        >>> print(table(["weight", "bytes"], [["head/kernel", "2,560"], ["head/bias", "40"]]))
        weight       bytes
        head/kernel  2,560
        head/bias       40
    """
    lines = [[_one_line(cell) for cell in line] for line in (head, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(_line(line, widths, left) for line in lines)


def _one_line(cell: str) -> str:
    """A name as it is, but for what would begin a new line or cannot be seen.

    Example:
        >>> _one_line("head/\\nkernel"), _one_line("権重 ü")
        ('head/\\\\nkernel', '権重 ü')
    """
    if cell.isprintable():
        return cell
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in cell)


def _line(cells: Sequence[str], widths: Sequence[int], left: int) -> str:
    set_out = (
        cell.ljust(width) if i < left else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join(set_out).rstrip()


def percent(share: float | None) -> str:
    """A share in [0, 1] with two decimals, or a dash.

    Example:
        >>> percent(0.95771), percent(None)
        ('95.77', '-')
    """
    return ABSENT if share is None else f"{100 * share:.2f}"


def number(value: float) -> str:
    """Four significant digits, whole above 1,000; a dash where there is no number.

    Example:
        >>> number(692.8), number(12345.6), number(0.00012345), number(float("nan"))
        ('692.8', '12,346', '0.0001234', '-')
    """
    if value != value:
        return ABSENT
    rounded = f"{value:.4g}"
    return rounded if abs(float(rounded)) < 1_000 else f"{value:,.0f}"


def shape(lengths: Sequence[int]) -> str:
    """The shape of an array.

    Example:
        >>> shape((64, 10)), shape(())
        ('64 x 10', 'scalar')
    """
    return " x ".join(map(str, lengths)) or "scalar"
