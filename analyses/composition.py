"""Which head reads what which other head writes: composition scores of their weights, beside what chance gives."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

from analyses.argument_checks import check_seed
from analyses.head_weights import INPUTS, HeadWeights, quantile_note
from analyses.patching_figures import effect_map
from analyses.result import Result
from interp.model_adapter import HookedModel, refuse_other
from tasks.errors import InputError
from tasks.field_checks import check_whole


@dataclass(frozen=True, eq=False)
class CompositionResult(Result):
    """Composition scores of pairs of heads.

    Columns: writer, writer_layer, writer_head, reader, reader_layer, reader_head, input ("q", "k" or "v" of the
    reader), score (0 to 1; missing where either head has no weights), chance (the mean over draws), chance_low,
    chance_high (where ``confidence`` of them lie), excess (score less chance), p (the share of draws that reach the
    score, never below 1 / (1 + n_random)).
    """

    value_column = "score"

    @property
    def name(self) -> str:
        """Short name, used for files."""
        return "composition"

    def plot(self) -> go.Figure:
        """Excess over chance as a map, writers by readers, a panel for each input; a star outside of chance."""
        shown = self.frame.assign(
            metric=self.frame["input"].map("{}-composition".format), effect=self.frame["excess"],
            effect_low=self.frame["score"] - self.frame["chance_high"],
            effect_high=self.frame["score"] - self.frame["chance_low"], delta=self.frame["excess"],
        )  # fmt: skip
        return effect_map(shown, down="writer", across="reader", title=self.title, of="score less chance")


def score_composition(
    model: HookedModel, *, n_random: int = 200, confidence: float = 0.95, seed: int = 0
) -> CompositionResult:
    """How much of what each head reads, through its queries, keys or values, is what an earlier head writes?

    ‖A B‖ / (‖A‖ ‖B‖) with Frobenius norms, where A = W_V W_O of the writer and B is, of the reader, W_Q W_Kᵀ ("q"),
    W_K W_Qᵀ ("k") or W_V W_O ("v"); all that acts on row vectors, so A comes first. From the singular value
    decompositions of both, nothing of size d_model² is made: with A = U_a S_a V_aᵀ it is ‖S_a V_aᵀ U_b S_b‖ over
    the norms. Where layers normalise, the gain is part of what reads, and so is the centring.

    Two heads that know nothing of each other score about 1/√d_model, so beside each score stands what chance gives:
    the same two matrices with a random rotation between them, drawn ``n_random`` times, which keeps the strength of
    every direction and forgets where it points. The mean square of those is exactly 1 / d_model.

    Args:
        n_random: rotations drawn; one serves all pairs.
        confidence: the share of rotations between chance_low and chance_high.

    Raises:
        InputError: a model of one attention layer, one without the weights, with another normalisation than LayerNorm
            or keys that heads share; too few draws; a confidence that is no share.

    Source: Elhage et al. (2021), A Mathematical Framework for Transformer Circuits, "Q-, K- and V-composition" [mem];
    there, chance is two Gaussian matrices of the same shape. The rotation and its spread are ours.

    >>> from interp.constructions.induction import induction_circuit
    >>> model = induction_circuit(d_vocab=4, n_ctx=6, triggers=[1]).model
    >>> score_composition(model).frame[["writer", "reader", "input", "score"]].round(3).values.tolist()
    [['L0H0', 'L1H0', 'q', 0.0], ['L0H0', 'L1H0', 'k', 0.5], ['L0H0', 'L1H0', 'v', 0.0]]
    """
    refuse_other(model)
    check_seed(seed)
    check_whole("n_random", n_random, 2)
    if not 0 < confidence < 1:
        raise InputError(f"confidence = {confidence}: give a share between 0 and 1")
    weights = HeadWeights.of(model)
    pairs = [(a, b) for a in weights.heads for b in weights.heads if a[0] < b[0]]
    if not pairs:
        raise InputError("no head comes behind another: composition needs heads in two layers")
    written = {head: weights.circuit(*head, "OV").svd() for head in weights.heads}
    read = {(head, each): weights.read_by(*head, each).svd() for head in weights.heads for each in INPUTS}
    keys = [(a, b, each) for a, b in pairs for each in INPUTS]
    scores = torch.stack([_score(written[a], read[b, each]) for a, b, each in keys]).numpy()
    spectra_a = torch.stack([_shares(written[a][1]) for a, _, _ in keys])
    spectra_b = torch.stack([_shares(read[b, each][1]) for _, b, each in keys])
    draws = _by_chance(spectra_a, spectra_b, weights.d_model, n_random, seed)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    rows: list[dict[str, Any]] = []
    for index, (a, b, each) in enumerate(keys):
        row: dict[str, Any] = {"writer": f"L{a[0]}H{a[1]}", "writer_layer": a[0], "writer_head": a[1]}
        row |= {"reader": f"L{b[0]}H{b[1]}", "reader_layer": b[0], "reader_head": b[1], "input": each}
        row |= {"score": scores[index], "chance": draws[:, index].mean(), "chance_low": low[index]}
        row |= {"chance_high": high[index], "excess": scores[index] - draws[:, index].mean()}
        reached = (1 + (draws[:, index] >= scores[index]).sum()) / (1 + n_random)
        rows.append(row | {"p": np.nan if np.isnan(scores[index]) else reached})
    settings = {"n_random": n_random, "confidence": confidence, "seed": seed, "n_pairs": len(pairs)}
    frame = pd.DataFrame(rows)
    title = "Composition of heads: ‖A B‖ / (‖A‖ ‖B‖)"
    return CompositionResult(frame, title, settings, _notes(frame, n_random))


def _score(written: tuple[Tensor, Tensor, Tensor], read: tuple[Tensor, Tensor, Tensor]) -> Float[Tensor, ""]:
    """‖S_a V_aᵀ U_b S_b‖ / (‖S_a‖ ‖S_b‖); NaN where a norm is zero."""
    (_, S_a, V_a), (U_b, S_b, _) = written, read
    product = S_a[:, None] * (V_a.T @ U_b) * S_b
    return product.norm() / (S_a.norm() * S_b.norm())


def _shares(singular: Float[Tensor, "rank"]) -> Float[Tensor, "rank"]:
    """The share of each direction in the squared norm."""
    return singular.square() / singular.square().sum()


def _by_chance(
    a: Float[Tensor, "row rank_a"], b: Float[Tensor, "row rank_b"], d_model: int, n_random: int, seed: int
) -> Float[np.ndarray, "draw row"]:
    """Scores of matrices with these squared singular values, a random rotation between them: √(Σ a_i R_ij² b_j)."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(n_random):
        frame = torch.linalg.qr(torch.randn(d_model, b.shape[1], generator=generator, dtype=torch.float64)).Q
        overlaps = frame[: a.shape[1]].square()  # [rank_a, rank_b]
        found.append((a @ overlaps * b).sum(dim=1).sqrt())
    return torch.stack(found).numpy()


def _notes(frame: pd.DataFrame, n_random: int) -> tuple[str, ...]:
    notes = [quantile_note(len(frame), n_random)]
    if missing := int(frame["score"].isna().sum()):
        notes.append(f"{missing} of {len(frame)} rows have no score: one of the two heads writes or reads nothing")
    return tuple(notes)
