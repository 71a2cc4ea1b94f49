"""The report of scripted ablations: one table and one figure of the named sets."""

from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses.ablation import AblationResult, ablate
from analyses.ablation_spec import AblationSet, AblationSpec, read_ablation_spec
from analyses.figures import MUTED, look, plain, whiskers, words
from analyses.report.contents import FigureOf, Report, Section, TableOf
from analyses.report.findings import Finding
from analyses.report.folder import PAGE, refuse_occupied, write_folder
from analyses.report.provenance import facts_of, settings_of
from analyses.report.seeds import REPORT_STREAM
from interp.run import Run
from tasks.prompts import Prompts

_COLUMNS = ["component", "metric", "baseline", "ablated", "delta", "ci_low", "ci_high", "n_prompts"]
_METHOD = (
    (
        "Each named set of sites is ablated together, on fresh prompts that training never saw. delta is the metric "
        "after minus before; intervals are 95%, a bootstrap over prompts, the same prompts in both arms. They are not "
        "widened for the number of sets: of twenty ablations that do nothing, one interval may miss zero."
    ),
)


def write_ablation_report(run: Run, spec: str | Path, out: str | Path) -> Path:
    """Make the ablations that a TOML file names and write page, tables and JSON; returns the page.

    Raises:
        InputError: a file, site, metric or label that does not exist, or an output folder that is not empty.
    """
    folder = Path(out)
    refuse_occupied(folder)
    wanted = read_ablation_spec(Path(spec))
    prompts = run.task.sample(wanted.n_prompts, seed=(run.train_config.eval_seed, wanted.seed, REPORT_STREAM))
    results = [(one, _ablated(run, one, prompts, wanted)) for one in wanted.ablation]
    frame = pd.concat([_named(one, result.frame) for one, result in results], ignore_index=True)
    notes = tuple(f"{one.name}: {note}" for one, result in results for note in result.notes)
    table = TableOf("ablations", "Every ablation", frame, _shown(frame), _settings(wanted), notes)
    metrics = list(frame["metric"].unique())
    figures = [
        FigureOf(_figure(frame, metric), f"What each set does to the {words(metric)}.", wide=True) for metric in metrics
    ]
    section = Section("ablations", "Ablations", "What goes with each set", figures=figures, tables=[table])
    settings = settings_of(run, prompts, wanted.seed) | {"ablations": _settings(wanted)}
    title = f"{len(results)} ablation{'s' * (len(results) > 1)} of {run.path.resolve().name}"
    write_folder(folder, Report(title, facts_of(run, prompts), (_largest(frame),), [section], settings, _METHOD))
    return folder / PAGE


def _ablated(run: Run, one: AblationSet, prompts: Prompts, wanted: AblationSpec) -> AblationResult:
    reference = None
    if one.reference_seed is not None:
        reference = run.task.sample(len(prompts), seed=(one.reference_seed, REPORT_STREAM))
    return ablate(
        run.model,
        prompts,
        [list(one.sites)],
        method=one.method,
        metric=one.metric,
        by=one.by,
        reference=reference,
        over=one.over,
        seed=wanted.seed,
    )


def _named(one: AblationSet, frame: pd.DataFrame) -> pd.DataFrame:
    """The rows with the set's name in front; splits by different labels share the columns label and part."""
    kept = frame[_COLUMNS].copy()
    kept.insert(0, "name", one.name)
    return kept.assign(label=one.by or "", part="all" if one.by is None else frame[one.by].astype(str))


def _shown(frame: pd.DataFrame) -> tuple[str, ...]:
    split = ("part",) if (frame["part"] != "all").any() else ()
    return ("name", "component", "metric", *split, "baseline", "ablated", "delta", "ci_low", "ci_high")


def _figure(frame: pd.DataFrame, metric: str) -> go.Figure:
    rows = frame.loc[frame["metric"] == metric]
    parts = list(rows.groupby("part", sort=False))
    figure = make_subplots(
        rows=1, cols=len(parts), subplot_titles=[words(part) for part, _ in parts], shared_yaxes=True
    )
    for column, (_, of_part) in enumerate(parts, start=1):
        bar = go.Bar(
            x=of_part["delta"].to_numpy(dtype=float),
            y=[plain(name) for name in of_part["name"]],
            orientation="h",
            marker={"color": MUTED},
            error_x=whiskers(of_part, "delta"),
            showlegend=False,
        )
        figure.add_trace(bar, row=1, col=column)
        figure.update_xaxes(title_text=f"change of {words(metric)}", row=1, col=column)
    figure.update_yaxes(autorange="reversed", col=1)
    return figure.update_layout(template=look())


def _largest(frame: pd.DataFrame) -> Finding:
    """The ablation that moves the first metric most, or that none does."""
    metric = frame["metric"].iloc[0]
    rows = frame.loc[(frame["metric"] == metric) & ((frame["ci_low"] > 0) | (frame["ci_high"] < 0))]
    if rows.empty:
        sentence = f"Nothing was found: no ablation's effect on the {words(metric)} has an interval that excludes zero."
        return Finding("ablations", claims=False, sentence=sentence)
    top = rows.loc[rows["delta"].abs().idxmax()].to_dict()
    where = "" if top["part"] == "all" else f" ({words(top['label'])}: {words(top['part'])})"
    sentence = (
        f"The largest effect on the {words(metric)}{where} is that of {top['name']}: from {top['baseline']:.3f} to "
        f"{top['ablated']:.3f}, a change of {top['delta']:+.3f} [{top['ci_low']:+.3f}, {top['ci_high']:+.3f}]."
    )
    numbers = {key: top[key] for key in ("name", "metric", "part", "baseline", "ablated", "delta", "ci_low", "ci_high")}
    return Finding("ablations", claims=True, sentence=sentence, numbers=numbers)


def _settings(wanted: AblationSpec) -> dict[str, object]:
    return {
        one.name: {
            "sites": list(one.sites),
            "method": one.method,
            "over": one.over if one.method == "mean" else None,
            "reference_seed": one.reference_seed,
        }
        for one in wanted.ablation
    }
