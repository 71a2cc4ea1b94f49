"""The table of errors: every method on every known circuit, its verdict, and a control with wrong truths."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from analyses.oracles.limits import APPROXIMATE, BLIND_TO_BACKUPS
from analyses.oracles.readings import N_STEPS, READINGS, Found, Reading
from analyses.oracles.recovery import recover
from analyses.result import Result
from interp.constructions.backup import backup_circuit
from interp.constructions.copying import copy_circuit
from interp.constructions.known_circuit import KnownCircuit
from interp.constructions.known_induction import known_induction, known_induction_with_crosstalk
from interp.constructions.linear import linear_network
from interp.constructions.two_paths import two_path_circuit
from tasks.errors import InputError

TOLERANCE = 1e-5
"""How far an exact method may be from the truth, in logits."""
_CREDIT = 0.05
"""A head is seen where it gets this share of the logit difference."""


@dataclass(frozen=True, eq=False)
class OracleResult(Result):
    """What every method found, beside the truth.

    Columns: construction, method, quantity, truth, found, error, tolerance, verdict, why. Verdicts: "exact" (within
    1e-5), "within" (its stated quadrature error), "cannot" (off, for the reason given) and "WRONG".
    """

    recovery: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Which methods find the true edges; see ``recover``. "ranked": components overlap, so ranks are all there is."""
    credits: pd.DataFrame = field(default_factory=pd.DataFrame)
    """What decoys and backups are given: columns construction, head, role, method, credit (the largest |found| of the
    head or an edge of it, as a share of the logit difference), verdict ("no credit", "found", "cannot" or "WRONG"),
    why."""
    control: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Every method held against a planted truth, in which each component has its neighbour's: columns construction,
    method, error, refused. A method without two different truths on a circuit has no row."""

    value_column = "error"

    @property
    def name(self) -> str:
        """Short name, used for files."""
        return "oracles"

    @property
    def tables(self) -> Mapping[str, pd.DataFrame]:
        """The errors, the edges found, the credits given, and the control."""
        more = {"recovery": self.recovery, "credits": self.credits, "control": self.control}
        return {**super().tables, **{f"{self.name}_{name}": table for name, table in more.items() if not table.empty}}

    @property
    def worst(self) -> pd.DataFrame:
        """One row per circuit and method: the quantity with the largest error."""
        rows = self.frame.groupby(["construction", "method"], sort=False)["error"].idxmax()
        return self.frame.loc[rows].reset_index(drop=True)

    @property
    def failures(self) -> list[str]:
        """What must not be, in words; empty if all is well."""
        found = [
            f"{row.method} on {row.construction}: {row.quantity} is {row.found:.6g}, the truth {row.truth:.6g}"
            for row in self.frame[self.frame["verdict"] == "WRONG"].itertuples()
        ]
        for table, what in ((self.recovery, "the true edges"), (self.credits, "a decoy or backup")):
            if not table.empty:
                wrong = table[table["verdict"] == "WRONG"]
                found += [f"{row.method} on {row.construction} is wrong about {what}" for row in wrong.itertuples()]
        blind = self.control[~self.control["refused"]] if not self.control.empty else self.control
        return found + [f"{row.method} on {row.construction} accepts a planted truth" for row in blind.itertuples()]

    def plot(self) -> go.Figure:
        """The largest error of every method (up) on every circuit (across), as a power of ten."""
        table = self.worst.pivot(index="method", columns="construction", values="error").clip(lower=1e-16)
        table = table.reindex(index=self.worst["method"].unique()[::-1], columns=self.worst["construction"].unique())
        powers = table.map(lambda error: f"{error:.0e}")
        cells = go.Heatmap(
            x=table.columns, y=table.index, z=table.map(_power), text=powers, texttemplate="%{text}",
            colorscale="RdBu_r", zmid=_power(TOLERANCE), colorbar={"title": "log₁₀ error"},
        )  # fmt: skip
        height = 120 + 26 * len(table)
        return go.Figure(cells).update_layout(title=self.title, template="plotly_white", height=height)


def every_circuit() -> list[KnownCircuit]:
    """All circuits whose truth is known."""
    makers: Sequence[Callable[[], KnownCircuit]] = (
        copy_circuit, backup_circuit, two_path_circuit, linear_network, known_induction, known_induction_with_crosstalk
    )  # fmt: skip
    return [make() for make in makers]


def run_oracles(
    circuits: Sequence[KnownCircuit] | None = None, *, methods: Sequence[str] | None = None, edges: bool = True
) -> OracleResult:
    """How far is every method from the truth, on models whose every effect is known?

    Errors are absolute, in logits, of the mean logit difference over the circuit's own prompts. Exact methods must be
    within 1e-5; integrated gradients within that and the quadrature error that the circuit states; first-order methods
    must be exact where nothing is written against it (``analyses.oracles.limits``).

    Args:
        circuits: known circuits; all by default.
        methods: beginnings of names of methods ("ablate", "attribute_edges, eap"); all by default.
        edges: also look for the true edges (ACDC, growth, brute force, rankings).

    Raises:
        InputError: no circuit, or a beginning that no method's name has.

    >>> result = run_oracles([copy_circuit()], methods=["ablate, zero"], edges=False)
    >>> result.frame[["quantity", "verdict"]].values.tolist()
    [['L0H0', 'exact'], ['L0H1', 'exact']]
    >>> result.failures
    []
    """
    circuits = every_circuit() if circuits is None else circuits
    if not circuits:
        raise InputError("circuits is empty: give at least one known circuit, or leave it out for all")
    chosen = _chosen(methods)
    rows, given, control = [], [], []
    for known in circuits:
        for reading in chosen:
            found, truth = reading.measure(known), reading.truth(known)
            tolerance = _tolerance(reading, known)
            rows += _judged(known, reading, found, truth, tolerance)
            given += [_credit(known, reading, found, head, "decoy") for head in known.decoys]
            given += [_credit(known, reading, found, head, "backup") for head in known.backups]
            control += _control(known, reading, found, truth, tolerance)
    frame = pd.DataFrame(rows)
    settings = {"circuits": [known.name for known in circuits], "methods": methods, "tolerance": TOLERANCE}
    recovery = pd.concat([recover(known) for known in circuits], ignore_index=True) if edges else pd.DataFrame()
    title = "Errors of every method on circuits whose truth is known"
    given = [row for row in given if row["credit"] is not None]
    return OracleResult(
        frame, title, settings, (), recovery=recovery, credits=pd.DataFrame(given), control=pd.DataFrame(control)
    )


def _chosen(methods: Sequence[str] | None) -> list[Reading]:
    for beginning in methods or ():
        if not any(reading.name.startswith(beginning) for reading in READINGS):
            known = ", ".join(dict.fromkeys(reading.name.split(",")[0].split(":")[0] for reading in READINGS))
            raise InputError(f"methods: no method's name begins with {beginning!r}: choose from {known}")
    return [one for one in READINGS if methods is None or one.name.startswith(tuple(methods))]


def _tolerance(reading: Reading, known: KnownCircuit) -> float:
    if reading.claim != "quadrature":
        return TOLERANCE
    constant, order = known.quadrature
    return TOLERANCE + constant / N_STEPS**order


def _judged(
    known: KnownCircuit, reading: Reading, found: Found, truth: Found, tolerance: float
) -> list[dict[str, Any]]:
    """A row per quantity. What the truth names and the method should have seen, but did not report, is wrong too."""
    rows = []
    why = APPROXIMATE.get((reading.name, known.name), "") if reading.claim == "first order" else ""
    kinds = {_kind(name) for name in found}
    for name in [*found, *(name for name in truth if name not in found and _kind(name) in kinds)]:
        value, true = found.get(name, float("nan")), truth.get(name, 0.0)
        error = abs(value - true)
        if error <= TOLERANCE:
            verdict = "exact"
        elif error <= tolerance:
            verdict = "within"
        else:
            verdict = "cannot" if why and name in found else "WRONG"
        row: dict[str, Any] = {"construction": known.name, "method": reading.name, "quantity": name, "truth": true}
        row |= {"found": value, "error": error, "tolerance": tolerance, "verdict": verdict}
        rows.append(row | {"why": why if verdict == "cannot" else ""})
    return rows


def _credit(known: KnownCircuit, reading: Reading, found: Found, head: str, role: str) -> dict[str, Any]:
    """The largest share of the logit difference that a head, a pair or an edge of it is given."""
    of_head = [abs(value) for name, value in found.items() if head in name]
    credit = max(of_head) / abs(known.baseline) if of_head else None
    row: dict[str, Any] = {"construction": known.name, "head": head, "role": role, "method": reading.name}
    row |= {"credit": credit, "why": ""}
    if credit is None:
        return row
    if role == "decoy":
        return row | {"verdict": "no credit" if credit <= TOLERANCE else "WRONG"}
    why = BLIND_TO_BACKUPS.get(reading.name, "")
    if credit >= _CREDIT:
        return row | {"verdict": "found"}
    return row | {"verdict": "cannot" if why else "WRONG", "why": why}


def _control(
    known: KnownCircuit, reading: Reading, found: Found, truth: Found, tolerance: float
) -> list[dict[str, Any]]:
    """The same judgement on a truth in which every component has the next one's; none where that is the same truth."""
    if reading.claim == "first order":
        return []
    names = list(found)
    planted = {name: truth.get(other, 0.0) for name, other in zip(names, names[1:] + names[:1], strict=True)}
    if all(abs(planted[name] - truth.get(name, 0.0)) <= 2 * tolerance for name in names):
        return []
    judged = _judged(known, reading, found, planted, tolerance)
    error = max(row["error"] for row in judged)
    refused = any(row["verdict"] == "WRONG" for row in judged)
    return [{"construction": known.name, "method": reading.name, "error": error, "refused": refused}]


def _kind(name: str) -> str:
    """What kind of thing a quantity is of: edges from positions, edges, pairs, MLPs, embeddings, or heads."""
    if "->" in name:
        return "edge from positions" if name.startswith("pos_embed") else "edge"
    if "+" in name:
        return "pair"
    return "MLP" if name.endswith("mlp") else "head" if name.startswith("L") else "other"


def _power(error: float) -> float:
    return math.log10(error)
