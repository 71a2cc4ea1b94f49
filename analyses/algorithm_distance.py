"""Which algorithm a model acts like: its distance from every reference, beside their distances from each other."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from analyses.argument_checks import check_seed, refuse_no_prompts
from analyses.batches import batches
from analyses.comparison import check_shape, output_distance
from analyses.layer_figures import layer_map
from analyses.metrics import groups
from analyses.result import Result, notes_on_intervals
from interp.model_adapter import HookedModel, outputs, refuse_other
from interp.statistics import ratio_interval
from tasks.errors import InputError
from tasks.prompts import Prompts
from tasks.protocol import Predictor

MODEL = "model"
PredictorLike = Predictor | Mapping[str, Predictor]
"""A predictor, or one for each of the named sets of prompts (a Bayes predictor knows the noise of its task, say)."""


@dataclass(frozen=True, eq=False)
class AlgorithmDistances(Result):
    """How far sources (the model, its layers, the algorithms themselves) are from each algorithm.

    Columns: prompts (the name of the set, if several), the label split by (if any), source (for layers also layer,
    component and reading in its place), algorithm, steps (of an algorithm that has steps), distance, ci_low, ci_high,
    behind (the distance less that of the closest algorithm, paired), behind_low, behind_high, closest, resolution and
    resolution_from (the distance between this algorithm and its nearest other, and which that is), not_told_from (the
    algorithms that lie nearer to this one than the source lies to either), n_prompts.

    Distances are mean squared differences of predictions over scored positions, in squared units of y; for tokens
    total variations between next-token distributions, 0 to 1.
    """

    value_column = "distance"

    @property
    def name(self) -> str:
        """Short name, used for files."""
        return self.settings.get("name", "algorithm_distances")

    def closest(self) -> pd.DataFrame:
        """The rows of the closest algorithm of every source."""
        return self.frame.loc[self.frame["closest"]].reset_index(drop=True)

    def plot(self) -> go.Figure:
        """Distances as a map, each source's closest algorithm framed; of several sets of prompts the model's alone."""
        shown = self.frame
        if "prompts" in shown:
            shown = shown.loc[shown["source"] == MODEL]
        keys = ("prompts", self.settings.get("by"), "source", "reading", "component")
        present = [key for key in keys if key in shown]
        varying = [key for key in present if shown[key].nunique() > 1] or present[-1:]
        rows = shown.assign(where=shown[varying].astype(str).agg(" · ".join, axis=1))
        title = f"{self.title} (framed: the closest)"
        return layer_map(rows, columns="algorithm", value="distance", title=title, down="where", framed=rows["closest"])


def measure_algorithm_distances(
    model: HookedModel,
    prompts: Prompts | Mapping[str, Prompts],
    predictors: Mapping[str, PredictorLike],
    *,
    by: str | None = None,
    confidence: float = 0.95,
    batch_size: int = 512,
    seed: int = 0,
) -> AlgorithmDistances:
    """Which algorithm do the model's outputs lie closest to, and could the algorithms be told apart at all?

    D(model, a) = mean over scored positions of (ŷ_model − ŷ_a)², and D(a, b) likewise for every two algorithms. Where
    D(a, b) is smaller than both D(model, a) and D(model, b), the model is no nearer to the one than to the other in any
    way that matters: ``not_told_from`` lists such b for every a, and a note says so of the closest.

    Args:
        prompts: prompts, or several sets by name, to see what the model does off its training distribution:
            ``{"as trained": …, "noise 1.0": …, "n = 16": …}``.
        predictors: the algorithms by name; one that must differ between sets is a mapping from set to predictor.
        by: a label of the prompts that splits the distances, "n_context" of interleaved prompts say.

    Raises:
        InputError: no predictor or one called "model", one that lacks a set of prompts, outputs of another shape than
            the model's, a label that does not exist.

    >>> from interp import HookedTransformer, HookedTransformerConfig
    >>> model = HookedTransformer(HookedTransformerConfig(n_layers=1, d_model=8, n_ctx=6, d_vocab=5, attn_only=True))
    >>> prompts = Prompts.from_tensors(torch.randint(5, (20, 6), generator=torch.Generator().manual_seed(0)))
    >>> level = {"even": lambda prompts: torch.zeros(len(prompts), 6, 5), "itself": lambda it: model(it.inputs)}
    >>> measure_algorithm_distances(model, prompts, level).closest().query("source == 'model'")["algorithm"].item()
    'itself'
    """
    refuse_other(model)
    check_seed(seed)
    sets = named_sets(prompts)
    rows: list[dict[str, Any]] = []
    for set_name, part in sets.items():
        algorithms = predictors_for(set_name, predictors)
        measured = measure_distances(_of(model), [{"source": MODEL}], part, algorithms, by=by, batch_size=batch_size)
        for group, distances in measured:
            place = ({"prompts": set_name} if isinstance(prompts, Mapping) else {}) | ({by: group} if by else {})
            rows += distances.rows(place, confidence, seed, between=True)
    frame = pd.DataFrame(rows)
    settings = {"by": by, "confidence": confidence, "seed": seed}
    settings |= {"n_prompts": {name: len(part) for name, part in sets.items()}}
    settings |= {"prompts_seed": {name: part.seed for name, part in sets.items()}}
    notes = notes_on_intervals(frame) + _unresolved(frame.loc[frame["source"] == MODEL])
    return AlgorithmDistances(tidy(frame), "Distance from each algorithm", settings, notes)


def named_sets(prompts: Prompts | Mapping[str, Prompts]) -> dict[str, Prompts]:
    """The sets of prompts by name; one alone is called "prompts".

    Raises:
        InputError: no set at all, or what is no prompts.
    """
    sets = dict(prompts) if isinstance(prompts, Mapping) else {"prompts": prompts}
    if not sets:
        raise InputError("prompts is empty: give prompts, or at least one named set of them")
    for name, some in sets.items():
        refuse_no_prompts(some, name)
    return sets


def predictors_for(set_name: str, predictors: Mapping[str, PredictorLike]) -> dict[str, Predictor]:
    """The predictors that serve one set of prompts.

    Raises:
        InputError: none at all, one called "model", or one that has nothing for this set.
    """
    if not predictors:
        raise InputError("predictors is empty: name at least one algorithm to hold the model against")
    if MODEL in predictors:
        raise InputError(f"a predictor is called {MODEL!r}, which names the model itself: call it something else")
    chosen: dict[str, Predictor] = {}
    for name, predictor in predictors.items():
        if isinstance(predictor, Mapping):
            if set_name not in predictor:
                known = ", ".join(predictor) or "none"
                raise InputError(f"predictor {name!r} has nothing for the prompts {set_name!r}: it has {known}")
            predictor = predictor[set_name]
        chosen[name] = predictor
    return chosen


@dataclass(frozen=True, eq=False)
class Distances:
    """Sums of distances over the scored positions of each prompt, and their number.

    ``sources`` says of each source the columns that name it.
    """

    sources: Sequence[Mapping[str, Any]]
    algorithms: Mapping[str, Predictor]
    to: Float[ndarray, "prompt source algorithm"]
    between: Float[ndarray, "prompt algorithm algorithm"]
    counts: Float[ndarray, "prompt"]

    def rows(
        self, place: Mapping[str, Any], confidence: float, seed: int, *, between: bool
    ) -> Iterator[dict[str, Any]]:
        """One row per source and algorithm; with ``between`` the algorithms stand among the sources too."""
        resolution = self.between.sum(axis=0) / self.counts.sum()
        names = list(self.algorithms)
        every: list[tuple[Mapping[str, Any], ndarray, int | None]] = []
        every += [(source, self.to[:, k], None) for k, source in enumerate(self.sources)]
        if between:
            every += [({"source": name}, self.between[:, k], k) for k, name in enumerate(names)]
        for source, sums, own in every:
            total = sums.sum(axis=0)
            candidates = np.where(np.arange(len(names)) == own, np.inf, total)
            nearest = int(candidates.argmin())
            count = np.repeat(self.counts[:, None], len(names), axis=1)
            distance, behind = (
                ratio_interval(part, count, confidence=confidence, seed=seed)
                for part in (sums, sums - sums[:, nearest : nearest + 1])
            )
            for k, name in enumerate(names):
                if k == own:
                    continue
                row: dict[str, Any] = {**place, **source, "algorithm": name}
                row |= {"steps": getattr(self.algorithms[name], "steps", None)}
                row |= {"distance": distance.estimate[k], "ci_low": distance.low[k], "ci_high": distance.high[k]}
                row |= {"behind": behind.estimate[k], "behind_low": behind.low[k], "behind_high": behind.high[k]}
                row |= {"closest": k == nearest} | _resolution(k, names, resolution, distance.estimate, own)
                yield row | {"n_prompts": int((self.counts > 0).sum())}


def _resolution(
    k: int, names: Sequence[str], between: Float[ndarray, "algorithm algorithm"], to: ndarray, own: int | None
) -> dict[str, Any]:
    others = [j for j in range(len(names)) if j != k]
    if not others:
        return {"resolution": np.nan, "resolution_from": None, "not_told_from": ""}
    nearest = min(others, key=lambda j: between[k, j])
    alike = [names[j] for j in others if j != own and between[k, j] < min(to[k], to[j])]
    return {
        "resolution": between[k, nearest],
        "resolution_from": names[nearest],
        "not_told_from": ", ".join(alike),
    }


def _of(model: HookedModel) -> Callable[[Prompts], list[Tensor]]:
    return lambda batch: [outputs(model, batch.inputs)]


def measure_distances(
    outputs_of: Callable[[Prompts], Sequence[Tensor]],
    sources: Sequence[Mapping[str, Any]],
    prompts: Prompts,
    algorithms: Mapping[str, Predictor],
    *,
    by: str | None,
    batch_size: int,
) -> Iterator[tuple[Any, Distances]]:
    """For each group of positions the distances of every source from every algorithm, and between algorithms.

    ``outputs_of`` gives the outputs of every source on a batch of prompts.

    Raises:
        InputError: outputs of another shape than the sources', or a label that does not exist.
    """
    parts = list(groups(prompts, by))
    kept: list[list[tuple[ndarray, ndarray, ndarray]]] = [[] for _ in parts]
    for rows in batches(prompts, batch_size):
        batch = prompts[rows]
        with torch.no_grad():
            of_sources = outputs_of(batch)
            of_algorithms = {name: predict(batch) for name, predict in algorithms.items()}
        for name, output in of_algorithms.items():
            check_shape(name, output, of_sources[0])
        for part, sums in zip(parts, kept, strict=True):
            judged = batch if part.mask is None else batch.score_only(part.mask[rows])
            sums.append(_sums(of_sources, list(of_algorithms.values()), judged))
    for part, sums in zip(parts, kept, strict=True):
        to, between, counts = (np.concatenate(pieces) for pieces in zip(*sums, strict=True))
        yield part.value, Distances(sources, algorithms, to, between, counts)


def _sums(
    of_sources: Sequence[Tensor], of_algorithms: Sequence[Tensor], prompts: Prompts
) -> tuple[Float[ndarray, "batch source algorithm"], Float[ndarray, "batch algorithm algorithm"], ndarray]:
    def apart(one: Tensor, other: Tensor) -> ndarray:
        return output_distance(one.double(), prompts, other.double())[0].numpy(force=True)

    n_algorithms = len(of_algorithms)
    to = np.empty((len(prompts), len(of_sources), n_algorithms))
    between = np.zeros((len(prompts), n_algorithms, n_algorithms))
    for (k, one), (j, other) in product(enumerate(of_sources), enumerate(of_algorithms)):
        to[:, k, j] = apart(one, other)
    for (j, one), (k, other) in combinations(enumerate(of_algorithms), 2):
        between[:, j, k] = between[:, k, j] = apart(one, other)
    return to, between, prompts.scored.sum(dim=1).double().numpy(force=True)


def tidy(frame: pd.DataFrame) -> pd.DataFrame:
    """Steps as whole numbers, and only where an algorithm has any."""
    return frame.drop(columns="steps") if frame["steps"].isna().all() else frame.astype({"steps": "Int64"})


def _unresolved(rows: pd.DataFrame) -> tuple[str, ...]:
    """What cannot be told of the closest algorithms."""
    notes = []
    for row in rows.loc[rows["closest"] & (rows["not_told_from"] != "")].to_dict("records"):
        where = f" on {row['prompts']}" if "prompts" in row else ""
        notes.append(
            f"the model is closest to {row['algorithm']}{where}, but {row['not_told_from']} lies nearer to that than "
            "the model to either: which of them it acts like cannot be told"
        )
    return tuple(notes)
