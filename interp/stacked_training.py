"""Models of one shape that take their training steps together: one pass through stacked weights for all of them."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.hooked_transformer import HookedTransformer
from interp.hooked_transformer_config import HookedTransformerConfig
from interp.schedules import learning_rate
from interp.trainee import Trainee
from tasks.errors import InputError
from tasks.prompts import Prompts
from tasks.protocol import Task


class StackedTrainees:
    """Trainees whose weights are slices of stacked ones [seed, …], so that an update of the stack updates them all.

    Each keeps its own prompts, loss, gradient norm and optimiser state: up to rounding, every one of them goes through
    the steps that it would take alone. A trainee that diverges spoils nothing of the others.

    The models' forward pass is mapped over the stack by ``torch.func.vmap``. PyTorch's fused attention has no rule for
    that on a CPU, so the pass writes scores and pattern out.

    Raises:
        InputError: the trainees do not all stand at the same step.
    """

    def __init__(self, trainees: Sequence[Trainee]):
        if len({trainee.step for trainee in trainees}) != 1:
            steps = ", ".join(str(trainee.step) for trainee in trainees)
            raise InputError(f"trainees that take their steps together stand at different ones ({steps})")
        self.trainees = list(trainees)
        first = self.trainees[0]
        if first.config.precision != "float32":
            raise InputError(
                f"precision = {first.config.precision!r}: trainees take their steps together in float32 only"
            )
        self._skeleton = _Skeleton(first.model.cfg).to(next(first.model.parameters()).device)
        self._trained: dict[str, nn.Parameter] = {}
        self._fixed: dict[str, Tensor] = {}
        for name, weight in first.model.named_parameters():
            stack = torch.stack([trainee.model.get_parameter(name).detach() for trainee in self.trainees])
            if weight.requires_grad or name in first.still_during:
                self._trained[name] = nn.Parameter(stack)
            elif not _alike(stack):
                self._fixed[name] = stack
            for trainee, own in zip(self.trainees, stack.unbind(), strict=True):
                trainee.model.get_parameter(name).data = own
        # What is frozen and the same for all, the identity of W_Q say, is left as it is: a look at it must be possible.
        self._skeleton.load_state_dict(first.model.state_dict())
        self._optimizer = self._stacked_optimizer()

    def take_step(self, task: Task) -> int:
        """One update of every trainee's weights; returns its number, from 1."""
        first = self.trainees[0]
        step = first.step + 1
        batches = [trainee.next_prompts(task) for trainee in self.trainees]
        for name in first.still_during:
            self._trained[name].requires_grad_(not first.is_still(name, step))
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(first.config, step)

        self._optimizer.zero_grad()
        sums, counts = self._loss(batches)
        (sums / counts.clamp(min=1)).sum().backward()  # a sum: no model's gradient knows of the others
        if first.config.grad_clip is not None:
            self._clip_gradients(first.config.grad_clip)
        self._optimizer.step()
        for trainee, batch, loss_sum, n_scored in zip(self.trainees, batches, sums.detach(), counts, strict=True):
            trainee.count_step(loss_sum, n_scored, batch.targets.numel())
        return step

    def hand_back(self) -> None:
        """Give every trainee its own slice of the optimiser's state, as its checkpoint needs it."""
        for name, stack in self._trained.items():
            for key, value in self._optimizer.state.get(stack, {}).items():
                for index, trainee in enumerate(self.trainees):
                    # A scalar is AdamW's count of steps, the same for all.
                    own = value[index] if value.ndim else value.clone()
                    trainee.optimizer.state[trainee.model.get_parameter(name)][key] = own

    def _loss(self, batches: Sequence[Prompts]) -> tuple[Float[Tensor, "seed"], Int[Tensor, "seed"]]:
        """Sum of the losses at scored positions and their number, per trainee."""
        if len({batch.inputs.shape for batch in batches}) != 1:
            shapes = ", ".join(str(list(batch.inputs.shape)) for batch in batches)
            raise InputError(f"the task's prompts differ in shape between seeds ({shapes}): set how='alone'")
        for batch in batches:
            if type(batch) is not Prompts:
                kind = type(batch).__name__
                raise InputError(f"the task's prompts are {kind}, which may have a loss of their own: set how='alone'")
            self._skeleton.look_at(batch.inputs)
        inputs = torch.stack([batch.inputs for batch in batches])
        outputs = torch.func.vmap(self._forward, in_dims=(0, 0))(self._trained | self._fixed, inputs)
        assert isinstance(outputs, Tensor)
        together = Prompts(
            inputs.flatten(0, 1),
            torch.cat([batch.targets for batch in batches]),
            torch.cat([batch.scored for batch in batches]),
        )
        sums, counts = together.loss(outputs.flatten(0, 1))
        n = len(batches)
        return sums.unflatten(0, (n, -1)).sum(dim=1), counts.unflatten(0, (n, -1)).sum(dim=1)

    def _forward(self, weights: dict[str, Tensor], inputs: Tensor) -> Tensor:
        return torch.func.functional_call(self._skeleton, weights, (inputs,))

    def _clip_gradients(self, largest: float) -> None:
        """Scale every trainee's gradient to at most this norm, as ``nn.utils.clip_grad_norm_`` does for one."""
        grads = [stack.grad for stack in self._trained.values() if stack.grad is not None]
        norms = torch.stack([grad.flatten(1).norm(dim=1) for grad in grads]).norm(dim=0)
        scale = (largest / (norms + 1e-6)).clamp(max=1.0)
        for grad in grads:
            grad.mul_(scale.view(-1, *[1] * (grad.ndim - 1)))

    def _stacked_optimizer(self) -> torch.optim.Optimizer:
        """An optimiser of the trainees' kind, with their settings and their states stacked."""
        first = self.trainees[0]
        settings = {key: value for key, value in first.optimizer.param_groups[0].items() if key != "params"}
        kind: Any = type(first.optimizer)
        optimizer: torch.optim.Optimizer = kind([{"params": list(self._trained.values()), **settings}])
        for name, stack in self._trained.items():
            states = [trainee.optimizer.state.get(trainee.model.get_parameter(name), {}) for trainee in self.trainees]
            for key, value in states[0].items():
                together = torch.stack([state[key] for state in states]) if value.ndim else value.clone()
                optimizer.state[stack][key] = together
        return optimizer


class _Skeleton(HookedTransformer):
    """The architecture without weights of its own, in a form that vmap can map over weights and inputs."""

    def __init__(self, cfg: HookedTransformerConfig):
        super().__init__(cfg)
        if cfg.attn_fn == "softmax":
            for block in self.blocks:  # a watched point makes attention take the written-out path
                block.attn.hook_attn_scores.register_forward_hook(_look_on)

    def look_at(self, inputs: Tensor) -> None:
        """Refuse inputs that the model cannot read."""
        super()._check_inputs(inputs)

    def _check_inputs(self, inputs: Tensor) -> None:
        """Done before, by ``look_at``: under vmap no value can be looked at."""


def _look_on(*_) -> None: ...


def _alike(stack: Tensor) -> bool:
    return bool((stack == stack[0]).all())
