"""What kind of matrix is a head: does it copy, how many directions does it use, how strong is it?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import FactoredMatrix

from analyses.argument_checks import check_seed
from analyses.figures import component_colour, look, plain
from analyses.head_weights import CircuitName, Ends, HeadWeights, at_ends, checked_circuit, quantile_note
from analyses.result import Result
from interp.model_adapter import HookedModel, refuse_other
from tasks.errors import InputError
from tasks.field_checks import check_whole

_MOST_ENDS = 20
_ASIDE = 0.14  # between the markers of two circuits, in distances from head to head
_NOTHING = 1e-12  # of the largest singular value of all heads: below, a direction is rounding


@dataclass(frozen=True, eq=False)
class SpectrumResult(Result):
    """Spectra of every head's circuits.

    Columns: layer, head, component, circuit ("OV" or "QK"), positive (Σ λ / Σ |λ|, from −1 to 1), chance_low,
    chance_high (where ``confidence`` of the draws lie; their mean is 0), p (the share of draws as far from 0 or
    further), norm (Frobenius), largest (singular value), effective_rank ((Σ s²)² / Σ s⁴).
    """

    eigenvalues: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Columns component, circuit, place (from the largest in size), real, imaginary."""
    singular_values: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Columns component, circuit, place (from the largest), value."""

    value_column = "positive"

    @property
    def name(self) -> str:
        """Short name, used for files."""
        return "weight_spectra"

    @property
    def tables(self) -> Mapping[str, pd.DataFrame]:
        """The scores, all eigenvalues and all singular values."""
        more = {"eigenvalues": self.eigenvalues, "singular_values": self.singular_values}
        return {**super().tables, **{f"{self.name}_{name}": table for name, table in more.items()}}

    def plot(self) -> go.Figure:
        """The share of positive eigenvalues of every head's circuits, with what chance gives as a bar."""
        figure = go.Figure()
        names = list(self.frame["component"].unique())
        circuits = list(self.frame.groupby("circuit", sort=False))
        for rank, (circuit, rows) in enumerate(circuits):
            heads = rows[["layer", "head"]].to_numpy(dtype=int).tolist()
            colours = [component_colour(layer, head) for layer, head in heads]
            # beside each other, so that each circuit's chance is seen
            aside = _ASIDE * (rank - (len(circuits) - 1) / 2)
            x = [names.index(name) + aside for name in rows["component"]]
            figure.add_trace(
                go.Scatter(
                    x=x, y=[0.0] * len(rows), mode="markers", marker={"opacity": 0}, showlegend=False, hoverinfo="skip",
                    error_y={
                        "type": "data", "symmetric": False, "array": rows["chance_high"],
                        "arrayminus": -rows["chance_low"], "color": "#868e98",
                    },
                )
            )  # fmt: skip
            figure.add_trace(
                go.Scatter(
                    x=x, y=rows["positive"], mode="markers", name=f"{circuit} circuit", text=rows["component"],
                    hovertemplate="%{text}: %{y:.3g}",
                    marker={"symbol": "circle" if circuit == "OV" else "square-open", "size": 10, "color": colours},
                )
            )  # fmt: skip
        figure.update_xaxes(tickvals=list(range(len(names))), ticktext=names, zeroline=False)
        figure.update_yaxes(title_text="Σλ / Σ|λ| (bars: chance)", range=[-1.05, 1.05])
        return figure.update_layout(title=plain(self.title), template=look())


def weight_spectra(
    model: HookedModel,
    *,
    circuits: Sequence[CircuitName] = ("OV", "QK"),
    ends: Ends = "tokens",
    n_random: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> SpectrumResult:
    """Which heads copy (OV), or attend to what is like themselves (QK), by the eigenvalues of their weights?

    Σ λ / Σ |λ| over the eigenvalues of ``head_circuit(model, head, circuit, ends)``: 1 if all are positive (what is
    read is written, what is asked is found), −1 if all are negative. They are those of a d_head × d_head matrix, so
    that nothing of the vocabulary's size is squared.

    Chance: the same matrix with what it writes turned by a random rotation of the ends, drawn ``n_random`` times. That
    keeps the strength of each direction; the mean is 0, as a rotation R is as likely as −R.

    Args:
        circuits: "OV", "QK", or both.
        ends: "tokens", or "residual" for W_V W_O and W_Q W_Kᵀ themselves, where reals go in or out, say.
        confidence: the share of rotations between chance_low and chance_high.

    Raises:
        InputError: a circuit or end that does not exist, or that the model has not (see ``head_circuit``); too few
            draws; a confidence that is no share.

    Source: Elhage et al. (2021), A Mathematical Framework for Transformer Circuits: eigenvalues as a summary of copying
    [mem]. Chance and its spread are ours.

    >>> from interp.constructions.induction import induction_circuit
    >>> model = induction_circuit(d_vocab=4, n_ctx=6, triggers=[1]).model
    >>> found = weight_spectra(model, circuits=["OV"]).frame
    >>> found.loc[found["component"] == "L1H0", "positive"].round(3).tolist()
    [1.0]
    """
    refuse_other(model)
    check_seed(seed)
    check_whole("n_random", n_random, 2)
    if not 0 < confidence < 1:
        raise InputError(f"confidence = {confidence}: give a share between 0 and 1")
    if not circuits:
        raise InputError("circuits is empty: choose 'OV', 'QK' or both")
    weights = HeadWeights.of(model)
    found: list[tuple[CircuitName, int, int]] = [
        (checked_circuit(name), layer, head) for name in circuits for layer, head in weights.heads
    ]
    matrices = [at_ends(model, weights.circuit(layer, head, name), name, ends) for name, layer, head in found]
    n_ends, d_head = matrices[0].A.shape
    blocks = _haar_corners(n_ends, d_head, n_random, seed)
    floor = _NOTHING * max(float(matrix.S[0]) for matrix in matrices)
    rows, eigenvalues, singular = [], [], []
    for (name, layer, head), matrix in zip(found, matrices, strict=True):
        of = {"component": f"L{layer}H{head}", "circuit": name}
        values, strengths = matrix.eigenvalues, matrix.S
        drawn = _positive(torch.linalg.eigvals(_rotated(matrix, blocks)), floor)
        positive = float(_positive(values, floor))
        low, high = np.quantile(drawn.numpy(), [(1 - confidence) / 2, (1 + confidence) / 2])
        reached = (1 + int((drawn.abs() >= abs(positive)).sum())) / (1 + n_random)
        row: dict[str, Any] = {"layer": layer, "head": head, **of, "positive": positive, "chance_low": low}
        row |= {"chance_high": high, "p": np.nan if np.isnan(positive) else reached, "norm": float(strengths.norm())}
        power = strengths.square()
        row |= {"largest": float(strengths[0]), "effective_rank": float(power.sum() ** 2 / power.square().sum())}
        rows.append(row)
        order = values.abs().argsort(descending=True)
        eigenvalues += [
            {**of, "place": place, "real": value.real, "imaginary": value.imag}
            for place, value in enumerate(values[order].tolist())
        ]
        singular += [{**of, "place": place, "value": value} for place, value in enumerate(strengths.tolist())]
    settings = {"circuits": list(circuits), "ends": ends, "n_random": n_random, "confidence": confidence, "seed": seed}
    frame = pd.DataFrame(rows).astype({"layer": "Int64", "head": "Int64"})
    notes = [quantile_note(len(frame), n_random)]
    if missing := int(frame["positive"].isna().sum()):
        notes.append(f"{missing} of {len(frame)} circuits have no eigenvalue but 0: no share of them is positive")
    title = "Eigenvalues of heads: Σλ / Σ|λ|" + (" from token to token" if ends == "tokens" else "")
    return SpectrumResult(
        frame, title, settings, tuple(notes), eigenvalues=pd.DataFrame(eigenvalues),
        singular_values=pd.DataFrame(singular),
    )  # fmt: skip


def _positive(eigenvalues: Tensor, floor: float) -> Float[Tensor, "*draw"]:
    """Σ λ / Σ |λ|; complex ones come in pairs, so the sum is real. NaN where all are zero."""
    size = eigenvalues.abs().sum(dim=-1)
    share = eigenvalues.real.sum(dim=-1) / size
    return torch.where(size > floor, share, torch.nan)


def _haar_corners(n_ends: int, d_head: int, n_random: int, seed: int) -> Float[Tensor, "draw rank rank"]:
    """Corners of random rotations of the ends: how directions that are written meet those that are read."""
    rank = min(n_ends, d_head)
    # The corner of a rotation of many more dimensions is a Gaussian matrix but for its scale, which cancels.
    n_ends = min(n_ends, _MOST_ENDS * rank)
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(n_random):
        Q, R = torch.linalg.qr(torch.randn(n_ends, rank, generator=generator, dtype=torch.float64))
        found.append(Q[:rank] * R.diagonal().sign())  # without the signs it would not be uniform
    return torch.stack(found)


def _rotated(matrix: FactoredMatrix, blocks: Float[Tensor, "draw rank rank"]) -> Float[Tensor, "draw rank rank"]:
    """A matrix with the same eigenvalues as B R A, for a random rotation R: V_aᵀ U_b S_b R' S_a."""
    _, S_a, Vh_a = torch.linalg.svd(matrix.A, full_matrices=False)
    U_b, S_b, _ = torch.linalg.svd(matrix.B, full_matrices=False)
    return (Vh_a @ U_b * S_b) @ blocks[:, : len(S_b), : len(S_a)] * S_a
