"""What a user types for a search: seeds, and the steps at which candidates are dropped. Needs no ComfyUI."""

from ..search.halving import HALVING, check_shares

DEFAULT_SHARES = ", ".join(map(str, HALVING))


def parse_shares(text: str) -> tuple[float, ...]:
    """Numbers between 0 and 1 that rise, with commas between; none for an empty text.

    Raises:
        ValueError: the text is something else; quotes it.
    """
    try:
        shares = [float(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise ValueError(f"drop_at is {text!r}; expected numbers, for example {DEFAULT_SHARES}.") from error
    return check_shares("drop_at", shares)


def seeds_from(seed: int, count: int) -> list[int]:
    """`count` seeds from the first one on; after the largest that ComfyUI knows comes 0."""
    return [(seed + number) % 2**64 for number in range(count)]
