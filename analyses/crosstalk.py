"""How an associative memory of too many pairs forgets: crosstalk and recall against width, measured and predicted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from numpy import ndarray
from plotly.subplots import make_subplots
from scipy import stats

from analyses.figures import INK, MUTED, look, plain, words
from analyses.memory_scores import copying_scores, ideal_memory
from analyses.memory_statistics import unique_best
from analyses.memory_weights import check_size
from analyses.result import Result
from interp.constructions.induction import induction_circuit
from interp.statistics import jackknife_values, seed_interval
from tasks.errors import InputError

Pairs = Literal["gaussian", "induction_circuit"]
Quantity = Literal["crosstalk", "signal_to_noise", "recall"]
Scores = Float[ndarray, "query key"]

EXACT, GAUSSIAN = "ratio of exact moments", "Gaussian approximation"
_FEWEST_SEEDS = 5  # what seed_interval needs
_QUADRATURE_NODES = 120
_UNIFORM_KURTOSIS = 9 / 5  # E x⁴ / (E x²)² of a uniform entry; PyTorch's default linear layer draws such
_BAND = "rgba(134, 142, 152, 0.25)"  # figures.MUTED, see-through


@dataclass(frozen=True, eq=False)
class CrosstalkResult(Result):
    """Crosstalk, signal-to-noise and recall of an ideal memory for each width, over seeds.

    Columns: width, quantity, value, ci_low, ci_high, predicted, prediction (what kind: the ratio of exact moments, or
    the Gaussian approximation), within (whether the prediction lies in the interval; missing where every seed gave
    the same, so that there is no interval), n_seeds.
    """

    @property
    def name(self) -> str:
        """Short name, used for files."""
        return "crosstalk"

    def plot(self) -> go.Figure:
        """Each quantity against width: measured with its band, and the prediction as a dashed line."""
        quantities = list(self.frame["quantity"].unique())
        figure = make_subplots(rows=1, cols=len(quantities), subplot_titles=[words(one) for one in quantities])
        for column, quantity in enumerate(quantities, start=1):
            rows = self.frame.loc[self.frame["quantity"] == quantity].sort_values("width")
            for trace in _curves(rows):
                figure.add_trace(trace.update(showlegend=column == 1 and trace.name != "band"), row=1, col=column)
            figure.update_xaxes(type="log", title_text="width", tickvals=rows["width"].unique(), row=1, col=column)
        figure.update_yaxes(range=[-0.03, 1.05], col=1 + quantities.index("recall"))
        return figure.update_layout(title=plain(self.title), template=look())


def crosstalk_against_width(
    n_pairs: int = 65,
    widths: Sequence[int] = (16, 32, 64, 128, 256),
    n_seeds: int = 20,
    seed: int = 0,
    *,
    pairs: Pairs = "gaussian",
    confidence: float = 0.95,
) -> CrosstalkResult:
    """How clearly does a memory of N pairs answer when its embeddings have d entries, and is that as it must be?

    W = Σ_k a_k b_kᵀ, scores s_kj = a_kᵀ W b_j, of which the own one is s_kk. With own scores of mean 1:

    - crosstalk = √E s_kj² (j ≠ k) / E s_kk;
    - signal_to_noise = E(s_kk − s_kj) / √Var(s_kk − s_kj);
    - recall = share of k with argmax_j s_kj = k (a tie is no recall).

    Prediction. Let the vectors be independent, symmetric, with E|a|² = E|b|² = 1, and m_a = E|a|⁴, g_a = E(a·a')²,
    likewise for b. Every product with a lone vector has mean 0, so that E s_kk = 1, own and other scores are
    uncorrelated, and exactly

    - E s_kj² = m_a g_b + g_a m_b + (N − 2) g_a g_b,
    - Var s_kk = m_a m_b − 1 + (N − 1) g_a g_b.

    Crosstalk and signal-to-noise follow from these. For recall there is only an approximation, which takes all
    scores of a query for independent normals of these moments: ∫ φ(z) Φ((1 + √Var s_kk z) / √E s_kj²)^(N−1) dz.

    ``pairs="gaussian"``: entries N(0, 1/d), m = 1 + 2/d, g = 1/d, so E s_kj² = 2 (1 + 2/d) / d + (N − 2) / d².
    ``pairs="induction_circuit"``: W_O2 of ``induction_circuit(embeddings="random")``, which reads w_E(v) W_V2 and
    writes w_U(v): uniform entries in w_U make m_a = 1 + 0.8/d; the random W_V2 makes g_b = (2d − 0.2)/d², twice that
    of independent entries, and m_b = 1 + 0.8/d² + 2 g_b. So the frozen W_V2 raises the squared crosstalk by a factor
    from 1.5 (few pairs) to 2 (many).

    Args:
        n_pairs: N, at least 2.
        widths: the values of d, at least 2 each.
        n_seeds: memories drawn per width, at least 5.
        seed: what the memories are drawn from, together with width and index.
        confidence: that the intervals of a quantity hold at all widths together: Student's t over seeds, its error
            shared out among the widths (Bonferroni). The two ratios use each seed's jackknife value.

    Raises:
        InputError: fewer than 2 pairs or 5 seeds, a width below 2 or twice, an unknown kind of pairs, or a confidence
            outside 0 to 1.

    Source: the picture is that of Bietti et al. 2023, section 4 (near-orthonormal embeddings); the moments are our
    own algebra.

    >>> result = crosstalk_against_width(10, [8, 64], n_seeds=5)
    >>> result.frame.loc[result.frame["quantity"] == "crosstalk", "predicted"].round(3).tolist()
    [0.661, 0.185]
    """
    _check(n_pairs, widths, n_seeds, pairs, confidence)
    rows = []
    for width in widths:
        drawn = [_DRAW[pairs](n_pairs, width, _seed_of(seed, width, index)) for index in range(n_seeds)]
        rows += _rows(width, drawn, moments(n_pairs, width, pairs), 1 - (1 - confidence) / len(widths))
    frame = pd.DataFrame(rows).astype({"within": "boolean"})
    settings = {"n_pairs": n_pairs, "widths": list(widths), "n_seeds": n_seeds, "seed": seed}
    settings |= {"pairs": pairs, "confidence": confidence}
    title = f"An ideal memory of {n_pairs} pairs against the width of its embeddings"
    return CrosstalkResult(frame, title, settings, _notes(frame))


class Moments(NamedTuple):
    """Second moments of a memory's scores, in units of the mean own score."""

    own_variance: float
    other_square: float

    @property
    def crosstalk(self) -> float:
        """Root mean square of the other scores."""
        return self.other_square**0.5

    @property
    def signal_to_noise(self) -> float:
        """Mean of own minus other score, 1, in units of its standard deviation."""
        return (self.own_variance + self.other_square) ** -0.5

    def gaussian_recall(self, n_pairs: int) -> float:
        """How often an own score exceeds n_pairs − 1 others if all were independent normals."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(_QUADRATURE_NODES)
        own = 1 + self.own_variance**0.5 * nodes
        wins = stats.norm.cdf(own / self.crosstalk) ** (n_pairs - 1)
        return float(weights @ wins / weights.sum())


def moments(n_pairs: int, width: int, pairs: Pairs = "gaussian") -> Moments:
    """The exact moments that ``crosstalk_against_width`` derives.

    >>> moments(65, 16).other_square == 2 * (1 + 2 / 16) / 16 + (65 - 2) / 16**2
    True
    """
    d = width
    g_a, g_b, m_a, m_b = 1 / d, 1 / d, 1 + 2 / d, 1 + 2 / d
    if pairs == "induction_circuit":
        excess = _UNIFORM_KURTOSIS - 1
        g_b = (2 * (d - 1) + _UNIFORM_KURTOSIS) / d**2
        m_a, m_b = 1 + excess / d, 1 + excess / d**2 + 2 * g_b
    return Moments(
        own_variance=m_a * m_b - 1 + (n_pairs - 1) * g_a * g_b,
        other_square=m_a * g_b + g_a * m_b + (n_pairs - 2) * g_a * g_b,
    )


def _gaussian_scores(n_pairs: int, width: int, seed: int) -> Scores:
    a, b = np.random.default_rng(seed).normal(scale=width**-0.5, size=(2, n_pairs, width))
    return a @ (a.T @ b) @ b.T


def _circuit_scores(n_pairs: int, width: int, seed: int) -> Scores:
    circuit = induction_circuit(d_vocab=n_pairs, n_ctx=2, triggers=[0], d_model=width, embeddings="random", seed=seed)
    model = circuit.initial_model
    W_E, W_V, W_U = model.W_E.double(), model.W_V[1, 0].double(), model.W_U.double()
    # circuit.memories["W_O2"] without its factor, which differs from seed to seed
    memory = ideal_memory(W_E @ W_V, W_U.T)
    own = width / 9  # E |w_E W_V|² = d/3, E |w_U|² = 1/3
    return (copying_scores(W_E, W_V, memory, W_U) / own).detach().numpy()


_DRAW: dict[Pairs, Callable[[int, int, int], Scores]] = {
    "gaussian": _gaussian_scores,
    "induction_circuit": _circuit_scores,
}


def _rows(width: int, drawn: list[Scores], expected: Moments, confidence: float) -> list[dict[str, Any]]:
    """A row per quantity from the score matrices of one width."""
    n_pairs = len(drawn[0])
    off = ~np.eye(n_pairs, dtype=bool)
    recall = [_recall(scores) for scores in drawn]
    # per seed: mean own score, mean other score, and the mean squares of other scores and of own minus other
    means = np.array(
        [
            [
                scores.diagonal().mean(),
                scores[off].mean(),
                np.square(scores[off]).mean(),
                np.square(scores.diagonal()[:, None] - scores)[off].mean(),
            ]
            for scores in drawn
        ]
    )
    measured: dict[Quantity, tuple[ndarray, float, str]] = {
        "crosstalk": (_jackknifed(_crosstalk, means), expected.crosstalk, EXACT),
        "signal_to_noise": (_jackknifed(_signal_to_noise, means), expected.signal_to_noise, EXACT),
        "recall": (np.array(recall), expected.gaussian_recall(n_pairs), GAUSSIAN),
    }
    rows = []
    for quantity, (values, predicted, prediction) in measured.items():
        interval = seed_interval(values, confidence=confidence)
        low, high = float(interval.low), float(interval.high)
        row = {"width": width, "quantity": quantity, "value": float(interval.estimate), "ci_low": low, "ci_high": high}
        within = None if low == high else low <= predicted <= high
        rows.append(row | {"predicted": predicted, "prediction": prediction, "within": within, "n_seeds": len(values)})
    return rows


def _recall(scores: Scores) -> float:
    best = unique_best(torch.tensor(scores))
    return float((best == torch.arange(len(best))).double().mean())


def _crosstalk(means: Float[ndarray, "4"]) -> float:
    return float(means[2] ** 0.5 / means[0])


def _signal_to_noise(means: Float[ndarray, "4"]) -> float:
    gap = means[0] - means[1]
    return float(gap / (means[3] - gap**2) ** 0.5)


def _jackknifed(of_means: Callable[[ndarray], float], means: Float[ndarray, "seed 4"]) -> Float[ndarray, "seed"]:
    """A ratio of averages over all seeds, as one value per seed: the mean of per-seed ratios would be biased."""
    n = len(means)
    without = np.array([of_means(np.delete(means, index, axis=0).mean(axis=0)) for index in range(n)])
    return jackknife_values(of_means(means.mean(axis=0)), without)


def _seed_of(seed: int, width: int, index: int) -> int:
    return int(np.random.SeedSequence((seed, width, index)).generate_state(1)[0])


def _notes(frame: pd.DataFrame) -> tuple[str, ...]:
    """Where a prediction fails, and where nothing can be said."""
    notes = []
    for (quantity, prediction), rows in frame.groupby(["quantity", "prediction"], sort=False):
        outside = rows.loc[~rows["within"].fillna(value=True)]
        if len(outside):
            apart = float((outside["predicted"] - outside["value"]).abs().max())
            at = ", ".join(map(str, outside["width"]))
            notes.append(f"{quantity}: the {prediction} lies outside the interval at width {at}, by up to {apart:.2g}")
        same = rows.loc[rows["within"].isna()]
        if len(same):
            at = ", ".join(map(str, same["width"]))
            notes.append(f"{quantity}: every seed gave the same at width {at}, so that there is no interval")
    return tuple(notes)


def _curves(rows: pd.DataFrame) -> list[go.Scatter]:
    width = rows["width"].to_numpy()
    band_x, band_y = np.concatenate([width, width[::-1]]), np.concatenate([rows["ci_high"], rows["ci_low"][::-1]])
    measured = {"color": INK, "width": 2}
    return [
        go.Scatter(
            x=band_x, y=band_y, fill="toself", fillcolor=_BAND, line={"width": 0}, name="band", hoverinfo="skip"
        ),
        go.Scatter(x=width, y=rows["value"], mode="lines+markers", line=measured, name="measured", legendgroup="value"),
        go.Scatter(
            x=width,
            y=rows["predicted"],
            mode="lines",
            line={"color": MUTED, "width": 2, "dash": "dash"},
            name="predicted",
            legendgroup="predicted",
        ),
    ]


def _check(n_pairs: int, widths: Sequence[int], n_seeds: int, pairs: Pairs, confidence: float) -> None:
    if pairs not in get_args(Pairs):
        raise InputError(f"pairs = {pairs!r} is unknown: choose from {', '.join(get_args(Pairs))}")
    if n_pairs < 2:
        raise InputError(f"n_pairs = {n_pairs} leaves nothing to confuse a pair with: store at least 2")
    check_size(n_pairs, n_pairs)
    if not 0 < confidence < 1:
        raise InputError(f"confidence = {confidence} is no probability: give a number between 0 and 1, 0.95 say")
    if not widths:
        raise InputError("widths is empty: give at least one, [16, 32, 64] say")
    for width in widths:
        if width < 2:
            raise InputError(f"width {width} is too small: embeddings need at least 2 entries")
    if len(set(widths)) < len(widths):
        raise InputError(f"widths = {list(widths)} names a width twice: name each once")
    if n_seeds < _FEWEST_SEEDS:
        raise InputError(f"n_seeds = {n_seeds} gives no interval over seeds: draw at least {_FEWEST_SEEDS}")
