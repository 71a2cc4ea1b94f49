"""Claim: all heads of the first layer are needed, and one head dominates each later layer."""

import numpy as np
import pandas as pd
import torch

from analyses.head_assessment import assess_heads, effective_heads
from analyses.papers.chen2024.checkpoints import Checkpoint, arm_of, load, task_with
from analyses.papers.chen2024.setting import (
    ATTENTION,
    JUDGED,
    KINDS,
    MOST_HEADS,
    N_CONTEXT,
    SEEDS,
    SETTINGS,
    TEST_SEED,
)
from analyses.papers.chen2024.where import in_words, where_it_holds
from analyses.papers.claims import Claim, Evidence, Outcomes, Scale
from analyses.papers.jobs import Arm
from analyses.papers.seed_figures import seed_points
from analyses.papers.verdicts import Criterion
from analyses.references import Method
from analyses.report.contents import FigureOf, TableOf
from interp.hooked_transformer import HookedTransformer
from tasks.sparse_regression import SparseRegression

FIRST = Criterion(
    "first-layer", "number of heads, of 8, that the first layer effectively uses", 4.0, source="[abs]; margin [ours]"
)
LATER = Criterion(
    "later-layers",
    "number of heads that the later layers effectively use, their mean",
    2.0,
    "below",
    source="[abs]; margin [ours]",
)
_FEW_PAIRS = N_CONTEXT // 2
UNTRAINED = "untrained twins"
_DECIDING = (ATTENTION, "zero", N_CONTEXT)


def heads_have_roles(scale: Scale) -> Claim:
    """Head assessment by layer."""
    settings = [(kind, method, n) for kind in KINDS for method in ("zero", "mean") for n in (N_CONTEXT, _FEW_PAIRS)]
    return Claim(
        name="head-roles",
        sentence="All heads of the first layer are needed, while one head dominates each later layer.",
        source="[abs][mem]",
        question="How evenly do the eight heads of each layer share its work, if one head at a time is taken away?",
        criteria=(FIRST, LATER),
        measured="Head assessment [mem]: Δ is the rise of the excess risk if a head is set to zero, W = max(Δ, 0) / "
        "Σ max(Δ, 0) its share within the layer, and 1 / Σ W² the number of heads that the layer effectively uses: 1 "
        "if one does all, 8 if all are alike (and 8 where no head's loss does harm: then nothing tells them apart). "
        f"{SETTINGS[scale].head_prompts} prompts of {N_CONTEXT} pairs for each seed.",
        arms={_named(*setting): _arm(scale, *setting) for setting in settings}
        | {UNTRAINED: _arm(scale, *_DECIDING, untrained=True)},
        measure=measure_head_roles,
        control="The same models with their layers in the opposite order: where the claim holds, the last layer lacks "
        "what the first has.",
        null_arms={_named(*_DECIDING): _arm(scale, *_DECIDING, backwards=True)},
    )


def measure_head_roles(outcomes: Outcomes) -> Evidence:
    """Effective heads by layer, in the deciding setting and in the others."""
    by_setting = {name: [_numbers(rows) for rows in arm] for name, arm in outcomes.items()}
    values = {
        name: {FIRST.name: [one[0] for one in numbers], LATER.name: [float(np.mean(one[1:])) for one in numbers]}
        for name, numbers in by_setting.items()
    }
    deciding = _named(*_DECIDING)
    of_layers = np.array(by_setting[deciding])
    points = {f"layer {layer + 1}": of_layers[:, layer].tolist() for layer in range(of_layers.shape[1])}
    figure = seed_points(points, y="effective heads", marks={"all alike": float(MOST_HEADS), "one does all": 1.0})
    table = pd.DataFrame(
        [
            {"setting": name, "seed": seed} | {f"layer {layer + 1}": value for layer, value in enumerate(numbers)}
            for name, arm in by_setting.items()
            for seed, numbers in zip(SEEDS, arm, strict=False)
        ]
    )
    shares = pd.concat(
        [rows.assign(seed=seed) for seed, rows in zip(SEEDS, outcomes[deciding], strict=False)], ignore_index=True
    )
    where = where_it_holds((FIRST, LATER), values, "Where it holds: attention, ablation and pairs")
    return Evidence(
        values[deciding],
        figures=[FigureOf(figure, "How many heads each layer effectively uses, every seed a point; bars are means.")],
        tables=[
            where,
            TableOf("effective", "Effective heads by layer", table),
            TableOf("shares", "Every head's share of its layer", shares),
        ],
        text=[in_words(where)],
    )


def assessed(
    *, seed: int, checkpoint: Checkpoint, method: Method, n_context: int, n_prompts: int, backwards: bool
) -> pd.DataFrame:
    """Every head of one model: columns layer, head, delta, share; ``backwards``: layers numbered from the last."""
    rows = assessed_heads(load(checkpoint), task_with(n_context), method=method, seed=seed, n_prompts=n_prompts)
    return in_opposite_order(rows) if backwards else rows


def in_opposite_order(rows: pd.DataFrame) -> pd.DataFrame:
    """The same heads with their layers numbered from the last."""
    return rows.assign(layer=rows["layer"].max() - rows["layer"]).sort_values(["layer", "head"], ignore_index=True)


def assessed_heads(
    model: HookedTransformer, task: SparseRegression, *, method: Method = "zero", seed: int, n_prompts: int
) -> pd.DataFrame:
    """Every head of a model: columns layer, head, delta, share."""
    prompts = task.sample(n_prompts, seed=(TEST_SEED, JUDGED, seed))
    frame = assess_heads(model, prompts, method=method, metric="excess_risk").frame
    return frame[["layer", "head", "delta", "share"]]


def _numbers(rows: pd.DataFrame) -> list[float]:
    """Effective heads of each layer, from the effects as they are in the table."""
    found = []
    for _, of_layer in rows.groupby("layer"):
        harm = torch.from_numpy(of_layer["delta"].to_numpy(dtype=float).clip(min=0))
        found.append(float(effective_heads(harm)) if bool(harm.sum() > 0) else float(len(of_layer)))
    return found


def _arm(
    scale: Scale, kind: str, method: str, n_context: int, *, untrained: bool = False, backwards: bool = False
) -> Arm:
    arguments = {
        "method": method,
        "backwards": backwards,
        "n_context": n_context,
        "n_prompts": SETTINGS[scale].head_prompts,
    }
    return arm_of(assessed, "heads", n_heads=MOST_HEADS, attention=kind, untrained=untrained, **arguments)


def _named(kind: str, method: str, n_context: int) -> str:
    return f"{kind} attention, {method}-ablation, n = {n_context}"
