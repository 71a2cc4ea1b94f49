"""A circuit that runs: the model with every other edge cut, in the shape of a model."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from analyses.circuit_runs import CircuitRuns, References, Stream
from analyses.edge_attribution import EdgeReference
from interp.hook_gate import HookFunction
from interp.model_adapter import HookedModel, Inputs
from tasks.errors import InputError
from tasks.prompts import Prompts
from tasks.protocol import Task

# A circuit's inputs read different streams, so that a point between stream and input shows what nothing goes on with.
_MEANINGLESS = ("hook_q", "hook_k", "hook_v", "_input", "hook_attn_in", "hook_mlp_in", "hook_in")
_MEANINGLESS_PARTS = (".ln1.", ".attn.q.", ".attn.k.", ".attn.v.", ".attn.qkv.")
_READ_ONLY = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_result", "hook_out")


@dataclass(frozen=True, eq=False)
class CircuitModel:
    """A circuit as a model: call it on inputs, hook it, or give it to an analysis.

    Made by ``Circuit.as_model``. Edits are followed at heads (z, pattern, scores), MLPs, embeddings and the final
    norm; the stream itself can be read (it holds what all senders add in this run) and not edited, and q, k and v have
    no hook point, since the circuit writes them.
    """

    model: HookedModel
    mask: Bool[Tensor, "edge"]
    reference: EdgeReference
    runs: CircuitRuns
    references: References
    stream: Stream
    """What the reference's run adds and reads: of all prompts, since hooks on this model must not reach that run."""
    rows: Mapping[bytes, int | None]
    """Of inputs (as bytes), the prompt that they are; None where several prompts differ in their counterfactual."""

    @classmethod
    def of(
        cls,
        model: HookedModel,
        mask: Bool[Tensor, "edge"],
        prompts: Prompts,
        counterfactual: Prompts | Task | None,
        *,
        reference: EdgeReference,
        seed: int,
        batch_size: int,
    ) -> "CircuitModel":
        """Prepare the reference; arguments as for ``Circuit.as_model``."""
        runs = CircuitRuns(model)
        references = References(runs, prompts, counterfactual, reference, seed=seed, batch_size=batch_size)
        stream = references.whole()
        rows: dict[bytes, int | None] = {}
        if references.counterfactual is not None:
            there = references.counterfactual.inputs
            for row, key in enumerate(_keys(prompts.inputs)):
                first = rows.setdefault(key, row)
                if first is None or not torch.equal(there[first], there[row]):
                    rows[key] = None
        return cls(model, mask, reference, runs, references, stream, rows)

    @property
    def cfg(self) -> Any:
        """The model's."""
        return self.model.cfg

    @property
    def hook_dict(self) -> Mapping[str, HookPoint]:
        """The hook points that mean something in a circuit's run."""
        return {
            name: point
            for name, point in self.model.hook_dict.items()
            if not name.endswith(_MEANINGLESS) and not any(part in name for part in _MEANINGLESS_PARTS)
        }

    @contextmanager
    def hooks(
        self,
        fwd_hooks: Sequence[tuple[str, HookFunction]] = (),
        bwd_hooks: Sequence[tuple[str, HookFunction]] = (),
    ) -> Iterator["CircuitModel"]:
        """Hold hooks in place for a with-block.

        Raises:
            InputError: a point that a circuit's run does not have, an edit of the stream, or a hook on gradients.
        """
        if bwd_hooks:
            raise InputError("a circuit's run has no gradients: use a method without them")
        for name, _ in fwd_hooks:
            if name not in self.hook_dict:
                raise InputError(
                    f"{name} means nothing in a circuit's run, whose inputs read streams of their own: hook z, "
                    "pattern, mlp_out or the embeddings"
                )
        kept = [
            (name, partial(_watch, function) if name.endswith(_READ_ONLY) else function) for name, function in fwd_hooks
        ]
        with self.model.hooks(kept, []):
            yield self

    def __call__(self, inputs: Inputs, *, start_at_layer: int | None = None) -> Float[Tensor, "batch pos *d_out"]:
        """The circuit's outputs.

        Raises:
            InputError: with counterfactuals, inputs that are not among the prompts, or that several prompts share
                whose counterfactuals differ; other positions than the prompts'.
        """
        if start_at_layer is not None:  # as a bridge says it: a full pass is made instead
            raise NotImplementedError("a circuit runs from its embeddings on")
        expected = self.references.prompts.inputs.shape[1]
        if inputs.shape[1] != expected:
            raise InputError(f"the inputs have {inputs.shape[1]} positions, the circuit's reference {expected}")
        return self.runs.outputs(inputs, self.mask[None], self._reference(inputs))[0]

    def _reference(self, inputs: Inputs) -> Stream:
        if self.references.of_all is not None:
            return self.stream
        rows = [self.rows.get(key, -1) for key in _keys(inputs)]
        if -1 in rows:
            raise InputError(
                f"{rows.count(-1)} of {len(rows)} inputs are none of the circuit's prompts, so they have no "
                "counterfactual: give as_model these prompts, or reference='mean'"
            )
        known = [row for row in rows if row is not None]
        if len(known) < len(rows):
            raise InputError(
                f"{len(rows) - len(known)} of {len(rows)} inputs stand in the prompts more than once, with different "
                "counterfactuals: drop the doubles, or choose reference='mean'"
            )
        return Stream(self.stream.sent[:, known], {point: read[known] for point, read in self.stream.read.items()})


def _keys(inputs: Inputs) -> list[bytes]:
    return [row.tobytes() for row in inputs.detach().cpu().contiguous().numpy()]


def _watch(function: HookFunction, activation: Tensor, hook: HookPoint) -> None:
    if function(activation, hook=hook) is not None:
        raise InputError(
            f"{hook.name} can only be read in a circuit's run, whose inputs read streams of their own: edit z, "
            "pattern, mlp_out or the embeddings"
        )
