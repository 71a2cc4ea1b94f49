"""How often trained models and reference predictors are right on prompts."""

import torch

from interp.run import Run
from tasks.prompts import Prompts
from tasks.protocol import Predictor

_BATCH = 256


@torch.no_grad()
def accuracy_of(run: Run, prompts: Prompts) -> float:
    """The share of scored positions that a run's last model predicts."""
    return predicted(lambda part: run.model(part.inputs), prompts)


def predicted(predictor: Predictor, prompts: Prompts) -> float:
    """The share of scored positions that a predictor predicts.

    >>> prompts = Prompts.from_tensors(torch.tensor([[0, 1, 1]]))
    >>> predicted(lambda part: torch.eye(2)[part.inputs], prompts)
    0.5
    """
    return _mean(prompts, predictor, loss=False)


def loss_of(predictor: Predictor, prompts: Prompts) -> float:
    """A predictor's mean loss at the scored positions, in nats."""
    return _mean(prompts, predictor, loss=True)


def not_absorbed(prompts: Prompts) -> Prompts:
    """Scored where the prompt can still bring something new: where it goes round a loop, copying is trivial."""
    return prompts.score_only(~prompts.labels["absorbed"])


def _mean(prompts: Prompts, predictor: Predictor, *, loss: bool) -> float:
    sums = counts = 0.0
    for start in range(0, len(prompts), _BATCH):
        part = prompts[start : start + _BATCH]
        outputs = predictor(part)
        total, count = part.loss(outputs) if loss else part.accuracy(outputs)
        sums, counts = sums + float(total.sum()), counts + float(count.sum())
    return sums / counts
