"""What every construction hands over: a model, prompts, and the truth about them as data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from interp.hooked_transformer import HookedTransformer
from interp.hooked_transformer_config import HookedTransformerConfig
from tasks.prompts import Prompts

Estimand = Literal[
    "zero", "mean", "resample", "counterfactual", "restored", "direct", "gradient", "integrated", "shapley", "pairs",
    "edges, zero", "edges, counterfactual",
]  # fmt: skip
"""What is asked of a component or an edge; see ``KnownCircuit.effects``, whose keys these are."""


@dataclass(frozen=True, eq=False)
class KnownCircuit:
    """A model whose circuit is known because its weights were written by hand, and the truth about it.

    All effects are changes of the mean logit difference (``metric="logit_diff"``: answer minus ``prompts.wrong``), in
    logits. Components are named ``L0H0``, ``L0.mlp``, edges ``L0H0->L1H0.k``. A head or edge that is not named has an
    effect of exactly zero, or with ``crosstalk`` is named too.

    Attributes:
        name: a word or two.
        about: what the circuit does, and what is to be learned from it.
        model: in double precision.
        prompts: with wrong answers and counterfactuals; they are balanced, so that every answer comes up equally.
        reference: as many prompts, all the same, that hold neither answer: whatever resampling draws, it is known.
        true_edges: the edges that the construction wires, whether or not the prompts bring out an effect.
        effects: what is true of each component or edge, by what is asked. "zero", "mean", "resample" and
            "counterfactual": what writing zero, the mean over the prompts, ``reference``'s activation or the
            counterfactual's at a head changes; "restored": what writing the clean activation into the run on the
            counterfactuals changes; "direct": what the component itself adds to the logit difference; "gradient": minus
            the derivative along its own output; "integrated" and "shapley": its share, the heads of a layer or all
            heads being taken to zero; "pairs": ``L0H0+L1H0``, the effect of zeroing both less those of zeroing each;
            "edges, zero" and "edges, counterfactual": what a receiver changes that gets zero, or the counterfactual's
            output, from one sender.
        baseline: the logit difference of the untouched model.
        quadrature: (c, k), where integrating by n midpoints is off by at most c / nᵏ.
        crosstalk: whether components overlap, so that edges that are not wired have small effects too.
        decoys: heads that attend and do not matter.
        backups: heads that act only where another is missing.
    """

    name: str
    about: str
    model: HookedTransformer
    prompts: Prompts
    reference: Prompts
    true_edges: frozenset[str]
    effects: Mapping[str, Mapping[str, float]]
    baseline: float
    quadrature: tuple[float, int] = (0.0, 1)
    crosstalk: bool = False
    decoys: tuple[str, ...] = ()
    backups: tuple[str, ...] = field(default=())

    def effect(self, estimand: Estimand, of: str) -> float:
        """What is true of a component or edge; zero where it is not named."""
        return self.effects[estimand].get(of, 0.0)


def blank_model(**shape: Any) -> HookedTransformer:
    """A model in double precision whose weights are all zero."""
    model = HookedTransformer(HookedTransformerConfig(**shape, seed=None)).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    return model


def paired_prompts(rows: list[list[int]], others: list[list[int]], answer_at: int, neutral: list[int]) -> Any:
    """Prompts scored at their last position, whose answer stands at ``answer_at``; and the neutral reference.

    The wrong answer is the counterfactual's.
    """
    inputs, swapped = torch.tensor(rows), torch.tensor(others)
    scored = torch.zeros_like(inputs, dtype=torch.bool)
    scored[:, -1] = True
    targets, wrong = (one[:, answer_at : answer_at + 1].expand_as(inputs).clone() for one in (inputs, swapped))
    other = Prompts(swapped, wrong, scored)
    prompts = Prompts(inputs, targets, scored, wrong=wrong, counterfactual=other)
    same = torch.tensor([neutral]).expand_as(inputs).clone()
    return prompts, Prompts(same, targets, scored)
