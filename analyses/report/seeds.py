"""How a report's prompts are kept apart from all that training saw, and how many there can be."""

from tasks.errors import InputError

REPORT_STREAM = 1_380_274_260
"""Last word of the seed of a report's prompts; training and evaluation seeds have one word or two, never this third."""
MOST_PROMPTS = 100_000


def check_n_prompts(n_prompts: int) -> None:
    """Raise InputError if intervals cannot be had from so few prompts, or so many cannot be held."""
    if not 2 <= n_prompts <= MOST_PROMPTS:
        raise InputError(f"n_prompts = {n_prompts}: intervals over prompts need 2 to {MOST_PROMPTS}")
