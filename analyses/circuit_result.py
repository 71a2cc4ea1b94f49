"""What a search for a circuit brings back."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from numpy import ndarray

from analyses.circuit import Circuit, Edge
from analyses.patching_figures import effect_map
from analyses.result import Result


@dataclass(frozen=True, eq=False)
class CircuitResult(Result):
    """A circuit that was found, and what was measured of every edge on the way.

    Columns: sender, receiver, receiver_input, method, metric, kept, step (when it was tried, or taken; missing for
    edges that were not), score, ci_low, ci_high (over prompts), n_prompts. The score of "acdc" and "brute_force" is
    how much worse the metric is without the edge than with it (where it was tried, or in the circuit found); 0 for
    edges that led nowhere by then. That of "greedy" is the attribution that ranked it, above 0 for worse.

    Attributes:
        circuit: what was found, with its scores.
        ties: all circuits that are as small and meet the criterion too ("brute_force"), the circuit first.
        faithfulness: a row for each of the ties, on the prompts of the search (``evaluate_circuit`` on others is the
            test): circuit, n_edges, reference, metric, model, empty, value (the metric of the model, of the reference
            and of the circuit), faithfulness, ci_low, ci_high, n_prompts.
    """

    circuit: Circuit = field(kw_only=True)
    ties: tuple[Circuit, ...] = field(kw_only=True)
    faithfulness: pd.DataFrame = field(kw_only=True)
    changes: Float[ndarray, "prompt edge"] | None = field(kw_only=True, default=None, repr=False)
    """What scores are means of, prompt by prompt, where they are means of something."""
    counts: Float[ndarray, "prompt"] | None = field(kw_only=True, default=None, repr=False)

    value_column = "score"

    @property
    def name(self) -> str:
        """Short name, used for files."""
        return "circuit_discovery"

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """``frame``, and how faithful what was found is."""
        return {self.name: self.frame, "circuit_faithfulness": self.faithfulness}

    def plot(self) -> go.Figure:
        """Scores of all edges as a map, senders by receivers; kept edges have a star."""
        kept = self.frame["kept"].to_numpy(dtype=bool)
        # effect_map gives a star to intervals without 0: what is kept, here
        ends = np.where(kept, 1.0, -1.0)
        shown = self.frame.assign(
            receiver=[f"{Edge('', *pair)}"[2:] for pair in self.frame[["receiver", "receiver_input"]].to_numpy()],
            effect=self.frame["score"],
            effect_low=ends,
            effect_high=1.0,
        )
        return effect_map(shown, down="sender", across="receiver", title=self.title, of="score")

    def _repr_html_(self) -> str:
        return f"{super()._repr_html_()}\n{self.circuit.draw(title=self.title)}"
