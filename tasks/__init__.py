"""Prompts whose structure is known: tasks, their statistics, and the reference predictors that solve them.

Names are imported when first used, so that ``import tasks`` costs nothing.
"""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.bayes_sparse import BayesSparse
    from tasks.bigram import BigramICL
    from tasks.bigram_predictors import BayesOptimal, CurrentToken, GlobalBigram, InContextCopy, InContextUnigram
    from tasks.bigram_statistics import BigramStatistics
    from tasks.errors import InputError
    from tasks.lasso import Lasso
    from tasks.prompts import Prompts
    from tasks.protocol import Predictor, Task
    from tasks.regression_layout import regression_prompts
    from tasks.regression_predictors import GradientDescent, LeastSquares, PreprocessThenOptimize, Ridge
    from tasks.sparse_regression import SparseRegression
    from tasks.task_defaults import TaskDefaults

_MODULE_OF = {
    "BigramICL": "bigram",
    "BigramStatistics": "bigram_statistics",
    "InputError": "errors",
    "Predictor": "protocol",
    "Prompts": "prompts",
    "SparseRegression": "sparse_regression",
    "Task": "protocol",
    "TaskDefaults": "task_defaults",
    "regression_prompts": "regression_layout",
    # Reference predictors of the bigram task.
    "BayesOptimal": "bigram_predictors",
    "CurrentToken": "bigram_predictors",
    "GlobalBigram": "bigram_predictors",
    "InContextCopy": "bigram_predictors",
    "InContextUnigram": "bigram_predictors",
    # Reference predictors of sparse regression.
    "BayesSparse": "bayes_sparse",
    "GradientDescent": "regression_predictors",
    "Lasso": "lasso",
    "LeastSquares": "regression_predictors",
    "PreprocessThenOptimize": "regression_predictors",
    "Ridge": "regression_predictors",
}

_TASK_CLASSES = {
    "bigram": "BigramICL",
    "sparse-regression": "SparseRegression",
}

__all__ = [
    "TASKS",
    "BayesOptimal",
    "BayesSparse",
    "BigramICL",
    "BigramStatistics",
    "CurrentToken",
    "GlobalBigram",
    "GradientDescent",
    "InContextCopy",
    "InContextUnigram",
    "InputError",
    "Lasso",
    "LeastSquares",
    "Predictor",
    "PreprocessThenOptimize",
    "Prompts",
    "Ridge",
    "SparseRegression",
    "Task",
    "TaskDefaults",
    "regression_prompts",
]


class _Tasks(Mapping[str, "type[Task]"]):
    """Task classes by the name that a run's config.json and the command line use; imported when looked up."""

    def __getitem__(self, name: str) -> "type[Task]":
        return __getattr__(_TASK_CLASSES[name])

    def __iter__(self) -> Iterator[str]:
        return iter(_TASK_CLASSES)

    def __len__(self) -> int:
        return len(_TASK_CLASSES)


TASKS: Mapping[str, "type[Task]"] = _Tasks()
"""Task classes by name: ``TASKS["bigram"]`` is BigramICL."""


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
