"""In-context regression as prompts: pairs (x, y) laid out as positions and read back."""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from tasks.errors import InputError
from tasks.field_checks import check_choice, check_whole
from tasks.prompts import CLEAN_TARGET, Prompts, Seed

Layout = Literal["query", "interleaved"]
ROLES = ("pair", "query", "x", "y")
"""What a position holds: the values of ``labels["role"]``."""
PAIR, QUERY, X, Y = range(4)


def regression_prompts(
    x: Float[Tensor, "batch pair d"],
    y: Float[Tensor, "batch pair"],
    *,
    layout: Layout = "query",
    n_queries: int = 1,
    clean: Float[Tensor, "batch pair"] | None = None,
    latents: Mapping[str, Shaped[Tensor, "batch ..."]] | None = None,
    seed: Seed | None = None,
) -> Prompts:
    """Prompts from pairs; the last pair is the query, whose y is a target and never an input.

    With ``n_queries`` above 1 (query layout only) that many pairs at the end are queries, each a question of its own
    about the same context: give the model ``attention_dir="query_masked"``, so that none reads another.

    ``layout="query"``: one position per pair, read in both directions, [batch, pair, d + 1]::

        (x_1; y_1)  (x_2; y_2)  …  (x_n; y_n)  (x_q; 0)        scored: the query alone

    ``layout="interleaved"``: one position per x and per y, read causally, [batch, 2 pair − 1, d + 1]::

        (x_1; 0)  (0; y_1)  (x_2; 0)  (0; y_2)  …  (x_q; 0)    scored: every x

    Targets hold the y of a position's own pair. Labels, each [batch, pos]: ``role`` (see ``ROLES``), ``position``,
    ``n_context`` (the pairs that a prediction made there may learn from) and, where ``clean`` = ⟨w*, x⟩ is known,
    ``clean_target``, the target without its noise. Units are the data's own.

    Raises:
        InputError: an unknown layout, shapes that do not match, or a value that is not finite.

    >>> prompts = regression_prompts(torch.ones(1, 2, 1), torch.tensor([[5.0, 6.0]]), layout="interleaved")
    >>> prompts.inputs.tolist(), prompts.scored.tolist()
    ([[[1.0, 0.0], [0.0, 5.0], [1.0, 0.0]]], [[True, False, True]])
    """
    check_choice("layout", layout, ("query", "interleaved"))
    check_whole("n_queries", n_queries, 1)
    if layout == "interleaved" and n_queries > 1:
        raise InputError(f"n_queries = {n_queries} needs layout = 'query': interleaved prompts ask at every x")
    if x.shape[:2] != y.shape or not y.numel():
        raise InputError(
            f"x is {list(x.shape)} but y is {list(y.shape)}: give x [batch, pair, d] and y [batch, pair], none empty"
        )
    if y.shape[1] < n_queries:
        raise InputError(f"n_queries = {n_queries} but there are {y.shape[1]} pairs: the queries are the last of them")
    _check_finite(x, y)
    n_prompts, n_pairs, d = x.shape
    n_answered = n_pairs - n_queries
    if layout == "query":
        inputs = torch.cat([x, y[..., None]], dim=-1)
        inputs[:, n_answered:, -1] = 0
        pair = torch.arange(n_pairs)
        role = torch.full((n_pairs,), PAIR)
        role[n_answered:] = QUERY
        n_context = torch.full((n_pairs,), n_answered)
    else:
        inputs = x.new_zeros(n_prompts, 2 * n_pairs - 1, d + 1)
        inputs[:, 0::2, :d] = x
        inputs[:, 1::2, d] = y[:, :-1]
        position = torch.arange(2 * n_pairs - 1)
        pair = position // 2
        role = torch.where(position % 2 == 0, X, Y)
        n_context = (position + 1) // 2
    facts = {"role": role, "position": torch.arange(len(role)), "n_context": n_context}
    labels = {name: fact.to(x.device).expand(n_prompts, -1) for name, fact in facts.items()}
    if clean is not None:
        labels[CLEAN_TARGET] = clean[:, pair]
    return Prompts(
        inputs,
        targets=y[:, pair],
        scored=(labels["role"] == QUERY) | (labels["role"] == X),
        labels=labels,
        label_names={"role": ROLES},
        latents=latents or {},
        seed=seed,
    )


def regression_pairs(
    prompts: Prompts,
) -> tuple[Float[Tensor, "batch pair d"], Float[Tensor, "batch n_context"], Layout]:
    """Every x of the prompts (the queries last), every y that is an *input*, and the layout they were read from.

    The inverse of ``regression_prompts``, less the queries' y: a predictor built on it cannot see its target.

    Raises:
        InputError: the prompts are no regression prompts, or hold a value that is not finite.

    >>> x, y, layout = regression_pairs(regression_prompts(torch.ones(1, 3, 2), torch.ones(1, 3)))
    >>> x.shape, y.shape, layout
    (torch.Size([1, 3, 2]), torch.Size([1, 2]), 'query')
    """
    role = prompts.labels.get("role")
    if role is None or prompts.inputs.ndim != 3:
        raise InputError(
            f"these prompts (labels: {', '.join(prompts.labels) or 'none'}) have no label 'role' that says where x "
            "and y are: make them with SparseRegression.sample or regression_prompts"
        )
    _check_finite(prompts.inputs)
    if (role == Y).any() or (role == X).any():
        return prompts.inputs[:, 0::2, :-1], prompts.inputs[:, 1::2, -1], "interleaved"
    n_answered = int((role[0] == PAIR).sum())
    return prompts.inputs[..., :-1], prompts.inputs[:, :n_answered, -1], "query"


def _check_finite(*parts: Tensor) -> None:
    if not all(bool(torch.isfinite(part).all()) for part in parts):
        raise InputError("the prompts hold a value that is NaN or infinite: drop or repair those rows")
