"""Interventions that last for a span of training steps: which part of a circuit must be there for the rest to form."""

import csv
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from interp.atomic_files import write_atomically
from interp.edits import Add, Clamp, Edit, ProjectOut, Replace, Scale, Zero
from interp.hooked_transformer import HookedTransformer
from interp.interventions import Intervention, Receipt, held, refuse_wrong
from interp.sites import Site, SiteLike
from interp.validated import validated
from tasks.errors import InputError

RECEIPTS_FILE = "receipts.csv"
RECEIPT_COLUMNS = ("step", "site", "edit", "first_step", "last_step", "fired", "n_values", "mean_abs_change")
_EDITS = (Zero, Replace, Add, Scale, ProjectOut, Clamp)
_COUNTED = ("total_change", "n_not_finite", "n_unmasked")

ReceiptRow = dict[str, Any]
"""What one intervention did in the steps since the row of the history before; keys are RECEIPT_COLUMNS."""


@dataclass(frozen=True, eq=False)
class TrainingIntervention:
    """An edit that the forward pass of every training step from ``first_step`` to ``last_step`` makes at a site.

    The edit replaces the activation, and the gradient goes through the edit: behind ``Zero`` or ``Replace`` it is zero
    (momentum and weight decay still act there); ``Add`` and ``Scale`` let it through; ``Clamp`` does where the
    activation lies between the bounds. To hold parameters still for a span, use ``TrainConfig.freeze_during``.

    Attributes:
        site: where, as ``Site.parse`` reads it: "L0H0", "L0H0.pattern", "L1.mlp" …
        edit: one of ``interp.edits``. A function of one's own cannot be written to config.json and is refused.
        first_step: the first update made under it; 1 is the first of all.
        last_step: the last update made under it; None means until the end.

    Raises:
        InputError: a site that is not understood, an edit that is none of ``interp.edits``, or steps out of order.

    Source: clamping activations during training is the method of Singh et al. 2024 (arXiv 2404.07129) [mem].

    >>> TrainingIntervention("L0H0", Zero(), first_step=1, last_step=100).site
    Site(layer=0, component='z', head=0, positions=None)
    """

    site: SiteLike
    edit: Edit
    first_step: int = 1
    last_step: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "site", Site.parse(self.site))
        if not isinstance(self.edit, _EDITS):
            names = ", ".join(kind.__name__ for kind in _EDITS)
            raise InputError(
                f"the edit at {self.site} is {self.edit!r}, which config.json cannot hold: give one of {names}"
            )
        for name, step in (("first_step", self.first_step), ("last_step", self.last_step)):
            wrong = isinstance(step, bool) or not isinstance(step, int) or step < 1
            if wrong and not (name == "last_step" and step is None):
                raise InputError(f"{name} = {step!r} of the intervention at {self.site}: expected a step of at least 1")
        if self.last_step is not None and self.last_step < self.first_step:
            raise InputError(
                f"the intervention at {self.site} ends (last_step = {self.last_step}) before it begins "
                f"(first_step = {self.first_step}): swap them"
            )


@validated
class InterventionRecord:
    """A training intervention as config.json holds it; tensors by shape and sha256."""

    described_as: ClassVar[str] = "the record of an intervention"

    site: str
    edit: dict[str, Any]
    first_step: int
    last_step: int

    @property
    def edit_in_words(self) -> str:
        """The edit as one would write it, ``Clamp(low=0.0, high=None)`` say."""
        arguments = [
            f"{name}={'tensor ' + value['sha256'][:8] if isinstance(value, dict) else value}"
            for name, value in self.edit.items()
            if name != "kind"
        ]
        return f"{self.edit['kind']}({', '.join(arguments)})"


class InterventionSchedule:
    """The interventions of a training: which of them act at a step, and what they have done since the last row.

    Raises:
        InputError: a site that the model does not have, or a step after the last.
    """

    def __init__(self, interventions: Sequence[TrainingIntervention], model: HookedTransformer, steps: int):
        self.interventions: list[Intervention] = []
        self.records: tuple[InterventionRecord, ...] = tuple(_record(one, steps) for one in interventions)
        for one in interventions:
            site = Site.parse(one.site)
            site.check(model.cfg.n_layers, model.cfg.n_heads)
            self.interventions.append(Intervention(site, one.edit))
        self.receipts = self._blank()
        self.since = 0
        """The last step that the receipts do not count."""

    def __bool__(self) -> bool:
        return bool(self.interventions)

    def acts_at(self, step: int) -> bool:
        """Whether any intervention acts at this step."""
        return any(record.first_step <= step <= record.last_step for record in self.records)

    def turns(self) -> set[int]:
        """The steps at which an intervention begins, and those after which one has ended."""
        return {turn for record in self.records for turn in (record.first_step, record.last_step + 1)}

    @contextmanager
    def during(self, model: HookedTransformer, step: int, *, noted: bool = True) -> Iterator[None]:
        """Hold the interventions of this step in place for one forward pass; ``noted``: in the receipts of training."""
        receipts = self.receipts if noted else self._blank()
        acting = [
            (one, receipt)
            for one, receipt, record in zip(self.interventions, receipts, self.records, strict=True)
            if record.first_step <= step <= record.last_step
        ]
        if not acting:
            yield
            return
        with held(model, *map(list, zip(*acting, strict=True))):
            yield

    def rows(self, step: int) -> list[ReceiptRow]:
        """The receipts of the steps since the last row, for those interventions that had any; counting begins anew.

        Raises:
            InputError: an intervention did not fire once per step, or wrote NaN or infinity.
        """
        rows = []
        for record, receipt in zip(self.records, self.receipts, strict=True):
            planned = max(0, min(step, record.last_step) - max(self.since, record.first_step - 1))
            refuse_wrong(receipt, planned)
            if planned:
                span = {"first_step": record.first_step, "last_step": record.last_step}
                found = {"fired": receipt.fired, "n_values": receipt.n_values}
                row = {"step": step, "site": record.site, "edit": record.edit_in_words} | span | found
                rows.append(row | {"mean_abs_change": receipt.mean_abs_change})
        self.receipts = self._blank()
        self.since = step
        return rows

    def state(self) -> dict[str, Tensor]:
        """What the receipts hold, for a checkpoint."""
        state = {"receipts/since": torch.tensor(self.since)} if self else {}
        for index, receipt in enumerate(self.receipts):
            for name in ("fired", "n_values", *_COUNTED):
                state[f"receipts/{index}/{name}"] = torch.as_tensor(getattr(receipt, name))
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take the receipts back from a checkpoint; KeyError if it has none."""
        if self:
            self.since = int(state["receipts/since"])
        for index, receipt in enumerate(self.receipts):
            receipt.fired, receipt.n_values = (int(state[f"receipts/{index}/{name}"]) for name in ("fired", "n_values"))
            for name in _COUNTED:
                setattr(receipt, name, state[f"receipts/{index}/{name}"])

    def _blank(self) -> list[Receipt]:
        return [Receipt(one.site) for one in self.interventions]


def write_receipts(folder: Path, rows: Sequence[ReceiptRow]) -> None:
    """Write the whole of receipts.csv."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list[Any](RECEIPT_COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(folder / RECEIPTS_FILE, text.getvalue().encode())


def read_receipts(folder: Path) -> list[ReceiptRow]:
    """The rows of receipts.csv, as they were written.

    Raises:
        InputError: the file is missing or is no such table.
    """
    path = folder / RECEIPTS_FILE
    try:
        lines = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines(), strict=True))
        return [
            {
                name: line[name]
                if name in ("site", "edit")
                else (float if name == "mean_abs_change" else int)(line[name])
                for name in RECEIPT_COLUMNS
            }
            for line in lines
        ]
    except OSError:
        raise InputError(f"{path} is missing: restore it, or train again in another folder") from None
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(f"{path} is no table of receipts ({error}): restore it") from None


def _record(one: TrainingIntervention, steps: int) -> InterventionRecord:
    for name, step in (("first_step", one.first_step), ("last_step", one.last_step)):
        if step is not None and step > steps:
            raise InputError(
                f"{name} = {step} of the intervention at {one.site} lies after the last of {steps} steps: "
                "end it before, or leave last_step out"
            )
    edit: dict[str, Any] = {"kind": type(one.edit).__name__}
    for part in fields(one.edit):  # pyright: ignore[reportArgumentType] — all of interp.edits are dataclasses
        value = getattr(one.edit, part.name)
        edit[part.name] = _tensor_record(value) if isinstance(value, Tensor) else value
    last = steps if one.last_step is None else one.last_step
    return InterventionRecord(site=str(one.site), edit=edit, first_step=one.first_step, last_step=last)


def _tensor_record(values: Tensor) -> dict[str, Any]:
    content = values.detach().cpu().contiguous()
    return {
        "shape": list(content.shape),
        "dtype": str(content.dtype).removeprefix("torch."),
        "sha256": hashlib.sha256(content.view(-1).view(torch.uint8).numpy().tobytes()).hexdigest(),
    }
