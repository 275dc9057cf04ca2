"""The one way in which this package replaces a method of a pipeline, scheduler or network: on one object, for a time.

Each replacement calls what it found in its place, so the one entered last acts first. In a search that uses all of them
a call of `scheduler.step` passes through, in this order:

* `search.resume`, entered for each call of the pipeline: leaves steps out up to the saved position, or leaves the run;
  until then it also silences the denoiser's `forward`;
* `guided`, a `RewardGuidanceCallback` or a modular block: moves the clean latent. Guidance inside guidance composes:
  the inner one pushes first and hands on to the outer one;
* `search.ancestral`: makes the step itself, with fresh noise;
* the scheduler's own `step`.

`observed` only looks on (`pipe.prepare_latents`), so its place does not matter.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from inspect import signature
from typing import Any

_MISSING = object()
_open: dict[tuple[int, str], list[Any]] = {}  # (object, name): what stood there first, then each open replacement


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """While open, `owner.name` is `value`, on this one object; afterwards it is what it was.

    Replacements of one name may end in any order: the latest that is still open stands there, and when all have ended
    the object is as it was found, without the attribute if it had none of its own. If something else has been put there
    meanwhile, it is left alone; then `value` is still called by it and has to pass calls on.

    Args:
        owner: a pipeline, scheduler, network or any object with a `__dict__`.
        name: of a method or attribute.
        value: takes its place.
    """
    key = (id(owner), name)
    values = _open.setdefault(key, [vars(owner).get(name, _MISSING)])
    values.append(value)
    setattr(owner, name, value)
    try:
        yield
    finally:
        on_top = vars(owner).get(name, _MISSING) is values[-1]
        values.reverse()
        values.remove(value)  # the latest of equal ones
        values.reverse()
        if on_top and values[-1] is _MISSING:
            delattr(owner, name)
        elif on_top:
            setattr(owner, name, values[-1])
        if len(values) == 1:
            del _open[key]


@contextmanager
def observed(owner: Any, method: str, note: Callable[[Mapping[str, Any], Any], None]) -> Iterator[None]:
    """While open, `note(arguments by name, result)` sees every call of one method of this one object."""
    original = getattr(owner, method)

    @wraps(original)
    def observing(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        note(signature(original).bind(*args, **kwargs).arguments, result)
        return result

    with replaced(owner, method, observing):
        yield
