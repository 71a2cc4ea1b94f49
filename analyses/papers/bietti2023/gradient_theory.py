"""Claim: in an idealised setting one gradient step on each matrix, in the right order, stores the three memories."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyses.figures import plain
from analyses.papers.bietti2023.gradient_steps import LARGEST_SCORE, ORDERS, PAPERS_ORDER, gradient_steps
from analyses.papers.claims import Claim, Evidence, Outcomes, Scale
from analyses.papers.jobs import Arm, Calculation
from analyses.papers.seed_figures import seed_curves, seed_points
from analyses.papers.verdicts import Criterion
from analyses.report.contents import FigureOf, TableOf

_MORE_THAN_HALF = 0.5
_SIZES = {
    "quick": {"d_vocab": 16, "seq_len": 32, "n_triggers": 3, "n_prompts": 8192},
    "full": {"d_vocab": 32, "seq_len": 32, "n_triggers": 5, "n_prompts": 16384},
}
_WIDTHS = {"quick": (64, 512, 4096), "full": (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)}
_SEEDS = {"quick": 5, "full": 5}
_OTHER_ORDERS = {
    "quick": (("W_O2", "W_K1", "W_K2"), ("W_K1", "W_K2", "W_O2")),
    "full": tuple(order for order in ORDERS if order != PAPERS_ORDER),
}


def one_gradient_step_each(scale: Scale) -> Claim:
    """W_O2, then W_K2, then W_K1: after one step each the memories are there; in no other order are they."""
    sizes, widest = _SIZES[scale], _WIDTHS[scale][-1]
    return Claim(
        name="one-gradient-step-each",
        sentence="In an idealised setting one population gradient step each on W_O2, W_K2 and W_K1, in this "
        "order, stores the three memories; in another order it does not.",
        source="[abs][mem]",
        question="With near-orthonormal embeddings and uniform data, how much do the three memories recall "
        "after one step each, and what does the order do to it?",
        criteria=(
            *(Criterion(memory, f"recall of {memory} at width {widest}", _MORE_THAN_HALF) for memory in PAPERS_ORDER),
            Criterion("order", "the least of the three recalls, minus that of the best other order", 0.25),
        ),
        measured="Frozen vectors are Gaussian of norm about 1, W_K1, W_K2 and W_O2 start at zero, and "
        f"unigrams, bigrams, triggers and outputs are uniform: {sizes['d_vocab']} tokens, "
        f"{sizes['seq_len']} positions, {sizes['n_triggers']} triggers drawn in each prompt, so that "
        "every token is one. A step goes along the negative gradient of the loss at triggers seen "
        f"before, over {sizes['n_prompts']} fresh prompts (which stand for the population), until the "
        f"largest score is {LARGEST_SCORE['W_O2']:g} (W_O2) or {LARGEST_SCORE['W_K2']:g} (W_K2, W_K1) "
        "[ours]. Recall is the paper's probe, over all tokens and all positions; chance is at most "
        f"1/{sizes['d_vocab']}. A seed draws embeddings and prompts. Stored means recalling more than "
        "half [ours]. The vocabulary, the lengths and the step sizes were settled by trials at other "
        "widths, before the criteria were.",
        arms={
            **{f"width {width}": steps(scale, width, PAPERS_ORDER) for width in _WIDTHS[scale]},
            **{" → ".join(order): steps(scale, widest, order) for order in _OTHER_ORDERS[scale]},
        },
        measure=measure_steps,
        control="Targets dealt anew among the scored positions of all prompts, so that nothing in a prompt tells them.",
        null_arms={
            f"width {widest}": steps(scale, widest, PAPERS_ORDER, shuffled=True),
            **{" → ".join(order): steps(scale, widest, order) for order in _OTHER_ORDERS[scale]},
        },
    )


def steps(scale: Scale, width: int, order: tuple[str, ...], *, shuffled: bool = False) -> Arm:
    """Three gradient steps in an order, for every seed."""
    sizes = _SIZES[scale]
    arguments = {"width": width, "order": list(order), "shuffled": shuffled, **sizes}
    label = f"gradient steps {' '.join(order)}, width {width}{', shuffled targets' if shuffled else ''}"
    # three passes forward and back, at a width of about 112 and without the optimiser's share
    cost = 3 * sizes["n_prompts"] * sizes["seq_len"] * 2 / 1000
    return tuple(Calculation(label, seed, gradient_steps, arguments, cost) for seed in range(_SEEDS[scale]))


def measure_steps(outcomes: Outcomes) -> Evidence:
    """Final recall against width, and by order at the largest width."""
    frame = pd.concat(
        [rows.assign(arm=arm, seed=seed) for arm, tables in outcomes.items() for seed, rows in enumerate(tables)],
        ignore_index=True,
    )
    last = frame.loc[frame["step"] == frame["step"].max()]
    final = last.pivot_table(index=["arm", "seed"], columns="memory", values="recall", sort=False)
    widths = sorted(int(arm.removeprefix("width ")) for arm in outcomes if arm.startswith("width "))
    at = final.loc[f"width {widths[-1]}"]
    lowest = final.min(axis=1).unstack("seed")
    others = lowest.loc[[arm for arm in outcomes if not arm.startswith("width ")]]
    values = {memory: at[memory].tolist() for memory in PAPERS_ORDER}
    values["order"] = (lowest.loc[f"width {widths[-1]}"] - others.max()).tolist()
    curves = {
        memory: [
            (np.array(widths), np.array([final.loc[(f"width {width}", seed), memory] for width in widths]))
            for seed in at.index
        ]
        for memory in PAPERS_ORDER
    }
    against_width = seed_curves(curves, x="width", y="recall after the three steps", share=True)
    against_width.update_xaxes(type="log", tickvals=widths)
    by_order = seed_points(
        {
            "W_O2 → W_K2 → W_K1" if arm.startswith("width") else arm: lowest.loc[arm].tolist()
            for arm in (f"width {widths[-1]}", *others.index)
        },
        y="least recall of the three",
    )
    return Evidence(
        values,
        figures=[
            FigureOf(against_width, "Recall after one step each, in the paper's order; thin lines are seeds."),
            FigureOf(
                _after_each(frame, f"width {widths[-1]}"),
                f"Recall after each step at width {widths[-1]}, mean over seeds.",
            ),
            FigureOf(
                by_order.update_yaxes(range=[-0.03, 1.03]),
                f"The least of the three recalls by order, at width {widths[-1]}.",
                wide=True,
            ),
        ],
        tables=[TableOf("recall", "Recall after each step", frame)],
    )


def _after_each(frame: pd.DataFrame, arm: str) -> go.Figure:
    """A small matrix: which memory recalls how much after which step."""
    rows = frame.loc[frame["arm"] == arm]
    table = rows.pivot_table(index="memory", columns="step", values="recall").reindex(list(PAPERS_ORDER))
    stored = rows.drop_duplicates("step").sort_values("step")["stored"].tolist()
    figure = seed_points({}, y="")
    figure.add_trace(
        go.Heatmap(
            z=table.to_numpy(),
            x=[plain(f"{index}: {memory}") for index, memory in enumerate(stored, start=1)],
            y=[plain(memory) for memory in table.index],
            zmin=0,
            zmax=1,
            colorscale="Blues",
            text=table.map("{:.2f}".format).to_numpy(),
            texttemplate="%{text}",
            colorbar={"title": "recall"},
        )
    )
    figure.update_xaxes(title_text="after step", tickvals=None, ticktext=None, range=None, type="category")
    return figure.update_yaxes(autorange="reversed")
