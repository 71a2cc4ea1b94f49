"""The skill that a model shows in context, beyond what the current token tells, and what each head's removal takes."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from interp.interventions import Edit, Intervention, intervene
from interp.model_adapter import HookedModel
from interp.sites import Site
from interp.statistics import ratio_interval
from tasks.prompts import Prompts
from tasks.protocol import Predictor

Hits = Float[ndarray, "prompts"]
"""Scored positions that were predicted correctly, per prompt."""


@dataclass(frozen=True)
class Estimate:
    """A number with the ends of its confidence interval."""

    value: float
    low: float
    high: float

    @property
    def is_positive(self) -> bool:
        """Whether the whole interval lies above zero."""
        return self.low > 0

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {"value": self.value, "ci_low": self.low, "ci_high": self.high}


@dataclass(frozen=True, eq=False)
class Skill:
    """Correct guesses at the same positions of the same prompts: the model's, its ablations', the predictors'.

    Attributes:
        hits: per source, correct guesses in each prompt. The sources are "model", "chance" and what else was asked.
        ablated: the same for the model without each head (``L1H0``), its output replaced by zeros.
        counts: how many positions each prompt has.
    """

    hits: Mapping[str, Hits]
    ablated: Mapping[str, Hits]
    counts: Hits
    seed: int = 0

    @classmethod
    def measure(
        cls,
        model: HookedModel,
        prompts: Prompts,
        predictors: Mapping[str, Predictor],
        edits: Mapping[Site, Edit],
        *,
        batch_size: int = 512,
        seed: int = 0,
    ) -> "Skill":
        """Count correct guesses at the scored positions of the prompts."""
        hits: dict[str, list[Tensor]] = {name: [] for name in ["model", *predictors]}
        ablated: dict[str, list[Tensor]] = {str(site): [] for site in edits}
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            with torch.no_grad():
                hits["model"].append(batch.accuracy(model(batch.inputs))[0])
                for name, predict in predictors.items():
                    hits[name].append(batch.accuracy(predict(batch))[0])
                for site, edit in edits.items():
                    with intervene(model, [Intervention(site, edit)]):
                        ablated[str(site)].append(batch.accuracy(model(batch.inputs))[0])
        counts = prompts.scored.sum(dim=1).double().cpu().numpy()
        return cls(_joined(hits), _joined(ablated), counts, seed)

    def accuracy(self, source: str, *, ablated: bool = False) -> Estimate:
        """Share of the positions that a source predicts correctly."""
        return self._ratio((self.ablated if ablated else self.hits)[source], self.counts)

    def gain(self, over: str, *, confidence: float = 0.95) -> Estimate:
        """How much more the model gets right than another source, paired by prompt."""
        return self._ratio(self.hits["model"] - self.hits[over], self.counts, confidence)

    def share_lost(self, head: str, *, confidence: float = 0.95) -> Estimate:
        """The share of the skill above chance that goes with a head: (model − ablated) / (model − chance).

        1 where the model without the head is at chance, 0 where it is as good as before. Only meaningful for a model
        that beats chance: the interval is a paired bootstrap of the ratio.
        """
        lost = self.hits["model"] - self.ablated[head]
        skill = self.hits["model"] - self.hits["chance"]
        return self._ratio(lost, skill, confidence)

    def _ratio(self, sums: Hits, counts: Hits, confidence: float = 0.95) -> Estimate:
        with np.errstate(divide="ignore"):  # a resample in which the model had no skill at all
            interval = ratio_interval(sums[:, None], counts[:, None], confidence=confidence, seed=self.seed)
        return Estimate(float(interval.estimate[0]), float(interval.low[0]), float(interval.high[0]))


def _joined(parts: Mapping[str, list[Tensor]]) -> dict[str, Hits]:
    return {name: np.asarray(torch.cat(of).double().cpu()) for name, of in parts.items()}
