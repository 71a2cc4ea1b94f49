"""How a bigram report is laid out: sections whose headings say what was found, with figures, tables and captions."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from analyses.figures import INK, MUTED, component_bars, component_colour, curves, look, plain, source_points, whiskers
from analyses.report.bigram_report import IN_CONTEXT, SEGMENT, BigramMeasurements
from analyses.report.contents import FigureOf, Section, TableOf
from analyses.report.findings import Finding
from analyses.report.prompts_view import guesses_of, patterns_of
from interp import HookedTransformer

PROMPTS_SHOWN = 4
PATTERN_PROMPTS = 2
PATTERN_POSITIONS = 32
MOST_PATTERNS = 8
_FLOORED_LOSS = 6.0
"""Nats beyond which a predictor's loss measures the floor under its probabilities: left out of the figure."""
_EFFECT = ("component", SEGMENT, "metric", "baseline", "ablated", "delta", "ci_low", "ci_high")

BIGRAM_METHOD = (
    (
        "Every number is measured anew on prompts that were neither trained nor evaluated on in training. Brackets are "
        "95% confidence intervals: a bootstrap over prompts, paired where two things are compared on the same "
        "prompts. For a recall, which asks every token or position there is, they say how sure a share of so few is "
        "(Wilson)."
    ),
    (
        "Chance is the best predictor that sees only the current token, at the positions in question. The skill of a "
        "model is what it gets right beyond that. Nothing is claimed of a model that does not beat chance at 99% "
        "confidence. A head is named if the interval of the share of the skill that goes with it, corrected for the "
        "number of heads (Bonferroni), lies at or above one half; it is said to bring the model to chance if that "
        "interval reaches the whole. A memory is named if labels dealt at random would hardly ever give such a recall "
        "(permutation test, corrected for the number of memories and of heads among which the circuit was chosen)."
    ),
    "A head's role is what its attention lies on most of the time, if it lies there more than in untrained models.",
)


def bigram_sections(measured: BigramMeasurements, model: HookedTransformer, history: pd.DataFrame) -> list[Section]:
    """The sections in the order in which a reader asks."""
    copying, heads, memories = measured.findings
    sections = [
        _copying(measured, copying),
        _heads(measured, heads),
        _attention(measured, model, heads),
        _memories(measured, memories),
        _training(history),
        Section(
            "prompts",
            "Prompts",
            "What the model guessed, token by token",
            text=(
                (
                    "Each token is coloured by the guess that the model made before it saw it. Point at a token, or "
                    "move along with the arrow keys, to read the probabilities."
                ),
            ),
            prompts=guesses_of(model, measured.prompts[:PROMPTS_SHOWN]),
        ),
    ]
    return [section for section in sections if section is not None]


def _copying(measured: BigramMeasurements, finding: Finding) -> Section:
    frame = measured.comparison.frame
    heading = "The model does not copy in context"
    if finding.numbers["copies"]:
        heading = "The model copies in context, far from chance"
    elif finding.claims:
        heading = "The model uses its context, but counting would do as well"
    chance = finding.numbers["chance"]["value"]
    accuracy = _points(frame, "accuracy", "share predicted correctly")
    accuracy.update_xaxes(range=[-0.04, 1.04])
    accuracy.add_vline(x=chance, line={"color": MUTED, "dash": "dot", "width": 1.5})
    loss = _points(frame.loc[frame["value"] <= _FLOORED_LOSS], "loss", "loss (nats)")
    loss.update_xaxes(range=[-0.25, 1.05 * min(_FLOORED_LOSS, _largest_loss(frame))])
    left_out = frame.loc[(frame["metric"] == "loss") & (frame["value"] > _FLOORED_LOSS), "source"].unique()
    note = f" Off the scale, where a predictor is sure and wrong: {', '.join(left_out)}." if len(left_out) else ""
    tables = [_table("predictors", "The model beside reference predictors", measured.comparison)]
    if measured.not_absorbed is not None:
        title = "The same in context, without prompts that only go round a loop of triggers"
        tables.append(_table("predictors_outside_loops", title, measured.not_absorbed))
    return Section(
        finding.key,
        "Copying",
        heading,
        text=(
            (
                "In context: a trigger that has occurred before in the prompt, so that its output can be looked up. "
                "First: a trigger's first occurrence, whose output nobody can know. Global: every other token, which "
                "follows the corpus' bigrams. The metric “distance” is how far a predictor's next-token distribution "
                "is from the model's: total variation, 0 to 1."
            ),
        ),
        figures=[
            FigureOf(
                accuracy,
                f"In context the model is right {_percent(finding.numbers['model']['value'])} of the time; whoever "
                f"sees only the current token, {_percent(chance)} (dotted line).",
                height=380,
            ),
            FigureOf(loss, f"Loss in nats; lower is better.{note}", height=380),
        ],
        tables=tables,
    )


def _heads(measured: BigramMeasurements, finding: Finding) -> Section:
    rows = finding.numbers["heads"]
    carriers = [one["head"] for one in rows if one["carries"]]
    heading = f"{_listed(carriers)} carry the skill" if len(carriers) > 1 else "No single head carries the skill"
    if len(carriers) == 1:
        heading = f"{carriers[0]} carries the skill"
    figures = []
    if rows:
        figures.append(FigureOf(_lost(rows), _lost_caption(rows)))
    zeroed = measured.zero.frame.loc[measured.zero.frame["metric"] == "loss"]
    by_kind = _bars(zeroed, "delta", SEGMENT, "rise of the loss (nats)")
    figures.append(
        FigureOf(by_kind, "What the loss gains when a head's output is replaced by zeros, by kind of position.")
    )
    caption = "The same in context, where the head's output is replaced by zeros (filled) and by its mean (hatched)."
    figures.append(FigureOf(_zero_beside_mean(measured), caption))
    in_context = measured.attribution.frame.loc[measured.attribution.frame[SEGMENT] == IN_CONTEXT]
    attribution = _bars(in_context, "attribution", "component", "logits for the answer").update_layout(showlegend=False)
    caption = "What each part writes directly for the right answer and against a wrong one, in context, in logits."
    figures.append(FigureOf(attribution, caption))
    tables = [
        _table("ablation_zero", "Each head replaced by zeros", measured.zero, _EFFECT),
        _table("ablation_mean", "Each head replaced by its mean over prompts", measured.mean, _EFFECT),
        _table("attribution", "Direct contributions to the logit difference", measured.attribution),
    ]
    if measured.mlps is not None:
        title = "Each feed-forward part replaced by its mean over prompts"
        tables.insert(2, _table("ablation_mlp", title, measured.mlps, _EFFECT))
    if rows:
        flat = pd.DataFrame(
            {"head": one["head"], "role": one["role"], "carries": one["carries"], "to_chance": one["to_chance"]}
            | {f"share_of_skill_lost{end}": one["share_of_skill_lost"][key] for end, key in _ENDS}
            | {f"accuracy_without{end}": one["accuracy_without"][key] for end, key in _ENDS}
            for one in rows
        )
        tables.insert(0, TableOf("skill_lost", "What goes with each head, in context", flat))
    return Section(finding.key, "Heads", heading, figures=figures, tables=tables)


_ENDS = (("", "value"), ("_ci_low", "ci_low"), ("_ci_high", "ci_high"))


def _attention(measured: BigramMeasurements, model: HookedTransformer, finding: Finding) -> Section:
    roles = {one["head"]: one["role"] for one in finding.numbers["heads"] if one["role"]}
    known = [
        f"{_listed(heads)} {f'are {role}s' if len(heads) > 1 else f'is {_article(role)}'}"
        for role in dict.fromkeys(roles.values())
        if (heads := sorted(head for head, its_role in roles.items() if its_role == role))
    ]
    heading = "; ".join(known) if known else "No head attends along a known relation most of the time"
    figure = _bars(measured.attention.frame, "score", "metric", "attention paid (share)")
    _mark_even_attention(figure, measured.attention.frame)
    heads = [(layer, head) for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]
    ranked = [tuple(int(part) for part in name[1:].split("H")) for name in _by_importance(measured)]
    shown = sorted(ranked[:MOST_PATTERNS]) if len(heads) > MOST_PATTERNS else heads
    text = [
        "Rows are where the model is (destination), columns where it looks (source). Stronger colour, more attention."
    ]
    if len(heads) > MOST_PATTERNS:
        text.append(f"Shown are the {MOST_PATTERNS} heads whose removal costs most, of {len(heads)}.")
    return Section(
        "attention",
        "Attention",
        heading,
        text=text,
        figures=[
            FigureOf(
                figure,
                "How much attention each head pays along known relations; a dotted line is where a head that attends "
                "evenly would be.",
                height=400,
                wide=True,
            )
        ],
        patterns=patterns_of(
            model,
            measured.prompts[:PATTERN_PROMPTS],
            positions=PATTERN_POSITIONS,
            heads=[(int(layer), int(head)) for layer, head in shown],
        ),
        tables=[
            _table(
                "attention_scores",
                "Attention along known relations",
                measured.attention,
                ("component", "question", "score", "ci_low", "ci_high", "top", "uniform", "p_value", "significant"),
            )
        ],
    )


def _memories(measured: BigramMeasurements, finding: Finding) -> Section:
    kept = [one["memory"] for one in finding.numbers["memories"] if one["remembered"]]
    heading = f"{_listed(kept)} {'remembers' if len(kept) == 1 else 'remember'}" if kept else "No memory in the weights"
    if measured.recall is None:
        return Section(finding.key, "Memories", heading, text=(finding.sentence,))
    figure, n_rows = _recalls(measured.recall.frame)
    caption = "Recall of each memory, in the colour of its head; the mark is what labels dealt at random would give."
    shown = (
        "memory",
        "component",
        "index_set",
        "recall",
        "n",
        "chance",
        "p_value",
        "margin",
        "crosstalk",
        "kl",
        "cosine",
    )
    return Section(
        finding.key,
        "Memories",
        heading,
        text=(
            (
                "W_O2 maps an attended token to its own logit, W_K1 a position to the one before, W_K2 a trigger to "
                "the mark that the earlier head leaves behind it. Recall: share of queries whose best key is the right "
                "one."
            ),
        ),
        figures=[FigureOf(figure, caption, height=100 + 56 * n_rows, wide=True)],
        tables=[_table("memory_recall", "Recall of the associative memories", measured.recall, shown)],
    )


def _recalls(frame: pd.DataFrame) -> tuple[go.Figure, int]:
    """A bar for every recall in the colour of its head, with a mark at chance; and how many there are."""
    rows = frame.loc[frame["recall"].notna()].to_dict("records")
    places = [f"{row['memory']}, {row['component']}<br>{plain(row['index_set'].split(', ')[-1])}" for row in rows]
    colours = [component_colour(int(row["layer"]), int(row["head"])) for row in rows]
    recalls = [row["recall"] for row in rows]
    bars = go.Bar(y=places, x=recalls, orientation="h", marker={"color": colours}, width=0.5)
    mark = {"symbol": "line-ns", "size": 26, "line": {"width": 2, "color": INK}}
    chance = go.Scatter(y=places, x=[row["chance"] for row in rows], mode="markers", marker=mark)
    figure = go.Figure([bars, chance]).update_layout(template=look(), showlegend=False)
    figure.update_yaxes(autorange="reversed")
    return figure.update_xaxes(title_text="recall (share)", range=[0, 1.03]), len(rows)


def _training(history: pd.DataFrame) -> Section:
    steps = history["step"].to_numpy()
    shades = {"loss_global": MUTED, "loss_first": MUTED, "loss_in_context": INK, "loss": MUTED}
    segments = [name for name in shades if name in history and name != "loss"] or ["loss"]
    losses = {name.removeprefix("loss_"): history[name].to_numpy(dtype=float) for name in segments}
    colours = {name.removeprefix("loss_"): shades[name] for name in segments}
    loss = curves(steps, losses, colours).update_yaxes(title_text="loss (nats)", rangemode="tozero")
    figures = [FigureOf(loss, _learned_caption(history))]
    recalls = [name for name in history if str(name).startswith("recall_")]
    early = "recall_W_K1_first64"  # of prompts no longer than that, the same curve once more
    recalls = [name for name in recalls if name != early or not history[name].equals(history["recall_W_K1"])]
    if recalls:
        of_head = {name: component_colour(int("K1" not in str(name)), 0) for name in recalls}
        named = {str(name).removeprefix("recall_"): history[name].to_numpy(dtype=float) for name in recalls}
        curve = curves(steps, named, {str(name).removeprefix("recall_"): of_head[name] for name in recalls})
        curve.for_each_trace(lambda trace: trace.update(name=trace.name.replace(" ", "_", 1)))  # W_K1 is a name
        curve.update_yaxes(title_text="recall (share)", range=[-0.03, 1.05])
        figures.append(FigureOf(curve, "The recall of each memory during training, in the colour of its head."))
    table = TableOf("history", "Training history", history)
    return Section("training", "Training", "How it was learned", figures=figures, tables=[table])


def _learned_caption(history: pd.DataFrame) -> str:
    if "accuracy_in_context" not in history:
        return "Loss during training, on prompts that were not trained on."
    half = history.loc[history["accuracy_in_context"] >= 0.5, "step"]
    when = f"step {int(half.iloc[0])}" if len(half) else "no step"
    return f"Loss on the evaluation prompts. Accuracy in context first exceeds one half at {when}."


def _points(frame: pd.DataFrame, metric: str, title: str) -> go.Figure:
    rows = frame.loc[frame["metric"] == metric].iloc[::-1]  # in context first: it is what the reader came for
    order = {source: rank for rank, source in enumerate(frame["source"].unique())}
    rows = rows.sort_values("source", key=lambda sources: sources.map(order), kind="stable")
    figure = go.Figure(source_points(rows, by=SEGMENT))
    figure.update_traces(cliponaxis=False)
    figure.update_yaxes(categoryorder="array", categoryarray=[plain(source) for source in order][::-1])
    figure.update_xaxes(title_text=title, rangemode="tozero")
    return figure.update_layout(template=look())


def _largest_loss(frame: pd.DataFrame) -> float:
    """The highest end of an interval among the losses that are drawn."""
    drawn = frame.loc[(frame["metric"] == "loss") & (frame["value"] <= _FLOORED_LOSS)]
    return float(drawn["ci_high"].max())


def _bars(frame: pd.DataFrame, value: str, category: str, title: str) -> go.Figure:
    figure = go.Figure([bar.update(showlegend=True) for bar in component_bars(frame, value=value, category=category)])
    figure.update_yaxes(title_text=title)
    return figure.update_layout(template=look(), barmode="group")


def _zero_beside_mean(measured: BigramMeasurements) -> go.Figure:
    """Two bars for every head: what the loss in context gains if its output is zeros, and if it is the mean."""
    figure = go.Figure()
    for pattern, result in (("", measured.zero), ("/", measured.mean)):
        frame = result.frame.loc[(result.frame["metric"] == "loss") & (result.frame[SEGMENT] == IN_CONTEXT)]
        colours = [
            component_colour(int(layer), int(head)) for layer, head in zip(frame["layer"], frame["head"], strict=True)
        ]
        bars = go.Bar(x=frame["component"], y=frame["delta"].to_numpy(dtype=float), error_y=whiskers(frame, "delta"))
        marker = {"color": colours, "pattern": {"shape": pattern, "fgcolor": colours, "fillmode": "replace"}}
        figure.add_trace(bars.update(marker=marker, name=f"by {'its mean' if pattern else 'zeros'}"))
    figure.update_yaxes(title_text="rise of the loss (nats)")
    return figure.update_layout(template=look(), barmode="group", showlegend=False)


def _lost(rows: Sequence[dict[str, Any]]) -> go.Figure:
    frame = pd.DataFrame(
        {"component": one["head"], "metric": "share"}
        | dict(zip(("layer", "head"), (int(part) for part in one["head"][1:].split("H")), strict=True))
        | {"value": one["share_of_skill_lost"]["value"]}
        | {end: one["share_of_skill_lost"][end] for end in ("ci_low", "ci_high")}
        for one in sorted(rows, key=lambda one: one["head"])
    )
    figure = go.Figure(component_bars(frame, value="value", category="component"))
    for level in (0.5, 1.0):
        figure.add_hline(y=level, line={"color": MUTED, "dash": "dot", "width": 1.5})
    figure.update_yaxes(title_text="share of the skill lost", rangemode="tozero")
    return figure.update_layout(template=look(), showlegend=False)


def _lost_caption(rows: Sequence[dict[str, Any]]) -> str:
    worst = rows[0]
    what = "all" if worst["to_chance"] else _percent(worst["share_of_skill_lost"]["value"])
    return (
        f"Zeroing {worst['head']} takes {what} of the accuracy above chance in context; the lines are half of it and "
        f"all of it. Intervals are corrected for {len(rows)} head{'s' if len(rows) > 1 else ''}."
    )


def _mark_even_attention(figure: go.Figure, frame: pd.DataFrame) -> None:
    """A dotted line across each group of bars: the score of a head that attends evenly."""
    once = frame.drop_duplicates("metric")
    for place, even in enumerate(once["uniform"].to_numpy(dtype=float)):
        line = {"color": MUTED, "dash": "dot", "width": 2}
        figure.add_shape(type="line", x0=place - 0.42, x1=place + 0.42, y0=even, y1=even, line=line, layer="above")


def _by_importance(measured: BigramMeasurements) -> list[str]:
    frame = measured.zero.frame
    rows = frame.loc[(frame["metric"] == "loss") & (frame[SEGMENT] == IN_CONTEXT)]
    return rows.sort_values("delta", ascending=False)["component"].to_list()


def _table(name: str, title: str, result: Any, columns: tuple[str, ...] = ()) -> TableOf:
    return TableOf(name, title, result.frame, columns, dict(result.settings), tuple(result.notes))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _article(role: str) -> str:
    return f"{'an' if role[0] in 'aeiou' else 'a'} {role}"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
