"""Claim: one head in each later layer is enough, while the first layer needs its heads."""

import numpy as np
import pandas as pd

from analyses.papers.chen2024.checkpoints import Checkpoint, arm_of, load, task_with
from analyses.papers.chen2024.setting import (
    ATTENTION,
    JUDGED,
    KINDS,
    MOST_HEADS,
    N_CONTEXT,
    RANKED,
    SEEDS,
    SETTINGS,
    TEST_SEED,
)
from analyses.papers.chen2024.where import in_words, where_it_holds
from analyses.papers.claims import Claim, Evidence, Outcomes, Scale
from analyses.papers.jobs import Arm
from analyses.papers.seed_figures import seed_curves
from analyses.papers.verdicts import Criterion
from analyses.pruning import prune_heads
from analyses.report.contents import FigureOf, TableOf
from interp.hooked_transformer import HookedTransformer
from tasks.sparse_regression import SparseRegression

NEARLY = Criterion(
    "later-pruned",
    "log₁₀ of the risk with one head kept in each later layer, over that of the full model",
    0.1,
    "below",
    source="[abs]; margin (1.26 times the risk) [ours]",
)
UNLIKE = Criterion(
    "first-over-later",
    "log₁₀ of the risk with one head kept in the first layer instead, over that with one in each later layer",
    0.3,
    source="[abs]; margin (twice the risk) [ours]",
)
LATER, RANDOM, FIRST = "by importance", "at random", "other layers"
_SHOWN = {LATER: "later layers, by importance", RANDOM: "later layers, at random", FIRST: "first layer, by importance"}


def later_heads_can_be_pruned(scale: Scale) -> Claim:
    """Pruning later layers to their top head, beside random heads and the first layer."""
    one = SETTINGS[scale]
    return Claim(
        name="pruning",
        sentence="The first layer whole and only the top head of each later layer do nearly as well as the full model, "
        "unlike a pruned first layer.",
        source="[abs][mem]",
        question="What is the excess risk if each later layer keeps its k most important heads, or the first layer "
        "does, without training again?",
        criteria=(NEARLY, UNLIKE),
        measured="Heads are ranked by the rise of the excess risk when each alone is set to zero, on prompts of their "
        "own; then all but the k most important of the pruned layers are set to zero together. Controls: k heads "
        f"chosen at random ({one.random_choices} times) in place of the most important, and the first layer pruned in "
        f"place of the later ones. {one.head_prompts} prompts of {N_CONTEXT} pairs for each seed, and as many to rank "
        "on. Risks are compared as logarithms, since pruned models can be off by any factor.",
        arms={kind: _arm(scale, kind) for kind in KINDS},
        measure=measure_pruning,
        control="Untrained twins, in which no layer's heads matter.",
        null_arms={ATTENTION: _arm(scale, ATTENTION, untrained=True)},
    )


def measure_pruning(outcomes: Outcomes) -> Evidence:
    """Both criteria with one head kept; where along k, the number kept, and the attention they hold."""
    held, values = {}, {}
    for kind, arm in outcomes.items():
        by_kept = {
            f"{kind} attention, {kept} kept": {
                NEARLY.name: [_log_ratio(rows, LATER, kept) for rows in arm],
                UNLIKE.name: [_log_ratio(rows, FIRST, kept, over=LATER) for rows in arm],
            }
            for kept in sorted({int(kept) for kept in arm[0]["kept"]})
            if kept < MOST_HEADS
        }
        values[kind] = next(iter(by_kept.values()))
        held |= by_kept
    deciding = outcomes[ATTENTION]
    curves = {
        shown: [
            (part["kept"].to_numpy(dtype=float), np.log10(part["ablated"].to_numpy(dtype=float)))
            for part in (rows.loc[rows["arm"] == arm].sort_values("kept") for rows in deciding)
        ]
        for arm, shown in _SHOWN.items()
    }
    at_random = [_log_ratio(rows, RANDOM, 1, over=LATER) for rows in deciding]
    figure = seed_curves(curves, x="heads kept in each pruned layer", y="log₁₀ of the excess risk")
    where = where_it_holds((NEARLY, UNLIKE), held, "Where it holds: attention and heads kept")
    tables = [
        where,
        TableOf(
            "risk",
            "Excess risk with k heads kept",
            pd.concat([rows.assign(attention=kind, seed=seed) for kind, arm in outcomes.items()
                       for seed, rows in zip(SEEDS, arm, strict=False)], ignore_index=True),
        ),
    ]  # fmt: skip
    return Evidence(
        values[ATTENTION],
        figures=[
            FigureOf(figure, "Risk against the number of heads kept: thin lines are seeds, thick ones their mean.")
        ],
        tables=tables,
        text=[
            in_words(where),
            (
                "With one head kept per later layer, heads chosen at random instead of by importance give "
                f"{10 ** float(np.mean(at_random)):.2g} times the risk (geometric mean over seeds of the mean over "
                "draws; above 1, importance is worth something)."
            ),
        ],
    )


def pruned(*, seed: int, checkpoint: Checkpoint, n_prompts: int, n_random: int) -> pd.DataFrame:
    """One model pruned in every way: columns arm, kept, baseline, ablated."""
    return pruned_heads(load(checkpoint), task_with(N_CONTEXT), seed=seed, n_prompts=n_prompts, n_random=n_random)


def pruned_heads(
    model: HookedTransformer, task: SparseRegression, *, seed: int, n_prompts: int, n_random: int
) -> pd.DataFrame:
    """A model pruned in every way: columns arm, kept, baseline, ablated (risks)."""
    prompts, ranked_on = (task.sample(n_prompts, seed=(TEST_SEED, purpose, seed)) for purpose in (JUDGED, RANKED))
    result = prune_heads(model, prompts, importance=ranked_on, metric="excess_risk", n_random=n_random, seed=seed)
    return result.frame[["arm", "kept", "baseline", "ablated"]]


def _log_ratio(rows: pd.DataFrame, arm: str, kept: int, over: str | None = None) -> float:
    """log₁₀ of one arm's risk over another's, or over the full model's."""
    at = rows.loc[rows["kept"] == kept].set_index("arm")[["baseline", "ablated"]].astype(float).to_dict("index")
    reference = at[arm]["baseline"] if over is None else at[over]["ablated"]
    return float(np.log10(at[arm]["ablated"] / reference))


def _arm(scale: Scale, kind: str, *, untrained: bool = False) -> Arm:
    one = SETTINGS[scale]
    arguments = {"n_prompts": one.head_prompts, "n_random": one.random_choices}
    return arm_of(pruned, "pruning", n_heads=MOST_HEADS, attention=kind, untrained=untrained, cost=4.0, **arguments)
