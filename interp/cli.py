"""The command ``interp``: parses arguments and calls one function. Imports are inside, so that --help is quick."""

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.command_errors import INTERRUPTED, exit_code_of

if TYPE_CHECKING:
    from interp.run import Run
    from interp.seed_runs import SeedRuns
    from interp.sweeps.trial import Trial
    from interp.training_setup import TrainingSetup

DEMO_PRESET = "bietti-simplified-ff"
DEMO_SETTINGS = ("scored=all", "d_model=256", "batch_size=32")
"""How the demo differs from the task's and the preset's own values.

The wider model is for W_O2. With every position scored it recalls 0.87 of the tokens after 400 steps at d_model 128
(0.84 after 1200; seed 0), and 0.97 to 1.00 at 256 (400 steps, four seeds, and Shakespeare with one) [here].
"""
REPORT_FOLDER = "report"

app = typer.Typer(add_completion=False, rich_markup_mode=None)

OutOption = Annotated[Path, typer.Option("--out", help="The run's folder; the same command continues what it holds.")]
StepsOption = Annotated[int | None, typer.Option("--steps", help="Updates of the weights.")]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Derives init_seed, train_seed and eval_seed.")]
TextOption = Annotated[Path | None, typer.Option("--text", help="Your own corpus: a UTF-8 text.")]
CountsOption = Annotated[Path | None, typer.Option("--counts", help="Your own corpus: CSV of first,second,count.")]


def main() -> None:
    """Entry point of the command ``interp``."""
    warnings.formatwarning = lambda message, *_: f"note: {message}\n"  # a line for people, not a place in our code
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code.

    0 done, 2 the input is wrong, 130 stopped by Ctrl-C, 143 by SIGTERM, 1 anything else.
    """
    command = typer.main.get_command(app)
    return exit_code_of(lambda: command.main(list(arguments), prog_name="interp", standalone_mode=False))


def _show_version(asked: bool | None) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"interp {version('icl-interp')}")
        raise typer.Exit


@app.callback()
def interp(
    version: Annotated[
        bool | None, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = None,
) -> None:
    """Train small transformers on prompts of known structure, and take them apart."""


@app.command()
def demo(
    out: OutOption = Path("interp-demo"),
    text: TextOption = None,
    counts: CountsOption = None,
    seed: SeedOption = None,
    steps: StepsOption = None,
) -> None:
    """Train, analyse and report the in-context bigram task: an induction head and the bigrams beside it."""
    run = _train("bigram", DEMO_PRESET, DEMO_SETTINGS, {"steps": steps}, seed=seed, text=text, counts=counts, out=out)
    page = run.path / REPORT_FOLDER / "report.html"
    typer.echo(f"report: {page if page.exists() else _write_report(run, page.parent)}")


@app.command()
def train(
    task: Annotated[str, typer.Argument(help="bigram, sparse-regression, or your own as file.py:Class.")],
    out: OutOption,
    preset: Annotated[
        str | None,
        typer.Option(help="Architecture and training to start from; by default bietti-simplified or chen-8-linear."),
    ] = None,
    steps: StepsOption = None,
    seed: SeedOption = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps …")] = None,
    text: TextOption = None,
    counts: CountsOption = None,
    initial: Annotated[Path | None, typer.Option(help="A run whose last weights to start from.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any field: task.NAME, model.NAME, train.NAME, or NAME."),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Train from so many seeds, 0, 1, 2 …, each in a folder.")] = None,
    how: Annotated[
        str | None, typer.Option(help="With --seeds: stacked, alone, or measured (the faster of the two, the default).")
    ] = None,
) -> None:
    """Train a model on a task; given the same folder again, continue where it stopped."""
    options = {"steps": steps, "device": device}
    corpus = {"text": text, "counts": counts}
    if seeds is not None:
        _refuse_beside_seeds({"--seed": seed, "--initial": initial})
        _refuse_no_seeds(seeds)
        runs = _train_many(task, preset, settings or [], options, seeds=seeds, how=how or "measured", **corpus, out=out)
        typer.echo(f"{runs.path}: {len(runs)} seeds of {runs.steps[-1]} steps, {_ways_taken(runs)}")
        return
    _refuse_without_seeds({"--how": how})
    run = _train(task, preset, settings or [], options, seed=seed, **corpus, initial=initial, out=out)
    typer.echo(f"{run.path}: {run.steps[-1]} steps, {_last_figures(run)}")


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="A TOML file: task, seeds, [settings], [grid], [[trial]], [resources].")],
    out: Annotated[Path, typer.Option("--out", help="The sweep's folder; the same command continues what it holds.")],
    engine: Annotated[str, typer.Option(help="local: this machine's cores; ray: a local Ray or a cluster.")] = "local",
    address: Annotated[str | None, typer.Option(help="With --engine ray: a running cluster's.")] = None,
    workers: Annotated[int | None, typer.Option(help="Trials at a time; by default what the cores allow.")] = None,
) -> None:
    """Train every combination of settings and seeds in a file: one folder, one table, trials.csv."""
    from interp.sweeps.sweep_run import run_sweep

    with _stopping_said():
        table = run_sweep(
            file,
            train_trial,
            out=out,
            engine=engine,  # pyright: ignore[reportArgumentType]
            address=address,
            workers=workers,
        )
    counts = ", ".join(f"{count} {status}" for status, count in table["status"].value_counts().items())
    typer.echo(f"{out / 'trials.csv'}: {counts}")


def train_trial(trial: "Trial", folder: Path) -> dict[str, float]:
    """Train a trial of a sweep in a folder; the last figures of its history, times and rate aside. Workers call it."""
    from interp.training import train

    setup = trial.set_up()
    readouts = _readouts(setup.task, setup.model_config)
    run = train(setup.task, setup.model_config, setup.train_config, out=folder, readouts=readouts, progress=False)
    last = run.history.iloc[[-1]].to_dict("records")[0]
    return {str(name): value for name, value in last.items() if name not in ("seconds", "lr")}


OwnTaskOption = Annotated[
    str | None, typer.Option("--task", help="For runs on a task of your own: its class, as file.py:Class.")
]


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    other: Annotated[Path | None, typer.Argument(help="A second run, to compare with the first.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="A new folder; by default RUN/report, for two runs ./RUN-beside-OTHER.")
    ] = None,
    prompts: Annotated[int, typer.Option(help="How many fresh prompts to measure on.")] = 512,
    task: OwnTaskOption = None,
) -> None:
    """Analyse a run, two side by side, or one of many seeds: report.html, tables as CSV, report.md, report.json."""
    from interp.seed_runs import SeedRuns, read_seeds

    if other is None and read_seeds(run) is not None:
        from analyses import write_seeds_report

        runs = SeedRuns.load(run, _task_class(task))
        typer.echo(f"report: {write_seeds_report(runs, out or runs.path / REPORT_FOLDER, n_prompts=prompts)}")
        return
    loaded = _load(run, task)
    if other is None:
        typer.echo(f"report: {_write_report(loaded, out or loaded.path / REPORT_FOLDER, prompts)}")
        return
    from analyses import write_comparison

    folder = out or Path(f"{run.resolve().name}-beside-{other.resolve().name}")
    typer.echo(f"report: {write_comparison(loaded, _load(other, task), folder, n_prompts=prompts)}")


@app.command()
def ablate(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    spec: Annotated[Path, typer.Option(help="A TOML file of [[ablation]] tables: name, sites, method, metric, by.")],
    out: Annotated[Path | None, typer.Option(help="A new folder; by default RUN/ followed by the file's name.")] = None,
    task: OwnTaskOption = None,
) -> None:
    """Ablate named sets of heads, MLPs or layers: report.html, tables as CSV, report.md and report.json."""
    from analyses import write_ablation_report

    loaded = _load(run, task)
    typer.echo(f"report: {write_ablation_report(loaded, spec, out or loaded.path / spec.stem)}")


@app.command()
def reproduce(
    paper: Annotated[str, typer.Argument(help="bietti2023 or chen2024.")],
    out: Annotated[Path, typer.Option("--out", help="A folder; the same command continues what it holds.")],
    scale: Annotated[str, typer.Option(help="quick (minutes on two cores) or full (hours).")] = "quick",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default one for each core.")] = None,
) -> None:
    """Measure every claim of a paper: results.json, tables, figures, and a page with a verdict on each."""
    from analyses import reproduce as reproduced

    try:
        page = reproduced(paper, scale=scale, out=out, workers=workers)  # pyright: ignore[reportArgumentType]
    except KeyboardInterrupt:
        typer.echo("stopped: the same command continues", err=True)
        raise typer.Exit(INTERRUPTED) from None
    typer.echo(f"report: {page}")


def _train(
    task_name: str,
    preset_name: str | None,
    settings: Sequence[str],
    options: dict[str, Any],
    *,
    seed: int | None,
    text: Path | None,
    counts: Path | None,
    initial: Path | None = None,
    out: Path,
) -> "Run":
    """Train what the command line says."""
    from interp.run import Run
    from interp.training import train

    setup = _set_up(task_name, preset_name, settings, options, seed=seed, text=text, counts=counts)
    start = None if initial is None else Run.load(initial).model
    configs = (setup.model_config, setup.train_config)
    readouts = _readouts(setup.task, setup.model_config)
    with _stopping_said():
        return train(setup.task, *configs, out=out, initial=start, readouts=readouts)


def _train_many(
    task_name: str,
    preset_name: str | None,
    settings: Sequence[str],
    options: dict[str, Any],
    *,
    seeds: int,
    how: str,
    text: Path | None,
    counts: Path | None,
    out: Path,
) -> "SeedRuns":
    """Train what the command line says from many seeds."""
    from interp.many_seeds import train_many

    setup = _set_up(task_name, preset_name, settings, options, text=text, counts=counts)
    configs = (setup.model_config, setup.train_config)
    readouts = _readouts(setup.task, setup.model_config)
    with _stopping_said():
        return train_many(
            setup.task,
            *configs,
            seeds=range(seeds),
            out=out,
            how=how,  # pyright: ignore[reportArgumentType]
            readouts=readouts,
        )


def _refuse_beside_seeds(options: dict[str, Any]) -> None:
    from tasks.errors import InputError

    for name, value in options.items():
        if value is not None:
            raise InputError(f"{name} {value} and --seeds exclude each other: give one of them")


def _refuse_no_seeds(seeds: int) -> None:
    from tasks.errors import InputError

    if seeds < 1:
        raise InputError(f"--seeds {seeds}: say from how many seeds to train, at least 1")


def _refuse_without_seeds(options: dict[str, Any]) -> None:
    from tasks.errors import InputError

    for name, value in options.items():
        if value is not None:
            raise InputError(f"{name} {value} needs --seeds: say how many, or leave it out")


def _ways_taken(runs: "SeedRuns") -> str:
    """How the seeds were trained, with the measurement where there was one."""
    last = runs.how.groupby("seed").last()
    words = ", ".join(f"{count} {way}" for way, count in last["way"].value_counts().items())
    timed = last.dropna(subset=["alone_seconds"])
    if timed.empty:
        return words
    ratio = float((timed["alone_seconds"] / timed["stacked_seconds"]).iloc[0])
    return f"{words} (stacked steps took {1 / ratio:.2f} times as long as one by one)"


def _set_up(
    task_name: str, preset_name: str | None, settings: Sequence[str], options: dict[str, Any], **rest: Any
) -> "TrainingSetup":
    """Put task, model and training together."""
    from interp.settings import parse_settings
    from interp.training_setup import set_up_training, settable_sections
    from tasks.errors import InputError

    chosen = parse_settings(settings, settable_sections(task_name))
    options = {name: value for name, value in options.items() if value is not None}
    for name in options.keys() & chosen["train"].keys():
        raise InputError(f"--{name} and --set {name} say the same thing twice: give one of them")
    chosen["train"] |= options
    return set_up_training(task_name, chosen, preset_name=preset_name, **rest)


@contextmanager
def _stopping_said() -> Iterator[None]:
    """Say what a training says that is stopped, and end with the exit code of the signal."""
    from interp.interrupts import Interrupted

    try:
        yield
    except KeyboardInterrupt as interrupt:  # typer would drop the message
        typer.echo(interrupt, err=True)
        raise typer.Exit(interrupt.exit_code if isinstance(interrupt, Interrupted) else INTERRUPTED) from None


def _readouts(task: Any, model: Any) -> Any:
    """The memory recall probes during training, for the models whose weights they are defined on."""
    has_positions = model.positional_embedding_type == "standard"
    if task.name != "bigram" or not model.identity_queries or model.n_layers != 2 or not has_positions:
        return {}
    from analyses import recall_readouts

    return recall_readouts(task, feed_forward=model.has_mlp(1) and model.mlp_type == "linear")


def _load(path: Path, task: str | None) -> "Run":
    from interp.run import Run

    return Run.load(path, _task_class(task))


def _task_class(task: str | None) -> type[Any] | None:
    from interp.task_choice import find_task_class

    return None if task is None else find_task_class(task)


def _write_report(run: "Run", out: Path, n_prompts: int = 512) -> Path:
    from analyses import write_report

    typer.echo("taking the model apart …")
    return write_report(run, out, n_prompts=n_prompts)


def _last_figures(run: "Run") -> str:
    last = run.history.iloc[-1]
    names = [name for name in run.history.columns if name in ("loss", "excess_risk") or name.startswith("accuracy")]
    return ", ".join(f"{name} {last[name]:.3f}" for name in names)
