"""The sentences a regression report leads with, each computed from numbers and able to say that nothing was found."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from analyses.algorithm_distance import AlgorithmDistances
from analyses.head_assessment import HeadAssessment
from analyses.report.findings import CLEAR, Finding
from analyses.report.skill import Estimate
from interp.model_adapter import HookedModel, outputs
from interp.statistics import ratio_interval
from tasks.prompts import Prompts
from tasks.protocol import Predictor


def find_risk(
    model: HookedModel, prompts: Prompts, predictors: Mapping[str, Predictor], *, seed: int = 0, batch_size: int = 512
) -> Finding:
    """Does the model predict better than the zero prediction, and which reference algorithms does it beat?

    It beats one if the whole interval of the paired difference of risks, at 99 % divided among the algorithms
    (Bonferroni), lies below 0.
    """
    sums: dict[str, list[torch.Tensor]] = {name: [] for name in ("model", *predictors)}
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        with torch.no_grad():
            answers = {"model": outputs(model, batch.inputs)} | {name: of(batch) for name, of in predictors.items()}
        for name, answer in answers.items():
            sums[name].append(batch.excess_risk(answer)[0].double())
    risk = {name: torch.cat(parts).numpy(force=True) for name, parts in sums.items()}
    counts = prompts.scored.sum(dim=1).double().numpy(force=True)
    level = 1 - (1 - CLEAR) / max(1, len(predictors))

    def estimate(values: np.ndarray, confidence: float) -> Estimate:
        found = ratio_interval(values[:, None], counts[:, None], confidence=confidence, seed=seed)
        return Estimate(float(found.estimate[0]), float(found.low[0]), float(found.high[0]))

    own = estimate(risk["model"], 0.95)
    less = {name: estimate(risk[name] - risk["model"], level) for name in predictors}
    beaten = [name for name, gain in less.items() if gain.is_positive]
    behind = [name for name, gain in less.items() if gain.high < 0]
    numbers: dict[str, Any] = {
        "model": own.as_dict(),
        "predictors": {
            name: estimate(risk[name], 0.95).as_dict() | {"less_risk_of_model": less[name].as_dict()}
            for name in predictors
        },
        "confidence_of_differences": level,
        "beaten": beaten,
        "ahead_of_model": behind,
    }
    said = f"excess risk {_number(own)}"
    if "zero" not in beaten:
        return Finding("risk", False, f"Nothing was learned: {said}, no less than that of predicting 0.", numbers)
    rivals = {name: estimate(risk[name], 0.95) for name in predictors if name != "zero"}
    below = [f"{name} ({_number(rivals[name])})" for name in rivals if name in beaten]
    above = [f"{name} ({_number(rivals[name])})" for name in rivals if name in behind]
    even = [f"{name} ({_number(rivals[name])})" for name in rivals if name not in beaten and name not in behind]
    parts = [
        f"{relation} {_listed(names)}"
        for relation, names in (("below that of", below), ("above that of", above), ("not told from that of", even))
        if names
    ]
    # Better than 0 is not yet regression: an algorithm that fits the context must be matched.
    learned = (
        "The model learned to regress in context" if below or even else "The model predicts better than 0, no more"
    )
    return Finding("risk", True, f"{learned}: {said}, {'; '.join(parts)}.", numbers)


def find_shares(assessment: HeadAssessment) -> Finding:
    """Do many heads share the first layer's work and few that of the later ones?"""
    rows = [{str(key): value for key, value in row.items()} for row in assessment.layers.to_dict("records")]
    numbers: dict[str, Any] = {"layers": rows}
    known = [row for row in rows if row["effective_heads"] == row["effective_heads"]]
    if not known or known[0]["layer"] != 0 or len(known) < 2:
        return Finding("heads", False, "Nothing was found about heads: too few layers suffer from losing one.", numbers)
    counts = {row["n_heads"] for row in rows}
    if counts == {1}:
        return Finding("heads", False, "The model has one head per layer: there is no work to share.", numbers)
    first, later = known[0], known[1:]
    each = [f"layer {row['layer']} {_heads(row)}" for row in known]
    alike = len(counts) == 1  # layers that were given other numbers of heads say nothing about learning
    more = alike and all(first["ci_low"] > row["ci_high"] for row in later)
    fewer = alike and all(first["ci_high"] < row["ci_low"] for row in later)
    few = alike and all(row["ci_high"] <= row["n_heads"] / 2 for row in known)
    numbers |= {"first_layer_uses_more": more, "first_layer_uses_fewer": fewer, "few_everywhere": few}
    of = f"heads effectively used: {_listed(each)}"
    if missing := [f"layer {row['layer']}" for row in rows if row not in known]:
        of += f"; no head of {_listed(missing)} does harm by being lost"
    if more:
        sentence = f"Many heads share the work of the first layer and fewer that of the later ones ({of})."
    elif fewer:
        sentence = f"Fewer heads share the work of the first layer than of the later ones ({of})."
    elif not alike:
        sentence = f"Nothing is said of how layers share their work: they have different numbers of heads ({of})."
    elif few:
        sentence = f"Few heads do the work of every layer, the first like the later ones ({of})."
    else:
        sentence = f"Nothing was found about an order of the layers in how many heads share their work ({of})."
    return Finding("heads", more or fewer or few, sentence, numbers)


def find_algorithm(distances: AlgorithmDistances, as_trained: str, *, worse_than_zero: Sequence[str] = ()) -> Finding:
    """Which algorithm do the model's predictions lie closest to, as trained and off the training distribution?

    ``worse_than_zero`` names the sets of prompts on which the model fails altogether, so that nothing is near it.
    """
    frame = distances.frame.loc[distances.frame["source"] == "model"]
    closest = frame.loc[frame["closest"]]
    rows = [{str(key): value for key, value in row.items()} for row in closest.to_dict("records")]
    keys = ("prompts", "algorithm", "distance", "ci_low", "ci_high", "not_told_from")
    numbers: dict[str, Any] = {"closest": [{key: row[key] for key in keys} for row in rows]}
    own = next(row for row in rows if row["prompts"] == as_trained)
    others = frame.loc[(frame["prompts"] == as_trained) & ~frame["closest"]]
    clear = bool((others["behind_low"] > 0).all()) and not own["not_told_from"]
    shifted = [row for row in rows if row is not own]
    same = sum(row["algorithm"] == own["algorithm"] and row["prompts"] not in worse_than_zero for row in shifted)
    distance = _number(Estimate(own["distance"], own["ci_low"], own["ci_high"]))
    where = ""
    if shifted:
        where = (
            f" {own['algorithm'].capitalize()} is the closest on {same} of {len(shifted)} shifted sets of prompts too."
        )
    if worse_than_zero:
        where += f" On {_listed(list(worse_than_zero))} the model does worse than predicting 0."
    numbers["worse_than_zero"] = list(worse_than_zero)
    if clear:
        sentence = (
            f"Of the algorithms compared, the model acts most like {own['algorithm']} (distance {distance}).{where}"
        )
        return Finding("algorithm", True, sentence, numbers)
    doubt = f", but it is not told from {own['not_told_from']}" if own["not_told_from"] else ", but not clearly"
    sentence = (
        f"Nothing was found about the algorithm: the model's predictions lie closest to {own['algorithm']} "
        f"(distance {distance}){doubt}.{where}"
    )
    return Finding("algorithm", False, sentence, numbers)


def _heads(row: Mapping[str, Any]) -> str:
    return f"{row['effective_heads']:.1f} [{row['ci_low']:.1f}, {row['ci_high']:.1f}] of {row['n_heads']}"


def _number(estimate: Estimate) -> str:
    """Three significant digits with the interval.

    >>> _number(Estimate(0.1234, 0.11, 0.13))
    '0.123 [0.11, 0.13]'
    """
    return f"{estimate.value:.3g} [{estimate.low:.3g}, {estimate.high:.3g}]"


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
