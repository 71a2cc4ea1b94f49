"""Prompts: inputs with known answers, which positions count, and names for the kinds of position."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from tasks.errors import InputError

Seed = int | tuple[int, ...]
"""Whatever numpy's SeedSequence takes: one integer, or several that are mixed (run seed, step)."""

CLEAN_TARGET = "clean_target"
"""The label that holds a real-valued target without its noise, ⟨w*, x⟩ say, where that is known."""


@dataclass(frozen=True, eq=False)
class Prompts:
    """A batch of prompts whose structure is known.

    Tokens: ``inputs`` and ``targets`` are int64 [batch, pos], and ``targets[b, t]`` is the token that follows
    ``inputs[b, t]``. Real-valued tasks: ``inputs`` is float [batch, pos, d_in], ``targets`` float [batch, pos].

    Attributes:
        scored: the positions where the model is judged.
        labels: named facts about each position, each [batch, pos]; ``label_names[name][value]`` says a value of
            an integer label in words, where there is a word for it.
        latents: what is known of each prompt as a whole, each [batch, ...]: a regression's ``w_star`` and ``support``.
        wrong: a named alternative answer at each position (for logit differences), shaped like ``targets``.
        counterfactual: the same prompts with the in-context answer re-drawn, aligned position by position.
        vocab: what each token stands for.
        seed: the seed they were drawn with, kept so that a result can say it.
    """

    inputs: Int[Tensor, "batch pos"] | Float[Tensor, "batch pos d_in"]
    targets: Int[Tensor, "batch pos"] | Float[Tensor, "batch pos"]
    scored: Bool[Tensor, "batch pos"]
    labels: Mapping[str, Shaped[Tensor, "batch pos"]] = field(default_factory=dict)
    label_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    latents: Mapping[str, Shaped[Tensor, "batch ..."]] = field(default_factory=dict)
    wrong: Int[Tensor, "batch pos"] | Float[Tensor, "batch pos"] | None = None
    counterfactual: "Prompts | None" = None
    vocab: tuple[str, ...] | None = None
    seed: Seed | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.targets.shape)
        aligned = {"inputs": self.inputs.shape[:2], "scored": self.scored.shape}
        aligned |= {f"labels[{name!r}]": label.shape[:2] for name, label in self.labels.items()}
        if self.wrong is not None:
            aligned["wrong"] = self.wrong.shape
        for name, other in aligned.items():
            if tuple(other) != shape:
                raise InputError(
                    f"{name} is {list(other)} but targets is {list(shape)}: "
                    "every part of Prompts has the same batch and pos"
                )
        for name, latent in self.latents.items():
            if tuple(latent.shape[:1]) != shape[:1]:
                raise InputError(
                    f"latents[{name!r}] is {list(latent.shape)} but there are {shape[0]} prompts: "
                    "a latent's first axis is the batch"
                )

    @classmethod
    def from_tensors(
        cls,
        inputs: Int[Tensor, "batch pos"] | Float[Tensor, "batch pos d_in"],
        targets: Int[Tensor, "batch pos"] | Float[Tensor, "batch pos"] | None = None,
        scored: Bool[Tensor, "batch pos"] | None = None,
        **rest,
    ) -> "Prompts":
        """Prompts of one's own: every argument but the inputs has a default.

        Without ``targets`` the next token is the target, and the last position, which has none, is not scored.
        Without ``scored`` every position that has a target is scored. ``rest`` are Prompts' other attributes.

        >>> prompts = Prompts.from_tensors(torch.tensor([[3, 1, 2]]))
        >>> prompts.targets, prompts.scored
        (tensor([[1, 2, 2]]), tensor([[ True,  True, False]]))
        """
        if targets is None:
            if inputs.is_floating_point():
                raise InputError("targets is missing: real-valued inputs have no next token to take it from")
            targets = torch.cat([inputs[:, 1:], inputs[:, -1:]], dim=1)
            has_target = torch.ones_like(inputs, dtype=torch.bool)
            has_target[:, -1] = False
            scored = has_target if scored is None else scored & has_target
        if scored is None:
            scored = torch.ones(targets.shape, dtype=torch.bool, device=targets.device)
        return cls(inputs, targets, scored, **rest)

    def __len__(self) -> int:
        return self.targets.shape[0]

    def __getitem__(self, index: slice | Sequence[int] | Shaped[Tensor, "chosen"]) -> "Prompts":
        """The chosen prompts, every part of them (an integer would lose the batch axis: write ``prompts[i:i+1]``)."""
        if isinstance(index, int):
            raise InputError(f"prompts[{index}] would lose the batch axis: write prompts[{index}:{index + 1}]")
        return self._map(lambda part: part[index])

    def to(self, device: torch.device | str) -> "Prompts":
        """The same prompts on another device; the copy to a GPU is not waited for."""
        if torch.device(device).type == "cuda":
            return self._map(lambda part: (part if part.is_cuda else part.pin_memory()).to(device, non_blocking=True))
        return self._map(lambda part: part.to(device))

    def score_only(self, mask: Bool[Tensor, "batch pos"]) -> "Prompts":
        """The same prompts, judged only where they were already scored and ``mask`` holds.

        >>> prompts = Prompts.from_tensors(torch.tensor([[3, 1, 2]]))
        >>> prompts.score_only(prompts.inputs == 1).scored
        tensor([[False,  True, False]])
        """
        return replace(self, scored=self.scored & mask)

    def loss(self, outputs: Float[Tensor, "batch pos *d_out"]) -> tuple[Float[Tensor, "batch"], Int[Tensor, "batch"]]:
        """Sum of the losses at scored positions, and how many there are, per prompt.

        Cross-entropy in nats of logits [batch, pos, vocab]; squared error of predictions [batch, pos] (or
        [batch, pos, 1]). An estimate of the loss is the ratio of the two sums; a prompt may score nothing.

        >>> prompts = Prompts.from_tensors(torch.tensor([[0, 1]]))
        >>> prompts.loss(torch.zeros(1, 2, 2))
        (tensor([0.6931]), tensor([1]))
        """
        if self.scored.device.type != "cpu":
            return self._loss_everywhere(outputs).masked_fill(~self.scored, 0).sum(dim=1), self.scored.sum(dim=1)
        rows, columns = self.scored.nonzero(as_tuple=True)
        if self.targets.is_floating_point():
            predictions = outputs.squeeze(-1) if outputs.ndim == 3 else outputs
            each = (predictions - self.targets)[rows, columns].square()
        else:
            each = F.cross_entropy(outputs[rows, columns], self.targets[rows, columns], reduction="none")
        sums = torch.zeros(len(self), dtype=each.dtype, device=each.device).index_add(0, rows, each)
        return sums, self.scored.sum(dim=1)

    def _loss_everywhere(self, outputs: Float[Tensor, "batch pos *d_out"]) -> Float[Tensor, "batch pos"]:
        """The loss of every position. To look up which are scored would make the host wait for a GPU at every step."""
        if self.targets.is_floating_point():
            predictions = outputs.squeeze(-1) if outputs.ndim == 3 else outputs
            return (predictions - self.targets).square()
        each = F.cross_entropy(outputs.flatten(0, 1), self.targets.flatten(), reduction="none")
        return each.unflatten(0, self.targets.shape)

    def accuracy(self, outputs: Float[Tensor, "batch pos vocab"]) -> tuple[Int[Tensor, "batch"], Int[Tensor, "batch"]]:
        """How many scored positions have their target as the largest logit, and how many there are, per prompt.

        >>> prompts = Prompts.from_tensors(torch.tensor([[0, 1]]))
        >>> prompts.accuracy(torch.tensor([[[0.0, 5.0], [0.0, 0.0]]]))
        (tensor([1]), tensor([1]))
        """
        if self.targets.is_floating_point():
            raise InputError("accuracy needs token targets: these prompts have real-valued ones, use the loss")
        hits = (outputs.argmax(dim=-1) == self.targets) & self.scored
        return hits.sum(dim=1), self.scored.sum(dim=1)

    def excess_risk(
        self, predictions: Float[Tensor, "batch pos"] | Float[Tensor, "batch pos 1"]
    ) -> tuple[Float[Tensor, "batch"], Int[Tensor, "batch"]]:
        """How far predictions are from the target *without its noise*: Σ (ŷ − ⟨w*, x⟩)² over scored positions.

        Returns the sum and the number of scored positions, per prompt; an estimate is the ratio of the two totals,
        in squared units of y. The best possible value is that of the Bayes predictor, not zero.

        Raises:
            InputError: w* is unknown (the prompts come from a table), or the predictions have another shape.

        Source: Chen, Zhao and Zou 2024 [abs][mem].

        >>> clean = {"clean_target": torch.tensor([[4.0]])}
        >>> prompts = Prompts.from_tensors(torch.ones(1, 1, 2), torch.tensor([[5.0]]), labels=clean)
        >>> prompts.excess_risk(torch.tensor([[7.0]]))
        (tensor([9.]), tensor([1]))
        """
        if CLEAN_TARGET not in self.labels:
            raise InputError(
                f"excess_risk needs the label {CLEAN_TARGET!r}, which these prompts lack (w* is unknown): "
                "use the loss, the error against the noisy targets"
            )
        if predictions.numel() != self.targets.numel() or predictions.shape[:2] != self.targets.shape:
            raise InputError(
                f"predictions is {list(predictions.shape)} but targets is {list(self.targets.shape)}: "
                "give one prediction per position, [batch, pos] or [batch, pos, 1]"
            )
        error = predictions.reshape(self.targets.shape) - self.labels[CLEAN_TARGET]
        return error.square().masked_fill(~self.scored, 0).sum(dim=1), self.scored.sum(dim=1)

    def decode(self, index: int) -> list[str]:
        """The tokens of one prompt in words."""
        if self.vocab is None:
            raise InputError("these prompts carry no vocab: give Prompts a vocab to decode them")
        return [self.vocab[token] for token in self.inputs[index].tolist()]

    def _map(self, change) -> "Prompts":
        def maybe(part):
            return None if part is None else change(part)

        return replace(
            self,
            inputs=change(self.inputs),
            targets=change(self.targets),
            scored=change(self.scored),
            labels={name: change(label) for name, label in self.labels.items()},
            latents={name: change(latent) for name, latent in self.latents.items()},
            wrong=maybe(self.wrong),
            counterfactual=None if self.counterfactual is None else self.counterfactual._map(change),
        )
