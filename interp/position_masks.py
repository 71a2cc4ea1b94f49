"""Which positions of each prompt: a mask, or a label of the prompts that says so."""

import torch
from jaxtyping import Bool
from torch import Tensor

from tasks.errors import InputError
from tasks.prompts import Prompts

Where = Bool[Tensor, "batch pos"] | str | tuple[str | int | bool | float, ...]
"""A mask; a label that is true or false (``"trigger"``); or a label and the values meant (``("segment", "first")``)."""


def mask_of(prompts: Prompts, where: Where) -> Bool[Tensor, "batch pos"]:
    """The positions that ``where`` stands for, [batch, pos]; never none.

    A value of a label is given as a number, or in words where the prompts have words for it.

    Raises:
        InputError: a mask that is no mask, has another shape than the prompts or holds nowhere; a label or value that
            does not exist or occurs nowhere; a label without values that is not true or false.

    >>> tokens = torch.tensor([[3, 1, 2]])
    >>> prompts = Prompts.from_tensors(tokens, labels={"kind": tokens % 2}, label_names={"kind": ("even", "odd")})
    >>> mask_of(prompts, ("kind", "odd"))
    tensor([[ True,  True, False]])
    """
    if isinstance(where, Tensor):
        return _own_mask(prompts, where)
    if not where:
        raise InputError(f"where = {where!r} names nothing: give a label, a label and values, or a mask")
    label, *values = (where,) if isinstance(where, str) else where
    return _labelled(prompts, label, values)


def _own_mask(prompts: Prompts, mask: Tensor) -> Bool[Tensor, "batch pos"]:
    expected = tuple(prompts.targets.shape)
    if mask.dtype != torch.bool or tuple(mask.shape) != expected:
        raise InputError(
            f"the mask is {mask.dtype} {list(mask.shape)}: give booleans {list(expected)}, one per prompt and position"
        )
    if not mask.any():
        raise InputError(f"the mask holds at none of the {mask.numel()} positions: nothing would be written")
    return mask


def _labelled(prompts: Prompts, label: object, values: list) -> Bool[Tensor, "batch pos"]:
    if label not in prompts.labels:
        raise InputError(f"{label!r} is no label of these prompts: choose {', '.join(prompts.labels) or 'none'}")
    assert isinstance(label, str)
    of_label = prompts.labels[label]
    if of_label.ndim != 2:
        raise InputError(f"label {label!r} is {list(of_label.shape)}: positions are chosen by one that is [batch, pos]")
    if not values and of_label.dtype != torch.bool:
        raise InputError(f"label {label!r} is not true or false: say which values, ({label!r}, 1) say")
    names = prompts.label_names.get(label, ())
    mask = torch.zeros_like(of_label, dtype=torch.bool)
    for value in values or [True]:
        if isinstance(value, str) and value not in names:
            raise InputError(f"{value!r} is no value of label {label!r}: choose {', '.join(names) or 'a number'}")
        here = of_label == (names.index(value) if isinstance(value, str) else value)
        if not here.any():
            raise InputError(f"label {label!r} is {value!r} at no position of these prompts: nothing would be written")
        mask |= here
    return mask
