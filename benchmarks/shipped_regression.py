"""The tables of docs/sparse-regression.md on the shipped run: risks, effective heads, pruning, on fresh prompts.

    python benchmarks/shipped_regression.py [--prompts 10000] [--one-head RUN]

Nothing here was seen in training or evaluation. ``--one-head`` names a run of a model with a single head per layer, the
control beside pruning.
"""

import argparse

import torch

from analyses import assess_heads, compare_predictors, gap_closed, prune_heads
from interp import Run
from tasks import BayesSparse, GradientDescent, Lasso, PreprocessThenOptimize, Ridge, SparseRegression
from tasks.protocol import Predictor

NAME = "sparse-regression-small"
EVALUATED, TUNED_ON, RANKED_ON = (9, 1), (9, 2), (9, 3)
"""Seeds of the prompts."""
BAYES = "Bayes posterior mean"
PROMPTS_FOR_HEADS = 2000
"""Of the prompts, for tables that run the model once for every head or set of heads."""


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--one-head", default=None)
    chosen = parser.parse_args()
    torch.set_num_threads(2)
    run = Run.shipped(NAME)
    task = run.task
    assert isinstance(task, SparseRegression)
    prompts, tuning = task.sample(chosen.prompts, seed=EVALUATED), task.sample(2000, seed=TUNED_ON)
    predictors: dict[str, Predictor] = {
        "ridge, best λ in hindsight": Ridge.hindsight(prompts),
        "gradient descent, tuned": GradientDescent.tuned(tuning),
        "preprocess, then optimise, tuned": PreprocessThenOptimize.tuned(tuning),
        "lasso, tuned": Lasso.tuned(tuning),
        BAYES: BayesSparse(task),
    }
    print(f"{NAME} after {run.steps[-1]} steps, {len(prompts)} prompts of {task.n_queries} queries\n")
    risks = compare_predictors(run.model, prompts, predictors, metric="excess_risk").frame
    print(risks.loc[risks["metric"] == "excess_risk", ["source", "value", "ci_low", "ci_high"]].to_string(index=False))
    gap = gap_closed(run.model, prompts, predictors, bayes=BAYES).frame
    print("\n" + gap[["reference", "share", "ci_low", "ci_high", "gap"]].to_string(index=False))
    some = prompts[:PROMPTS_FOR_HEADS]
    print("\n" + assess_heads(run.model, some, metric="excess_risk").layers.to_string(index=False))
    others = {} if chosen.one_head is None else {"one head": Run.load(chosen.one_head).model}
    ranking = task.sample(2000, seed=RANKED_ON)
    pruned = prune_heads(run.model, some, importance=ranking, metric="excess_risk", others=others).frame
    columns = ["arm", "pruned", "kept", "baseline", "ablated", "delta", "ci_low", "ci_high", "draws_low", "draws_high"]
    print("\n" + pruned[columns].to_string(index=False))


if __name__ == "__main__":
    main()
