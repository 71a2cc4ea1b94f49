"""In-context regression as prompts: pairs (x, y) laid out as positions, read back, and judged without the noise."""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from tasks.errors import InputError
from tasks.field_checks import check_choice
from tasks.prompts import Prompts, Seed

Layout = Literal["query", "interleaved"]
ROLES = ("pair", "query", "x", "y")
"""What a position holds: the values of ``labels["role"]``."""
PAIR, QUERY, X, Y = range(4)


def regression_prompts(
    x: Float[Tensor, "batch pair d"],
    y: Float[Tensor, "batch pair"],
    *,
    layout: Layout = "query",
    clean: Float[Tensor, "batch pair"] | None = None,
    latents: Mapping[str, Shaped[Tensor, "batch ..."]] | None = None,
    seed: Seed | None = None,
) -> Prompts:
    """Prompts from pairs; the last pair is the query, whose y is a target and never an input.

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
    if x.shape[:2] != y.shape or not all(y.shape):
        raise InputError(
            f"x is {list(x.shape)} but y is {list(y.shape)}: give x [batch, pair, d] and y [batch, pair], none empty"
        )
    _check_finite(x, y)
    n_prompts, n_pairs, d = x.shape
    if layout == "query":
        inputs = torch.cat([x, y[..., None]], dim=-1)
        inputs[:, -1, -1] = 0
        pair = torch.arange(n_pairs)
        role = torch.full((n_pairs,), PAIR)
        role[-1] = QUERY
        n_context = torch.full((n_pairs,), n_pairs - 1)
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
        labels["clean_target"] = clean[:, pair]
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
    """Every x of the prompts (the query last), every y that is an *input*, and the layout they were read from.

    The inverse of ``regression_prompts``, less the query's y: a predictor built on it cannot see its target.

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
    return prompts.inputs[..., :-1], prompts.inputs[:, :-1, -1], "query"


def excess_risk(
    predictions: Float[Tensor, "batch pos"] | Float[Tensor, "batch pos 1"], prompts: Prompts
) -> tuple[Float[Tensor, "batch"], Int[Tensor, "batch"]]:
    """How far predictions are from the target *without its noise*: Σ (ŷ − ⟨w*, x⟩)² over scored positions.

    Returns the sum and the number of scored positions, per prompt; an estimate is the ratio of the two totals,
    in squared units of y. The best possible value is that of the Bayes predictor, not zero.

    Raises:
        InputError: w* is unknown (the prompts come from a table), or the predictions have another shape.

    Source: Chen, Zhao and Zou 2024 [abs][mem].

    >>> prompts = regression_prompts(torch.ones(1, 2, 1), torch.tensor([[5.0, 6.0]]), clean=torch.tensor([[4.0, 4.0]]))
    >>> excess_risk(torch.tensor([[0.0, 7.0]]), prompts)
    (tensor([9.]), tensor([1]))
    """
    if "clean_target" not in prompts.labels:
        raise InputError(
            "excess_risk needs the label 'clean_target', which these prompts lack (w* is unknown): "
            "use prompts.loss, the error against the noisy targets"
        )
    if predictions.numel() != prompts.targets.numel() or predictions.shape[:2] != prompts.targets.shape:
        raise InputError(
            f"predictions is {list(predictions.shape)} but targets is {list(prompts.targets.shape)}: "
            "give one prediction per position, [batch, pos] or [batch, pos, 1]"
        )
    error = predictions.reshape(prompts.targets.shape) - prompts.labels["clean_target"]
    return error.square().masked_fill(~prompts.scored, 0).sum(dim=1), prompts.scored.sum(dim=1)


def _check_finite(*parts: Tensor) -> None:
    if not all(bool(torch.isfinite(part).all()) for part in parts):
        raise InputError("the prompts hold a value that is NaN or infinite: drop or repair those rows")
