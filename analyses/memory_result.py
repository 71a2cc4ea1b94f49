"""The table of memory readouts: its columns, its picture, and what counts as remembered."""

from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go

from analyses.figures import component_colour
from analyses.memory_statistics import Recall
from analyses.memory_weights import Head
from analyses.result import Result

SIGNIFICANCE_LEVEL = 0.01
"""A p-value up to which a memory counts as there: of 20 readouts of untrained models, fewer than one goes wrong."""
QUESTIONS = {
    "copying": "having read token v, does the head raise the logit of v most?",
    "previous_token": "does position t like position t − 1 best?",
    "match": "does token k like the mark best that the earlier head leaves where it has read k?",
    "bigram": "how far is the feed-forward part's next-token distribution from the bigram's?",
}


@dataclass(frozen=True, eq=False)
class MemoryRecallResult(Result):
    """Readouts of associative memories, one row each.

    Columns: memory (the paper's name), layer, head, component (``L1H0``), writer (the earlier head whose marks are
    matched), question, parameter (our tensor), index_set (which queries and keys), recall, n (its denominator),
    chance (what labels dealt at random would give), p_value and significant (see ``permutation_p_value``), margin
    and crosstalk (see ``Recall``). ``memory_recall`` adds kl (nats; for W_F, whose chance is a KL as well and which
    has no recall), cosine (of W − W_init with the ideal memory), learned_margin and learned_crosstalk (margin and
    crosstalk of W − W_init alone).
    """

    caveat: str | None = field(default=None)
    """What the readouts leave out of the model's computation (normalisation, biases); among the notes as well."""

    value_column = "recall"

    @property
    def name(self) -> str:
        """Short name, used for files."""
        return "memory_recall"

    def plot(self) -> go.Figure:
        """Recall of each memory beside its chance level."""
        rows = self.frame.loc[self.frame["recall"].notna()].to_dict("records")
        places = [row["component"] + (f" ← {row['writer']}" if isinstance(row["writer"], str) else "") for row in rows]
        labels = [f"{row['memory']}<br>{place}<br>{row['index_set']}" for row, place in zip(rows, places, strict=True)]
        colours = [component_colour(int(row["layer"]), int(row["head"])) for row in rows]
        figure = go.Figure(go.Bar(x=labels, y=[row["recall"] for row in rows], marker_color=colours, name="recall"))
        figure.add_trace(
            go.Scatter(
                x=labels,
                y=[row["chance"] for row in rows],
                mode="markers",
                name="chance",
                marker={"symbol": "line-ew-open", "size": 20, "color": "black"},
            )
        )
        figure.update_layout(title=self.title, template="plotly_white", margin={"t": 70, "b": 40})
        return figure.update_yaxes(title_text="recall (share)", range=[0, 1.05])


COLUMNS = [
    *("memory", "layer", "head", "component", "writer", "question", "parameter", "index_set"),
    *("recall", "n", "chance", "p_value", "significant", "margin", "crosstalk"),
]


def recall_columns(found: Recall) -> dict[str, Any]:
    """The columns that a recall fills."""
    return {
        "recall": found.recall,
        "n": found.n,
        "chance": found.chance,
        "p_value": found.p_value,
        "significant": found.p_value <= SIGNIFICANCE_LEVEL,
        "margin": found.margin,
        "crosstalk": found.crosstalk,
    }


def too_few(row: dict[str, Any]) -> list[str]:
    """A note if even a perfect recall of so few keys can come by chance."""
    if row["recall"] < 1 or row["significant"]:
        return []
    what = f"{row['memory']} ({row['index_set']}) recalls all {row['n']}, yet p = {row['p_value']:.2g}"
    return [f"{what}: {round(1 / row['chance'])} keys are too few to tell a memory from luck"]


def about(
    memory: str, place: tuple[int, int | None], writer: Head | None, question: str, parameter: str, index_set: str
) -> dict[str, Any]:
    """The columns that say what a row is about; ``question`` is a key of ``QUESTIONS``."""
    layer, head = place
    return {
        "memory": memory,
        "layer": layer,
        "head": head,
        "component": f"L{layer}.mlp" if head is None else written((layer, head)),
        "writer": None if writer is None else written(writer),
        "question": QUESTIONS[question],
        "parameter": parameter,
        "index_set": index_set,
    }


def written(head: Head) -> str:
    """A head as ``L1H0``."""
    return f"L{head[0]}H{head[1]}"
