"""Attributes typed by a user: antonym pairs with weights. Needs no ComfyUI."""

import math

EXAMPLE = "Sharp photo. / Blurry photo.\nColorful photo. / Dull photo. = 0.5"


def parse_attributes(text: str) -> tuple[list[tuple[str, str]], list[float]]:
    """Lines "wanted / unwanted" or "wanted / unwanted = weight"; empty lines and lines that begin with # do not count.

    Raises:
        ValueError: a line is something else, or there is none; quotes the line.
    """
    pairs, weights = [], []
    for line in map(str.strip, text.splitlines()):
        if not line or line.startswith("#"):
            continue
        words, _, weight = line.partition("=")
        wanted, slash, unwanted = (part.strip() for part in words.partition("/"))
        try:
            weights.append(float(weight) if weight else 1.0)
        except ValueError as error:
            raise ValueError(f"the weight in {line!r} is no number; expected for example: {EXAMPLE!r}.") from error
        if not math.isfinite(weights[-1]):
            raise ValueError(f"the weight in {line!r} is not finite; expected for example: {EXAMPLE!r}.")
        if not (wanted and slash and unwanted) or "/" in unwanted:
            raise ValueError(f"got {line!r}; expected wanted / unwanted, for example: {EXAMPLE!r}.")
        pairs.append((wanted, unwanted))
    if not any(weights):
        raise ValueError(f"there are no attributes with a weight; expected lines such as {EXAMPLE!r}.")
    return pairs, weights
