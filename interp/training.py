"""Train a model on a task, into a run folder from which it can go on after any interruption."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.checkpoints import checkpoint_steps, load_weights, read_tensors, save_checkpoint, state_path
from interp.evaluation import evaluate
from interp.history import Row, read_rows, write_history
from interp.hooked_transformer import HookedTransformer
from interp.hooked_transformer_config import HookedTransformerConfig
from interp.initialisation import matching_parameters
from interp.interrupts import deferred_interrupt
from interp.presets import preset
from interp.progress import training_progress
from interp.run import Run
from interp.run_record import RunRecord
from interp.schedules import learning_rate
from interp.train_config import TrainConfig
from tasks.errors import InputError
from tasks.prompts import Prompts
from tasks.protocol import Task

Readout = Callable[[HookedTransformer, Prompts], int | float | Mapping[str, int | float]]
"""A figure, or several named ones, measured on the model and the evaluation prompts at every logged step."""


class TrainingDivergedError(InputError):
    """The loss or a weight became infinite or NaN.

    It counts as wrong input (exit code 2), because the remedy is another learning rate and not another program.
    """


def train(
    task: Task,
    config: str | HookedTransformerConfig,
    train_config: TrainConfig | None = None,
    *,
    out: str | Path,
    initial: HookedTransformer | None = None,
    readouts: Mapping[str, Readout] | None = None,
    progress: bool = True,
) -> Run:
    """Train a model on fresh prompts and leave a run folder behind; called again, it goes on where it stopped.

    Step s minimises the loss of ``task.at_step(s).sample(batch_size, seed=(train_seed, s))``: the sum over the scored
    positions divided by their number. The evaluation prompts are the task's own, whatever its curriculum.
    Nothing else is random, so a run that was interrupted, even killed, and continued ends with the same weights and
    history (its ``seconds`` aside) as one that was not, bit for bit, on the same CPU.
    Ctrl-C ends the step, writes a checkpoint and raises KeyboardInterrupt.

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
        progress: whether to show a progress bar (in a terminal) or an occasional line, on standard error.

    Raises:
        InputError: configs that do not fit the task, each other or this machine; a folder that holds another run
            or something else; a damaged checkpoint.
        TrainingDivergedError: the loss or a weight is no longer finite; looked at when logging and saving.

    Source: Bietti et al. 2023 train on fresh data in the same way [code].
    """
    model_config, train_config = resolved_configs(task, config, train_config)
    weights = None if initial is None else initial.state_dict()
    run = RunInProgress.prepared(task, model_config, train_config, readouts, weights)
    run.enter(Path(out), task)
    trainee = run.trainee
    with deferred_interrupt() as interrupted, training_progress(train_config.steps, trainee.step, progress) as show:
        while trainee.step < train_config.steps:
            step = trainee.take_step(task)
            row = run.log_step()
            run.save_step(asked=interrupted.is_set())
            show(step, row)
            if interrupted.is_set() and step < train_config.steps:
                raise KeyboardInterrupt(f"stopped after step {step} of {train_config.steps}: the same call continues")
    return Run.load(run.folder, task=task)


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

    @classmethod
    def prepared(
        cls,
        task: Task,
        model_config: HookedTransformerConfig,
        train_config: TrainConfig,
        readouts: Mapping[str, Readout] | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> "RunInProgress":
        """Ready to start from the initial weights, nothing yet on disk; configs are complete."""
        readouts = dict(readouts or {})
        record = RunRecord.of(task, model_config, train_config, tuple(readouts), weights)
        trainee = Trainee.untrained(model_config, train_config, weights)
        eval_prompts = task.sample(train_config.eval_prompts, seed=train_config.eval_seed).to(train_config.device)
        figures = _measured(trainee.model, eval_prompts, train_config, readouts)
        return cls(record, trainee, eval_prompts, readouts, figures)

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
        else:
            self.rows.append(trainee.history_row() | self.figures)
            write_history(folder, self.rows)
            trainee.save(folder)

    def log_step(self) -> Row | None:
        """Add a row to the history where the config has one for the step just taken."""
        trainee = self.trainee
        if not trainee.config.logs_at(trainee.step):
            return None
        trainee.refuse_divergence(self.folder)
        row = trainee.history_row() | _measured(trainee.model, self.eval_prompts, trainee.config, self.readouts)
        self.rows.append(row)
        write_history(self.folder, self.rows)
        trainee.start_new_average()
        return row

    def save_step(self, asked: bool = False) -> None:
        """Write a checkpoint where the config has one of the step just taken, or where it is asked for."""
        trainee = self.trainee
        if asked or trainee.config.saves_at(trainee.step):
            trainee.refuse_divergence(self.folder)
            trainee.save(self.folder)


@dataclass
class Trainee:
    """A model in training: the weights and everything else that decides what the next step does.

    Attributes:
        thaw_after: the last step of each parameter that ``freeze_until`` holds still.
        step: updates done.
        tokens: positions seen.
        seconds: time spent training before ``since``.
        loss_sum, n_scored: over the batches since the last row of the history.
        diverged_at: the first step whose loss was not finite, or 0. It stays on the device, so that looking out for
            it does not make every step wait.
    """

    model: HookedTransformer
    optimizer: torch.optim.Optimizer
    config: TrainConfig
    thaw_after: dict[str, int]
    since: float
    loss_sum: Float[Tensor, ""]
    n_scored: Int[Tensor, ""]
    diverged_at: Int[Tensor, ""]
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0

    @classmethod
    def untrained(
        cls, model_config: HookedTransformerConfig, config: TrainConfig, initial: Mapping[str, Tensor] | None = None
    ) -> "Trainee":
        """The model with its initial weights: those given, or drawn from ``model_config.seed``."""
        model = HookedTransformer(model_config)
        if initial is not None:
            model.load_state_dict(initial)
        thaw_after = _thaw_after(model, config.freeze_until)
        trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        if not trainable.keys() - thaw_after.keys():
            raise InputError("no parameter is trained at step 1: freeze fewer of them, in frozen or freeze_until")
        model.to(config.device)
        count = torch.zeros((), dtype=torch.int64, device=config.device)
        return cls(
            model=model,
            optimizer=_optimizer(list(trainable.values()), config),
            config=config,
            thaw_after=thaw_after,
            since=time.perf_counter(),
            loss_sum=torch.zeros((), device=config.device),
            n_scored=count,
            diverged_at=count.clone(),
        )

    def take_step(self, task: Task) -> int:
        """One update of the weights; returns its number, from 1."""
        step = self.step + 1
        prompts = self.next_prompts(task)
        for name, last in self.thaw_after.items():
            # Without a gradient the optimiser passes a parameter over: no momentum, no weight decay.
            self.model.get_parameter(name).requires_grad_(step > last)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, step)

        self.optimizer.zero_grad()
        sums, counts = prompts.loss(self.model(prompts.inputs))
        loss_sum, n_scored = sums.sum(), counts.sum()
        loss = loss_sum / n_scored.clamp(min=1)  # a small batch may score nothing at all
        loss.backward()
        if self.config.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        self.optimizer.step()
        self.count_step(loss_sum.detach(), n_scored, prompts.targets.numel())
        return step

    def next_prompts(self, task: Task) -> Prompts:
        """What the next step learns from."""
        step = self.step + 1
        prompts = task.at_step(step).sample(self.config.batch_size, seed=(self.config.train_seed, step))
        return prompts.to(self.config.device)

    def count_step(self, loss_sum: Float[Tensor, ""], n_scored: Int[Tensor, ""], tokens: int) -> None:
        """Note that a step was taken, and the loss of its batch."""
        self.step += 1
        self.tokens += tokens
        self.loss_sum = self.loss_sum + loss_sum
        self.n_scored = self.n_scored + n_scored
        newly_diverged = (self.diverged_at == 0) & ~loss_sum.isfinite()
        self.diverged_at = self.diverged_at.masked_fill(newly_diverged, self.step)

    def history_row(self) -> dict[str, Any]:
        """Where training stands, for the history."""
        n_scored = int(self.n_scored)
        return {
            "step": self.step,
            "tokens": self.tokens,
            "lr": learning_rate(self.config, self.step) if self.step else float("nan"),
            "train_loss": float(self.loss_sum) / n_scored if n_scored else float("nan"),
            "seconds": round(self._seconds_so_far(), 3),
        }

    def start_new_average(self) -> None:
        """Begin the average that the next row's train_loss is."""
        self.loss_sum = torch.zeros_like(self.loss_sum)
        self.n_scored = torch.zeros_like(self.n_scored)

    def refuse_divergence(self, folder: Path) -> None:
        """Raise TrainingDivergedError if a loss since the last look, or a weight now, is infinite or NaN."""
        finite = all(bool(weight.isfinite().all()) for weight in self.model.parameters())
        first = int(self.diverged_at)
        if finite and not first:
            return
        what = f"the loss of step {first}" if first else f"a weight after step {self.step}"
        raise TrainingDivergedError(
            f"{what} is not finite (noticed at step {self.step}; the last good checkpoint in {folder} is of step "
            f"{checkpoint_steps(folder)[-1]}): train in another folder with lr below {self.config.lr}, "
            "warmup_steps or grad_clip"
        )

    def save(self, folder: Path) -> None:
        """Write a checkpoint of this step."""
        state = {"average/loss_sum": self.loss_sum, "average/n_scored": self.n_scored}
        for name, weight in self.model.named_parameters():
            for key, value in self.optimizer.state.get(weight, {}).items():
                state[f"optimizer/{name}/{key}"] = value
        facts = {"step": str(self.step), "tokens": str(self.tokens), "seconds": repr(self._seconds_so_far())}
        save_checkpoint(folder, self.step, self.model.state_dict(), state, facts)

    def restore(self, folder: Path, step: int) -> None:
        """Go back to the checkpoint of this step.

        Raises:
            InputError: a file of it is missing or damaged, or belongs to another model.
        """
        load_weights(folder, step, self.model)
        path = state_path(folder, step)
        state, facts = read_tensors(path)
        try:
            self._restore_state(state, facts)
        except (KeyError, ValueError, AttributeError, RuntimeError) as error:
            raise InputError(
                f"{path} does not belong to this run ({error!r}): restore it, or delete it and its step"
            ) from None
        if self.step != step:
            raise InputError(f"{path} is of step {self.step}: restore it, or delete it and its step")

    def _restore_state(self, state: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
        self.step, self.tokens, self.seconds = int(facts["step"]), int(facts["tokens"]), float(facts["seconds"])
        for key, value in state.items():
            kind, _, rest = key.partition("/")
            if kind == "optimizer":
                name, _, slot = rest.rpartition("/")
                weight = self.model.get_parameter(name)
                if value.ndim and value.shape != weight.shape:
                    raise ValueError(f"{key} has shape {list(value.shape)}")
                # A scalar is AdamW's count of steps, which PyTorch keeps on the CPU.
                self.optimizer.state[weight][slot] = value.to(weight.device) if value.ndim else value
        self.loss_sum = state["average/loss_sum"].to(self.config.device)
        self.n_scored = state["average/n_scored"].to(self.config.device)
        self.since = time.perf_counter()

    def _seconds_so_far(self) -> float:
        return self.seconds + time.perf_counter() - self.since


def resolved_configs(
    task: Task, config: str | HookedTransformerConfig, train_config: TrainConfig | None
) -> tuple[HookedTransformerConfig, TrainConfig]:
    """The two configs in full, checked against each other, the task and the machine."""
    if not isinstance(train_config, TrainConfig | None):
        raise InputError(f"train_config = {train_config!r}: give a TrainConfig(steps=…)")
    if not isinstance(task, Task):
        raise InputError(f"{type(task).__name__} is no task (tasks.Task says what one has): give BigramICL(), say")
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


def _thaw_after(model: HookedTransformer, freeze_until: Mapping[str, int]) -> dict[str, int]:
    thaw_after: dict[str, int] = {}
    for pattern, step in freeze_until.items():
        names = [name for name in matching_parameters(model, (pattern,)) if model.get_parameter(name).requires_grad]
        if not names:
            raise InputError(
                f"freeze_until: all that {pattern!r} matches is frozen for good by the model: leave it out"
            )
        thaw_after |= {name: max(step, thaw_after.get(name, 0)) for name in names}
    return thaw_after


def _optimizer(parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    return torch.optim.AdamW(parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)


def _measured(
    model: HookedTransformer, prompts: Prompts, config: TrainConfig, readouts: Mapping[str, Readout]
) -> dict[str, float]:
    """The figures of one row of the history that come from the model."""
    figures = evaluate(model, prompts, config.batch_size)
    for name, readout in readouts.items():
        value = readout(model, prompts)
        named = {f"{name}_{key}": part for key, part in value.items()} if isinstance(value, Mapping) else {name: value}
        for column, figure in named.items():
            if column in figures or column in _ROW_COLUMNS:
                raise InputError(f"the readout {name!r} makes a second column {column!r}: give it another name")
            figures[column] = float(figure)
    return figures


_ROW_COLUMNS = ("step", "tokens", "lr", "train_loss", "seconds")
