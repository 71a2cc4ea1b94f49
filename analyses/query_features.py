"""What a model makes of any x when asked about it: context pairs put in the query's place, so that no y is theirs."""

from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.batches import batches
from analyses.probe_targets import answer_of
from interp.model_adapter import HookedModel, activations_alone
from interp.sites import Site
from tasks.errors import InputError
from tasks.prompts import Prompts
from tasks.regression_layout import regression_pairs

ContextAs = Literal["as_query", "leave_one_out"]
"""Whether pair i stays in the context while its x is asked about."""
_CHECKED_PROMPTS = 4
_TOLERANCE = 1e-3  # of the largest activation; queries that read each other differ by far more


def features_as_queries(
    model: HookedModel, prompts: Prompts, site: Site, context: ContextAs
) -> tuple[Float[Tensor, "batch n width"], Float[Tensor, "batch query width"]]:
    """The activation at the query's position, asked about each x of the context, and about each query.

    The column (x; 0) takes the place of a query behind the context; with "leave_one_out" the context then lacks the
    pair whose x is asked about, and the others close up.
    """
    x, y, layout = regression_pairs(prompts)
    n = y.shape[1]
    of_query = features_of_queries(model, prompts, site)
    if context == "as_query":
        return _asked(model, prompts.inputs, x[:, :n], x.shape[1] - n, site), of_query
    width = 1 if layout == "query" else 2  # positions of one pair
    of_context = []
    for i in range(n):
        shorter = torch.cat([prompts.inputs[:, : i * width], prompts.inputs[:, (i + 1) * width :]], dim=1)
        of_context.append(_asked(model, shorter, x[:, i : i + 1], x.shape[1] - n, site))
    return torch.cat(of_context, dim=1), of_query


def features_of_queries(model: HookedModel, prompts: Prompts, site: Site) -> Float[Tensor, "batch query width"]:
    """The activation at the queries as the prompts ask them."""
    x, y, _ = regression_pairs(prompts)
    return _asked(model, prompts.inputs, x[:, y.shape[1] :], x.shape[1] - y.shape[1], site)


def check_questions(model: HookedModel, prompts: Prompts, site: Site, context: ContextAs, name: str) -> None:
    """Raise InputError where a query's features are not those of its x: the queries read each other, say."""
    if len(prompts) < 2:
        raise InputError(f"{name} holds {len(prompts)} prompts: an interval over prompts needs at least 2")
    if site.positions is not None:
        raise InputError(f"{site} says positions itself: features are read at the query's")
    x, y, _ = regression_pairs(prompts)
    n_context, n_queries = y.shape[1], x.shape[1] - y.shape[1]
    if n_context < (2 if context == "leave_one_out" else 1):
        raise InputError(
            f"{name} has {n_context} context pairs, too few for context = {context!r}: give longer prompts"
        )
    if n_queries == 1:
        return
    few = prompts[:_CHECKED_PROMPTS]
    together = features_of_queries(model, few, site)
    apart = torch.empty_like(together)
    for k in range(n_queries):  # each in every query's place, so that it has itself alone for company
        itself = regression_pairs(few)[0][:, [n_context + k]].expand(-1, n_queries, -1)
        apart[:, k] = _asked(model, few.inputs, itself, n_queries, site)[:, -1 - k]
    if float((together - apart).abs().max()) > _TOLERANCE * float(together.abs().max()):
        raise InputError(
            f"{name} has {n_queries} queries per prompt and the model's queries read each other (or their positions): "
            "give prompts of one query, or a model with attention_dir = 'query_masked'"
        )


def last_questions(prompts: Prompts) -> Prompts:
    """The prompts, judged at their queries alone: the last x where every x is a question."""
    x, y, _ = regression_pairs(prompts)
    at_end = torch.zeros_like(prompts.scored)
    at_end[:, y.shape[1] - x.shape[1] :] = True
    return prompts.score_only(at_end)


def question_batches(prompts: Prompts, batch_size: int) -> Iterator[tuple[Prompts, Float[Tensor, "batch query"]]]:
    """The prompts in batches, with the true answer to each query (without its noise where that is known)."""
    x, y, _ = regression_pairs(prompts)
    truth = answer_of(prompts)[:, y.shape[1] - x.shape[1] :]
    for rows in batches(prompts, batch_size):
        yield prompts[rows], truth[rows]


def _asked(
    model: HookedModel,
    inputs: Float[Tensor, "batch pos d_in"],
    x: Float[Tensor, "batch asked d"],
    n_queries: int,
    site: Site,
) -> Float[Tensor, "batch asked width"]:
    """The activation at the query's position for each x, as many at once as the prompts have queries."""
    first_query = inputs.shape[1] - n_queries
    answers = []
    for start in range(0, x.shape[1], n_queries):
        chunk = x[:, start : start + n_queries]
        end = first_query + chunk.shape[1]
        asking = inputs.clone()
        asking[:, first_query:end, :-1] = chunk
        clean = activations_alone(model, asking, [site.hook_name])
        activation = clean[site.hook_name]
        answers.append(activation[site.index(activation)][:, first_query:end])
    return torch.cat(answers, dim=1)
