"""What a model scores on prompts, as a whole and by segment."""

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

from interp.hooked_transformer import HookedTransformer
from tasks.errors import InputError
from tasks.prompts import CLEAN_TARGET, Prompts

SEGMENT = "segment"
"""The label by whose values the figures are split, where a task has it."""


@torch.no_grad()
def evaluate(model: HookedTransformer, prompts: Prompts, batch_size: int) -> dict[str, float]:
    """Loss and, for tokens, accuracy on the scored positions: ratios of sums over all prompts.

    The keys are "loss" and "accuracy" (for regression with known w* "excess_risk", in squared units of y),
    and for every segment that is scored at all "loss_global" and the like (the name comes from
    ``prompts.label_names["segment"]``). Losses are nats, or squared errors.

    Raises:
        InputError: the prompts score no position.
    """
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        outputs = model(batch.inputs)
        for suffix, part in _parts(batch).items():
            for metric, measured in _metrics(part).items():
                total, count = measured(outputs)
                sums[metric + suffix] += float(total.sum())
                counts[metric + suffix] += int(count.sum())
    if not counts["loss"]:
        raise InputError(f"none of the {len(prompts)} evaluation prompts scores a position: raise eval_prompts")
    return {name: sums[name] / counts[name] for name in sums if counts[name]}


def _metrics(part: Prompts) -> dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]]:
    if not part.targets.is_floating_point():
        return {"loss": part.loss, "accuracy": part.accuracy}
    if CLEAN_TARGET not in part.labels:
        return {"loss": part.loss}
    return {"loss": part.loss, "excess_risk": part.excess_risk}


def _parts(batch: Prompts) -> dict[str, Prompts]:
    """All scored positions, and those of each segment, by the suffix of their figures' names."""
    parts = {"": batch}
    if SEGMENT in batch.labels:
        names = batch.label_names.get(SEGMENT, ())
        for value in batch.labels[SEGMENT].unique().tolist():
            name = names[value] if 0 <= value < len(names) else str(value)
            parts[f"_{name}"] = batch.score_only(batch.labels[SEGMENT] == value)
    return parts
