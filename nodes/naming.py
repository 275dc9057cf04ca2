"""Names of saved files, as Save Image has them. Needs no ComfyUI."""

import os

from ..errors import fitted_name

BATCH_NUMBER = "%batch_num%"
"""What ComfyUI leaves in a prefix for the place of a picture in its batch, from 0."""


def picture_names(folder: str, name: str, counter: int, count: int) -> list[str]:
    """Files for a batch; the counter goes on until they are all new.

    Args:
        folder: where they go.
        name: the prefix, perhaps with BATCH_NUMBER. ComfyUI's own counter does not see files of such a prefix and
            begins at 1 each time.
        counter: of the first picture, at least.
        count: how many.
    """
    while True:
        names = [
            fitted_name(name.replace(BATCH_NUMBER, str(place)), f"_{number:05}_.png")
            for place, number in enumerate(range(counter, counter + count))
        ]
        if not any(os.path.exists(os.path.join(folder, each)) for each in names):
            return names
        counter += 1


def table_name(name: str) -> str:
    """The CSV of all pictures of a prefix."""
    return fitted_name(name.replace(BATCH_NUMBER, "") or "scores", ".csv")
