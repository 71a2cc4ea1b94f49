"""Linear regressions between what heads write and the preprocessed coordinates r_j x_j of regression prompts."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from analyses.batches import batches
from interp.model_adapter import HookedModel, activations_alone, needed_weight
from tasks.errors import InputError
from tasks.prompts import Prompts
from tasks.regression_layout import regression_pairs
from tasks.regression_predictors import RANK_TOLERANCE, second_moments

SumsAndTotals = tuple[Float[ndarray, "prompt quantity"], Float[ndarray, "prompt quantity"]]
"""Squares explained and squares in all, prompt by prompt: the ratio of their totals is an R²."""


def preprocessed_features(prompts: Prompts) -> Float[Tensor, "batch pos d"]:
    """The candidates r_j x_j at every position, r_j = (1/n) Σ_i x_ij y_i over the prompt's own n pairs; in float64.

    Raises:
        InputError: the prompts are no regression prompts in the query layout.

    >>> from tasks.regression_layout import regression_prompts
    >>> prompts = regression_prompts(torch.tensor([[[1.0], [3.0], [2.0]]]), torch.tensor([[2.0, 2.0, 0.0]]))
    >>> preprocessed_features(prompts).squeeze()
    tensor([ 4., 12.,  8.], dtype=torch.float64)
    """
    x, y, layout = regression_pairs(prompts)
    if layout != "query":
        raise InputError(f"the prompts' layout is {layout!r}: r_j x_j at every position needs layout = 'query'")
    x, y = x.double(), y.double()
    _, correlation = second_moments(x[:, : y.shape[1]], y)
    return x * correlation[:, None]


@dataclass(frozen=True, eq=False)
class Regressions:
    """Coefficients fitted to some prompts, with intercepts, pooled over positions, for every head of a layer.

    Attributes:
        mean_written: what the heads write on average, in ``written_and_candidates``' coordinates.
        mean_candidates: the mean of each r_j x_j.
        reading: predicts all candidates from what a head writes.
        writing: predicts what a head writes from each candidate alone.
        own_coordinate: the candidate that explains most of what each head writes; None if it never writes anything
            else than its mean.
    """

    mean_written: Float[Tensor, "head d_written"]
    mean_candidates: Float[Tensor, "d"]
    reading: Float[Tensor, "head d_written d"]
    writing: Float[Tensor, "head d_written d"]
    own_coordinate: tuple[int | None, ...]

    @classmethod
    def fit(cls, model: HookedModel, prompts: Prompts, layer: int, batch_size: int) -> "Regressions":
        """Least squares of least norm.

        Raises:
            InputError: as for ``preprocessed_features``, or a model without W_O.
        """
        each = [written_and_candidates(model, prompts[rows], layer) for rows in batches(prompts, batch_size)]
        written = torch.cat([one.flatten(0, 1) for one, _ in each])
        candidates = torch.cat([one.flatten(0, 1) for _, one in each])
        mean_written, mean_candidates = written.mean(dim=0), candidates.mean(dim=0)
        written, candidates = written - mean_written, candidates - mean_candidates
        both = torch.einsum("nhw,nd->hwd", written, candidates)
        gram = torch.einsum("nhw,nhv->hwv", written, written)
        writing = both / candidates.square().sum(dim=0).clamp(min=torch.finfo(both.dtype).tiny)
        explained = (writing * both).sum(dim=1)
        varies = written.square().sum(dim=(0, 2)) > RANK_TOLERANCE * len(written) * mean_written.square().sum(dim=1)
        own = zip(varies.tolist(), explained.argmax(dim=1).tolist(), strict=True)
        return cls(
            mean_written=mean_written,
            mean_candidates=mean_candidates,
            reading=torch.linalg.pinv(gram, hermitian=True, rtol=RANK_TOLERANCE) @ both,
            writing=writing,
            own_coordinate=tuple(j if has_one else None for has_one, j in own),
        )

    def explained_squares(
        self, model: HookedModel, prompts: Prompts, layer: int, batch_size: int
    ) -> tuple[SumsAndTotals, SumsAndTotals]:
        """How well the coefficients do on other prompts: reading, then writing; a quantity is a [head, coordinate]."""
        reading, of_candidates, writing, of_written = [], [], [], []
        for rows in batches(prompts, batch_size):
            written, candidates = written_and_candidates(model, prompts[rows], layer)
            written, candidates = written - self.mean_written, candidates - self.mean_candidates
            missed = candidates[:, :, None] - torch.einsum("bphw,hwd->bphd", written, self.reading)
            squares = candidates.square().sum(dim=1)[:, None].expand(-1, written.shape[2], -1)
            reading.append(squares - missed.square().sum(dim=1))
            of_candidates.append(squares)
            # |o|² − |o − f a|² = 2 f (o · a) − f² |a|², without a [batch, pos, head, d_written, d]
            along = torch.einsum("bphw,hwd->bphd", written, self.writing)
            length = self.writing.square().sum(dim=1)
            writing.append((2 * candidates[:, :, None] * along - candidates.square()[:, :, None] * length).sum(dim=1))
            of_written.append(written.square().sum(dim=(1, 3))[:, :, None].expand_as(writing[-1]))
        flat = [torch.cat(each).flatten(1).numpy(force=True) for each in (reading, of_candidates, writing, of_written)]
        return (flat[0], flat[1]), (flat[2], flat[3])


def written_and_candidates(
    model: HookedModel, prompts: Prompts, layer: int
) -> tuple[Float[Tensor, "batch pos head d_written"], Float[Tensor, "batch pos d"]]:
    """What every head writes, z W_O, in float64 and in coordinates of its own that keep all lengths and angles."""
    point = f"blocks.{layer}.attn.hook_z"
    kept = activations_alone(model, prompts.inputs, [point])
    # z W_O = (z Rᵀ) Qᵀ with orthonormal columns in Q: the same regressions in d_head dimensions, not d_model
    R = torch.linalg.qr(needed_weight(model, "W_O")[layer].detach().double().mT, mode="r").R
    return torch.einsum("bphd,hwd->bphw", kept[point].double(), R), preprocessed_features(prompts)
