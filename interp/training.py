"""Train a model on a task, into a run folder from which it can go on after any interruption."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from interp.atomic_files import make_folder, remove_unfinished
from interp.checkpoints import (
    CHECKPOINT_FOLDER,
    checkpoint_steps,
)
from interp.evaluation import evaluate
from interp.folder_lock import folder_lock
from interp.history import HISTORY_FILE, Row, read_rows, write_history
from interp.hooked_transformer import HookedTransformer
from interp.hooked_transformer_config import HookedTransformerConfig
from interp.interrupts import Interrupted, deferred_interrupt
from interp.presets import preset
from interp.progress import training_progress
from interp.run import Run
from interp.run_record import TASK_FOLDER, RunRecord
from interp.train_config import TrainConfig
from interp.trainee import Trainee
from interp.training_interventions import ReceiptRow, TrainingIntervention, read_receipts, write_receipts
from interp.validated import path_of, shortened
from tasks.errors import InputError
from tasks.prompts import Prompts
from tasks.protocol import Task

Readout = Callable[[HookedTransformer, Prompts], int | float | Mapping[str, int | float]]
"""A figure, or several named ones, measured on the model and the evaluation prompts at every logged step."""


def train(
    task: Task,
    config: str | HookedTransformerConfig,
    train_config: TrainConfig | None = None,
    *,
    out: str | Path,
    initial: HookedTransformer | None = None,
    readouts: Mapping[str, Readout] | None = None,
    interventions: Sequence[TrainingIntervention] = (),
    progress: bool = True,
) -> Run:
    """Train a model on fresh prompts and leave a run folder behind; called again, it goes on where it stopped.

    Step s minimises the loss of ``task.at_step(s).sample(batch_size, seed=(train_seed, s))``: the sum over the scored
    positions divided by their number. The evaluation prompts are the task's own, whatever its curriculum.
    Nothing else is random, so a run that was interrupted, even killed, and continued ends with the same weights and
    history (its ``seconds`` aside) as one that was not, bit for bit, on the same CPU.
    Ctrl-C or SIGTERM ends the step, writes a checkpoint and raises ``Interrupted``, a KeyboardInterrupt; a second one
    raises it at once. While it trains, the folder is locked against a second training.

    A checkpoint's files carry checksums, and training goes on only from one that is as it was written. If it was
    written under other versions of the packages, a RunWarning says so.

    The history has these columns: step; tokens, the positions seen so far; lr; train_loss, over the batches since
    the row before; on ``eval_prompts`` fixed prompts the loss, for tokens the accuracy, and both for each segment of
    the task (``loss_global``, ``accuracy_in_context`` …), for regression the excess_risk; seconds of
    training so far; and the readouts.

    Args:
        task: what the prompts are drawn from.
        config: a preset's name or an architecture; its ``seed`` gives way to ``init_seed``.
        train_config: laid over the preset: only what was set there replaces the preset's value.
        out: the run's folder: a new or empty one, or the same run's, which is continued or, if complete, returned.
        initial: a model whose weights to start from, in place of those that ``init_seed`` draws: to train a pruned
            model on (``absent_heads``), say.
        readouts: further columns by name; a readout that gives several figures makes a column ``name_figure`` of each.
        interventions: edits under which the steps of a span are taken. With them the history has, beside each figure of
            the evaluation prompts, ``intervened_loss`` and so on: the same under the interventions of that step,
            empty where none acts; the figures without the prefix, and the readouts, are of the model left alone.
            ``Run.receipts`` says how often each fired and what it changed.
        progress: whether to show a progress bar (in a terminal) or an occasional line, on standard error.

    Raises:
        InputError: configs that do not fit the task, each other or this machine; a folder that holds another run
            or something else, or that another process trains in; a damaged checkpoint; a disk that is full.
        TrainingDivergedError: the loss or a weight is no longer finite; looked at when logging and saving.

    Source: Bietti et al. 2023 train on fresh data in the same way [code].
    """
    model_config, train_config = resolved_configs(task, config, train_config)
    folder = path_of(out, "out")
    if not isinstance(initial, HookedTransformer | None):
        raise InputError(f"initial = {shortened(initial)}: give a HookedTransformer, Run.load(path).model say")
    for name, readout in (readouts or {}).items():
        if not callable(readout):
            raise InputError(f"the readout {name!r} is {shortened(readout)}: give a function of model and prompts")
    if not isinstance(interventions, Sequence):
        raise InputError(f"interventions = {shortened(interventions)}: give a list, of one if need be")
    for one in interventions:
        if not isinstance(one, TrainingIntervention):
            raise InputError(f"{shortened(one)} is no TrainingIntervention: give a site, an edit and a span of steps")
    weights = None if initial is None else initial.state_dict()
    run = RunInProgress.prepared(task, model_config, train_config, readouts, weights, interventions)
    if run.is_complete_in(folder):
        return Run.load(folder, task=task)
    with run.alone_in(folder):
        run.enter(folder, task)
        trainee = run.trainee
        with deferred_interrupt() as interrupted, training_progress(train_config.steps, trainee.step, progress) as show:
            while trainee.step < train_config.steps:
                step = trainee.take_step(task)
                show(step, run.log_step())
                asked = interrupted.is_set()  # once, so that it stops where it saves
                run.save_step(asked)
                if asked and step < train_config.steps:
                    raise Interrupted(
                        f"stopped after step {step} of {train_config.steps}: the same call continues",
                        interrupted.signal_number,
                    )
    return Run.load(folder, task=task)


@dataclass
class RunInProgress:
    """A model in training with the folder that its history and checkpoints go to."""

    record: RunRecord
    trainee: "Trainee"
    eval_prompts: Prompts
    readouts: Mapping[str, Readout]
    figures: dict[str, float]
    """Measured on the initial weights, before anything is written."""
    folder: Path = Path()
    rows: list[Row] = field(default_factory=list)
    receipts: list[ReceiptRow] = field(default_factory=list)

    @classmethod
    def prepared(
        cls,
        task: Task,
        model_config: HookedTransformerConfig,
        train_config: TrainConfig,
        readouts: Mapping[str, Readout] | None = None,
        weights: Mapping[str, Tensor] | None = None,
        interventions: Sequence[TrainingIntervention] = (),
    ) -> "RunInProgress":
        """Ready to start from the initial weights, nothing yet on disk; configs are complete."""
        readouts = dict(readouts or {})
        trainee = Trainee.untrained(model_config, train_config, weights, interventions)
        trainee.rehearse(task)
        records = trainee.schedule.records
        record = RunRecord.of(task, model_config, train_config, tuple(readouts), weights, records)
        eval_prompts = task.sample(train_config.eval_prompts, seed=train_config.eval_seed).to(train_config.device)
        figures = _measured(trainee, eval_prompts, readouts)
        return cls(record, trainee, eval_prompts, readouts, figures)

    def is_complete_in(self, folder: Path) -> bool:
        """Whether the folder holds this run with nothing left to do; nothing is written.

        Raises:
            InputError: the folder holds another run or something else.
        """
        steps = checkpoint_steps(folder) if self.record.refuse_misplaced(folder) else []
        return bool(steps) and steps[-1] >= self.trainee.config.steps

    @contextmanager
    def alone_in(self, folder: Path) -> Iterator[None]:
        """Hold the folder's lock for a with-block, within which to ``enter`` it; what a crash left there is removed.

        Raises:
            InputError: another process trains there, or the folder holds another run or something else.
        """
        self.record.refuse_misplaced(folder)  # before a file is made among another's
        make_folder(folder)
        with folder_lock(folder):
            for part in (folder, folder / CHECKPOINT_FOLDER, folder / TASK_FOLDER):
                remove_unfinished(part)
            yield

    def enter(self, folder: Path, task: Task, step: int | None = None) -> None:
        """Take up the folder: go on from its checkpoint of ``step`` (None: the last), or begin there."""
        self.record.claim(folder, task.files())
        self.folder = folder
        trainee = self.trainee
        steps = checkpoint_steps(folder)
        if steps and steps[-1] >= trainee.config.steps:
            trainee.step = steps[-1]  # complete: there is nothing to go on with
        elif steps:
            trainee.restore(folder, steps[-1] if step is None else step)
            rows = read_rows(folder)
            self.rows = [row for row in rows if row["step"] <= trainee.step]  # a crash undid the later ones
            self._refuse_gaps()
            if trainee.schedule:
                self.receipts = [row for row in read_receipts(folder) if row["step"] <= trainee.step]
        else:
            self.rows.append(trainee.history_row() | self.figures)
            write_history(folder, self.rows)
            self._write_receipts()
            trainee.save(folder)

    def log_step(self) -> Row | None:
        """Add a row to the history where the config has one for the step just taken."""
        trainee = self.trainee
        if not trainee.config.logs_at(trainee.step):
            return None
        self.receipts += trainee.schedule.rows(trainee.step)
        trainee.refuse_divergence(self.folder)
        row = trainee.history_row() | _measured(trainee, self.eval_prompts, self.readouts)
        self.rows.append(row)
        write_history(self.folder, self.rows)
        self._write_receipts()
        trainee.start_new_average()
        return row

    def save_step(self, asked: bool = False) -> None:
        """Write a checkpoint where the config has one of the step just taken, or where it is asked for."""
        trainee = self.trainee
        if asked or trainee.config.saves_at(trainee.step):
            trainee.refuse_divergence(self.folder)
            trainee.save(self.folder)

    def _write_receipts(self) -> None:
        if self.trainee.schedule:
            write_receipts(self.folder, self.receipts)

    def _refuse_gaps(self) -> None:
        """The rows kept must be those that an uninterrupted run would have."""
        config, last = self.trainee.config, self.trainee.step
        expected = [step for step in range(last + 1) if config.logs_at(step)]
        found = [row["step"] for row in self.rows]
        if found != expected:
            wrong = min(set(expected) ^ set(found), default=last)
            what = "lacks the row" if wrong in expected else "has a row too many,"
            raise InputError(
                f"{self.folder / HISTORY_FILE} {what} of step {wrong}: restore it, or train again in another folder"
            )


def resolved_configs(
    task: Task, config: str | HookedTransformerConfig, train_config: TrainConfig | None
) -> tuple[HookedTransformerConfig, TrainConfig]:
    """The two configs in full, checked against each other, the task and the machine."""
    if not isinstance(train_config, TrainConfig | None):
        raise InputError(f"train_config = {shortened(train_config)}: give a TrainConfig(steps=…)")
    if not isinstance(task, Task):
        raise InputError(f"{type(task).__name__} is no task (tasks.Task says what one has): give BigramICL(), say")
    if not isinstance(config, str | HookedTransformerConfig):
        raise InputError(f"config = {shortened(config)}: give a preset's name or a HookedTransformerConfig")
    train_config = train_config or TrainConfig()
    if isinstance(config, str):
        config, preset_train_config = preset(config, task)
        train_config = train_config.over(preset_train_config)
    train_config.refuse_contradictions()
    refuse_unavailable_device(train_config.device)
    _refuse_misfit(config, task)
    return replace(config, seed=train_config.init_seed), train_config


def _refuse_misfit(config: HookedTransformerConfig, task: Task) -> None:
    """Raise InputError if the model cannot read the task's prompts, answer them, or would read what it must not."""
    if config.n_ctx < task.n_ctx:
        raise InputError(f"n_ctx = {config.n_ctx} but the task's prompts have {task.n_ctx} positions: raise n_ctx")
    for name in ("d_vocab", "d_in"):
        if getattr(config, name) != getattr(task, name):
            raise InputError(f"{name} = {getattr(config, name)} but the task has {getattr(task, name)}: set the same")
    d_out = getattr(task, "d_out", 1 if task.d_vocab is None else None)  # a target is one real number, or a token
    if config.d_out != d_out:
        raise InputError(f"d_out = {config.d_out} but the task's targets ask for {d_out}: set the same")
    n_queries = getattr(task, "n_queries", config.n_queries)
    if config.n_queries != n_queries:
        raise InputError(
            f"n_queries = {config.n_queries} but the task's prompts have {n_queries}: set the same, with "
            "attention_dir = 'query_masked'"
        )
    if getattr(task, "layout", None) == "interleaved" and config.attention_dir != "causal":
        raise InputError(
            f"attention_dir = {config.attention_dir!r} lets an x of an interleaved prompt read its own y: set 'causal'"
        )


def refuse_unavailable_device(device: str) -> None:
    """Raise InputError if PyTorch cannot compute on ``device`` here."""
    try:
        torch.zeros(1, device=device).sum().item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise InputError(
            f"device = {device!r} cannot be used here ({reason[:100]}): choose another, such as cpu"
        ) from None


def _measured(trainee: Trainee, prompts: Prompts, readouts: Mapping[str, Readout]) -> dict[str, float]:
    """The figures of one row of the history that come from the model."""
    model, batch_size = trainee.model, trainee.config.batch_size
    figures = evaluate(model, prompts, batch_size)
    if trainee.schedule:
        intervened = dict.fromkeys(figures, math.nan)
        if trainee.schedule.acts_at(trainee.step):
            with trainee.schedule.during(model, trainee.step, noted=False):
                intervened = evaluate(model, prompts, batch_size)
        figures |= {f"intervened_{name}": figure for name, figure in intervened.items()}
    for name, readout in readouts.items():
        value = readout(model, prompts)
        named = {f"{name}_{key}": part for key, part in value.items()} if isinstance(value, Mapping) else {name: value}
        for column, figure in named.items():
            if column in figures or column in _ROW_COLUMNS:
                raise InputError(f"the readout {name!r} makes a second column {column!r}: give it another name")
            figures[column] = float(figure)
    return figures


_ROW_COLUMNS = ("step", "tokens", "lr", "train_loss", "seconds")
