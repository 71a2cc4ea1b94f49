"""Excess risk of the reference predictors on five settings, every tuning value chosen in hindsight (one a row).

Run: python benchmarks/regression_reference.py
Signs ±1/√s, x ~ N(0, I), gradient descent at 1/λ_max per prompt with t in 1 … 400; 2000 prompts, 400 for d = 64.
"""

import math

import pandas as pd
import torch

from tasks.lasso import Lasso
from tasks.regression_predictors import GradientDescent, LeastSquares, LinearPredictor, PreprocessThenOptimize, Ridge
from tasks.sparse_regression import SparseRegression

SETTINGS = [(16, 4, 0.5, 40), (16, 4, 0.5, 80), (16, 4, 0.5, 160), (64, 4, 0.5, 256), (16, 4, 0.1, 20)]
"""d, sparsity, noise, n_context."""


def reference_table(seed: int) -> pd.DataFrame:
    """One row per setting and predictor: excess risk, its standard error, the predictor with its chosen value."""
    rows = []
    for d, sparsity, noise, n_context in SETTINGS:
        task = SparseRegression(d=d, sparsity=sparsity, noise=noise, n_context=n_context, weights="signs")
        prompts = task.sample(400 if d == 64 else 2000, seed=seed)
        predictors: dict[str, LinearPredictor] = {"OLS": LeastSquares()}
        for name, family in {
            "ridge": Ridge,
            "lasso": Lasso,
            "GD": GradientDescent,
            "preprocess+GD": PreprocessThenOptimize,
        }.items():
            predictors[name] = family.hindsight(prompts)
        for name, predictor in predictors.items():
            sums, _ = prompts.excess_risk(predictor(prompts))
            rows.append(
                {
                    "d": d,
                    "s": sparsity,
                    "σ": noise,
                    "n": n_context,
                    "predictor": name,
                    "risk": float(sums.mean()),
                    "se": float(sums.std()) / math.sqrt(len(prompts)),
                    "chosen": repr(predictor),
                }
            )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(reference_table(seed=0).to_string(index=False))
