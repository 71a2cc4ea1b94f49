"""Arguments of analyses that are of another kind than asked for: refused by name, with the likely remedy."""

from numbers import Integral

from tasks.errors import InputError
from tasks.prompts import Prompts


def refuse_no_prompts(prompts: object, argument: str = "prompts") -> None:
    """Raise InputError if these are no prompts: the task that draws them, say, or their tokens.

    >>> from tasks import SparseRegression
    >>> refuse_no_prompts(SparseRegression())
    Traceback (most recent call last):
        ...
    tasks.errors.InputError: prompts is a SparseRegression, no Prompts, did you mean its .sample(512, seed=1)?
    """
    if not isinstance(prompts, Prompts):
        drawn = callable(getattr(prompts, "sample", None))
        meant = ", did you mean its .sample(512, seed=1)?" if drawn else ": draw some by task.sample(512, seed=1)"
        given = "None" if prompts is None else f"a {type(prompts).__name__}"
        raise InputError(f"{argument} is {given}, no Prompts{meant}")


def check_seed(seed: object) -> None:
    """Raise InputError if this is no seed of intervals and draws: None, say, would give other numbers every time.

    >>> check_seed(None)
    Traceback (most recent call last):
        ...
    tasks.errors.InputError: seed = None is no seed: give a whole number, at least 0
    """
    if not isinstance(seed, Integral) or isinstance(seed, bool) or seed < 0:
        raise InputError(f"seed = {seed!r} is no seed: give a whole number, at least 0")
