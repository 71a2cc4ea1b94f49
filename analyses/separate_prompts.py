"""What was chosen on some prompts is judged on others: the refusal of prompts that serve twice."""

from analyses.argument_checks import refuse_no_prompts
from tasks.errors import InputError
from tasks.prompts import Prompts


def refuse_same_prompts(chosen_on: Prompts, judged_on: Prompts, argument: str, judged: str = "prompts") -> None:
    """Raise InputError if both are the same prompts, share a seed, or (their seeds unknown) share a prompt.

    Prompts of one seed are never independent, even where their number differs: they begin with the same draws.

    Raises:
        InputError: as said, or there are no prompts to choose on; the message names ``argument`` and, as
            ``judged``, the other.

    >>> import torch
    >>> tokens = torch.tensor([[0, 1], [1, 0]])
    >>> refuse_same_prompts(Prompts.from_tensors(tokens[:1]), Prompts.from_tensors(tokens[1:]), "fit")
    >>> refuse_same_prompts(Prompts.from_tensors(tokens), Prompts.from_tensors(tokens[1:]), "fit")
    Traceback (most recent call last):
        ...
    tasks.errors.InputError: 1 of the 2 prompts of fit is also judged on: give fit other prompts
    """
    refuse_no_prompts(chosen_on, argument)
    refuse_no_prompts(judged_on, judged)
    if not len(chosen_on):
        raise InputError(f"{argument} holds 0 prompts: sample some")
    if chosen_on is judged_on:
        raise InputError(f"{argument} are the prompts that are judged on ({judged}): sample others, with another seed")
    if chosen_on.seed is not None and judged_on.seed is not None:
        if chosen_on.seed == judged_on.seed:
            raise InputError(f"{argument} and {judged} were drawn with the same seed, {judged_on.seed}: use another")
        return
    contents = {_contents(judged_on, index) for index in range(len(judged_on))}
    shared = sum(_contents(chosen_on, index) in contents for index in range(len(chosen_on)))
    if shared:
        which = f"{shared} of the {len(chosen_on)} prompts of {argument}"
        raise InputError(f"{which} {'is' if shared == 1 else 'are'} also judged on: give {argument} other prompts")


def _contents(prompts: Prompts, index: int) -> bytes:
    return prompts.inputs[index].numpy(force=True).tobytes()
