"""A model in training: its weights, its optimiser, and whatever else decides what the next step does."""

import json
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.checkpoints import (
    checkpoint_steps,
    load_weights,
    read_tensors,
    refuse_changed,
    save_checkpoint,
    state_path,
)
from interp.folder_lock import RunWarning
from interp.hooked_transformer import HookedTransformer
from interp.hooked_transformer_config import HookedTransformerConfig
from interp.initialisation import matching_parameters
from interp.run_record import differing_versions, versions
from interp.schedules import learning_rate
from interp.train_config import TrainConfig
from interp.training_interventions import InterventionSchedule, TrainingIntervention
from tasks.errors import InputError
from tasks.prompts import Prompts
from tasks.protocol import Task


class TrainingDivergedError(InputError):
    """The loss or a weight became infinite or NaN.

    It counts as wrong input (exit code 2), because the remedy is another learning rate and not another program.
    """


@dataclass
class Trainee:
    """A model in training: the weights and everything else that decides what the next step does.

    Attributes:
        still_during: the spans of steps (first, last) of each parameter that the config holds still for a while.
        schedule: the interventions that the steps are taken under.
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
    still_during: dict[str, list[tuple[int, int]]]
    schedule: InterventionSchedule
    since: float
    loss_sum: Float[Tensor, ""]
    n_scored: Int[Tensor, ""]
    diverged_at: Int[Tensor, ""]
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0

    @classmethod
    def untrained(
        cls,
        model_config: HookedTransformerConfig,
        config: TrainConfig,
        initial: Mapping[str, Tensor] | None = None,
        interventions: Sequence[TrainingIntervention] = (),
    ) -> "Trainee":
        """The model with its initial weights: those given, or drawn from ``model_config.seed``."""
        model = HookedTransformer(model_config)
        if initial is not None:
            model.load_state_dict(initial)
        still_during = _still_during(model, config)
        trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        if not trainable:
            raise InputError("no parameter is trained: freeze fewer of them, in frozen")
        model.to(config.device)
        count = torch.zeros((), dtype=torch.int64, device=config.device)
        return cls(
            model=model,
            optimizer=_optimizer(list(trainable.values()), config),
            config=config,
            still_during=still_during,
            schedule=InterventionSchedule(interventions, model, config.steps),
            since=time.perf_counter(),
            loss_sum=torch.zeros((), device=config.device),
            n_scored=count,
            diverged_at=count.clone(),
        )

    def take_step(self, task: Task) -> int:
        """One update of the weights; returns its number, from 1."""
        step = self.step + 1
        prompts = self.next_prompts(task)
        self.hold_still(step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, step)

        self.optimizer.zero_grad()
        with self.schedule.during(self.model, step):
            loss_sum, n_scored = self._loss(prompts)
        loss = loss_sum / n_scored.clamp(min=1)  # a small batch may score nothing at all
        loss.backward()
        if self.config.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        self.optimizer.step()
        self.count_step(loss_sum.detach(), n_scored, prompts.targets.numel())
        return step

    def _loss(self, prompts: Prompts) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
        """The sum over the scored positions of a batch, and how many they are."""
        if self.config.precision == "float32":
            outputs = self.model(prompts.inputs)
        else:
            with torch.autocast(torch.device(self.config.device).type, torch.bfloat16):
                outputs = self.model(prompts.inputs).float()
        sums, counts = prompts.loss(outputs)
        return sums.sum(), counts.sum()

    def is_still(self, name: str, step: int) -> bool:
        """Whether the config holds this parameter still at this step."""
        return any(first <= step <= last for first, last in self.still_during.get(name, ()))

    def hold_still(self, step: int) -> None:
        """Let learn what learns at this step, and nothing else."""
        for name in self.still_during:
            # Without a gradient the optimiser passes a parameter over: no momentum, no weight decay.
            self.model.get_parameter(name).requires_grad_(not self.is_still(name, step))

    def rehearse(self, task: Task) -> None:
        """One forward pass of every kind that training will make, so that what cannot be is said before it begins.

        Raises:
            InputError: at some step nothing that learns reaches the loss, or an edit does not fit its site.
        """
        prompts = self.next_prompts(task)
        turns = {turn for spans in self.still_during.values() for first, last in spans for turn in (first, last + 1)}
        for step in sorted({1} | turns | self.schedule.turns()):
            if step <= self.config.steps:
                self.hold_still(step)
                self._refuse_standstill(prompts, step)

    def _refuse_standstill(self, prompts: Prompts, step: int) -> None:
        learning = [weight for weight in self.model.parameters() if weight.requires_grad]
        if not learning:
            raise InputError(
                f"no parameter is trained at step {step}: freeze fewer, in frozen, freeze_until or freeze_during"
            )
        with self.schedule.during(self.model, step, noted=False):
            loss_sum, n_scored = self._loss(prompts)
        if not self.schedule.acts_at(step) or not n_scored:
            return
        gradients = torch.autograd.grad(loss_sum, learning, allow_unused=True) if loss_sum.requires_grad else ()
        if not any(gradient is not None and bool(gradient.any()) for gradient in gradients):
            raise InputError(
                f"no trained parameter reaches the loss at step {step}: intervene elsewhere, or freeze fewer of them"
            )

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
        state |= self.schedule.state()
        facts = {"step": str(self.step), "tokens": str(self.tokens), "seconds": repr(self._seconds_so_far())}
        facts["versions"] = json.dumps(versions())
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
        refuse_changed(path)
        if differing := differing_versions(_versions_in(facts)):
            message = f"{folder} goes on with other versions ({differing}): its numbers may differ in the last digits"
            warnings.warn(message, RunWarning, stacklevel=2)

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
        self.schedule.restore(state)
        self.loss_sum = state["average/loss_sum"].to(self.config.device)
        self.n_scored = state["average/n_scored"].to(self.config.device)
        self.since = time.perf_counter()

    def _seconds_so_far(self) -> float:
        return self.seconds + time.perf_counter() - self.since


def _still_during(model: HookedTransformer, config: TrainConfig) -> dict[str, list[tuple[int, int]]]:
    still: dict[str, list[tuple[int, int]]] = {}
    spans = [("freeze_until", pattern, (1, step)) for pattern, step in config.freeze_until.items()]
    spans += [("freeze_during", pattern, span) for pattern, span in config.freeze_during.items()]
    for field_name, pattern, span in spans:
        names = [name for name in matching_parameters(model, (pattern,)) if model.get_parameter(name).requires_grad]
        if not names:
            raise InputError(
                f"{field_name}: all that {pattern!r} matches is frozen for good by the model: leave it out"
            )
        for name in names:
            still.setdefault(name, []).append(span)
    return still


def _optimizer(parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    return torch.optim.AdamW(parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)


def _versions_in(facts: Mapping[str, str]) -> dict[str, str]:
    """The versions that a checkpoint was written with; nothing for one of the first version."""
    found = json.loads(facts.get("versions", "{}"))
    return found if isinstance(found, dict) else {}
