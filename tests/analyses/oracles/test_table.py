"""The oracle table finds every method at its place, and can fail: on a wrong truth or method, or a missing number."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from analyses.oracles import OracleResult, every_circuit, run_oracles, table
from analyses.oracles.limits import APPROXIMATE, BLIND_TO_BACKUPS, UNRECOVERED
from analyses.oracles.readings import READINGS, Reading
from interp.constructions.backup import backup_circuit
from interp.constructions.copying import copy_circuit
from interp.constructions.linear import linear_network
from interp.constructions.two_paths import two_path_circuit
from tasks.errors import InputError

SCRIPT = Path(__file__).parents[3] / "scripts" / "oracles.py"


@pytest.fixture(scope="module")
def quick() -> OracleResult:
    """Every method but the slow integrals, on the circuits of one layer."""
    methods = ["ablate", "patch", "attribute_heads, direct", "attribute_heads, shapley", "attribute_heads, gradient"]
    methods += ["attribute_edges, exact", "attribute_edges, eap, "]
    return run_oracles([copy_circuit(), two_path_circuit()], methods=methods, edges=False)


def test_exact_methods_are_within_their_tolerance_and_first_order_ones_off_only_where_it_is_written(quick):
    assert quick.failures == []
    assert set(quick.frame["verdict"]) == {"exact", "cannot"}
    off = quick.frame[quick.frame["verdict"] == "cannot"]
    assert set(zip(off["method"], off["construction"], strict=True)) <= set(APPROXIMATE)
    assert off["why"].str.len().min() > 10
    exact = quick.frame[quick.frame["verdict"] == "exact"]
    assert float((exact["found"] - exact["truth"]).abs().max()) <= 1e-5


def test_edge_attribution_is_exact_on_the_linear_network_only():
    found = run_oracles(
        [linear_network()], methods=["attribute_edges, eap, ", "attribute_heads, gradient"], edges=False
    )
    assert float(found.frame["error"].max()) < 1e-8
    assert float(found.frame["truth"].abs().max()) > 0.5
    curved = run_oracles([two_path_circuit()], methods=["attribute_edges, eap, "], edges=False)
    assert "cannot" in set(curved.frame["verdict"])


def test_decoys_get_no_credit_and_the_backup_is_found_by_pairs_and_shapley_values_alone(quick):
    assert set(quick.credits["verdict"]) == {"no credit"}
    assert set(quick.credits["head"]) == {"L0H1", "L0H3"}
    methods = ["ablate", "attribute_heads, shapley", "attribute_heads, direct", "attribute_heads, gradient"]
    backup = run_oracles([backup_circuit()], methods=methods, edges=False)
    assert backup.failures == []
    seen = backup.credits[backup.credits["verdict"] == "found"]
    assert set(seen["method"]) == {"ablate_pairs, zero", "attribute_heads, shapley"}
    blind = backup.credits[backup.credits["verdict"] == "cannot"]
    assert len(blind) > 4
    assert set(blind["method"]) <= set(BLIND_TO_BACKUPS)


def test_completeness_misses_the_backup_by_what_it_would_have_done():
    found = run_oracles([backup_circuit()], methods=["evaluate_circuit"], edges=False)
    assert found.failures == []
    rows = found.frame.set_index("quantity")
    assert rows.loc["faithfulness of the true edges", "found"] == pytest.approx(1)
    assert rows.loc["L0H0 gone, L1H0 missed", "found"] == pytest.approx(-2, abs=1e-5)
    assert set(found.credits["verdict"]) == {"found"}


def planted(known):
    """The effect of zeroing the copying head, given to the decoy."""
    return replace(known, effects={**known.effects, "zero": {"L0H1": known.effect("zero", "L0H0")}})


def test_a_planted_truth_is_refused():
    right = run_oracles([copy_circuit()], methods=["ablate, zero"], edges=False)
    wrong = run_oracles([planted(copy_circuit())], methods=["ablate, zero"], edges=False)
    assert right.failures == []
    assert wrong.frame["verdict"].tolist() == ["WRONG", "WRONG"]
    assert "ablate, zero on copy with a decoy: L0H0 is -1.99799, the truth 0" in wrong.failures


def test_every_exact_method_refuses_its_neighbours_truths(quick):
    assert bool(quick.control["refused"].all())
    assert len(quick.control) > 20
    assert float(quick.control["error"].min()) > 0.1


def readings_with(monkeypatch, reading: Reading) -> None:
    monkeypatch.setattr(table, "READINGS", (reading,))


@pytest.mark.parametrize(
    ("found", "failures"),
    [
        ({"L0H0": -1.99799, "L0H1": 0.0}, 0),
        ({"L0H0": -1.998, "L0H1": 0.0}, 1),  # off by 1.1e-5
        ({"L0H0": 0.0, "L0H1": 0.0}, 2),  # blind: it would accept the planted truth of one head too
        ({"L0H1": 0.0}, 1),  # a head that it should have reported
        ({"L0H0": float("nan"), "L0H1": 0.0}, 1),
        ({"L0H0": -1.99799, "L0H1": 0.001}, 2),  # credit for the decoy
    ],
)
def test_a_method_that_is_off_blind_or_silent_fails(monkeypatch, found, failures):
    truth = {"L0H0": -1.9979892478292067}
    readings_with(monkeypatch, Reading("made up", "exact", lambda _: truth, lambda _: found))
    assert (len(run_oracles([copy_circuit()], edges=False).failures) > 0) == (failures > 0)


def test_quadrature_is_granted_to_integrals_only(monkeypatch):
    known = two_path_circuit()
    off = {name: value + 0.01 for name, value in known.effects["integrated"].items()}
    for claim, verdict in (("quadrature", "within"), ("exact", "WRONG"), ("first order", "WRONG")):
        readings_with(monkeypatch, Reading("made up", claim, lambda known: known.effects["integrated"], lambda _: off))
        assert set(run_oracles([known], edges=False).frame["verdict"]) == {verdict}


def test_what_is_written_about_limits_names_methods_and_circuits_that_exist():
    names, circuits = {reading.name for reading in READINGS}, {known.name for known in every_circuit()}
    assert {method for method, _ in APPROXIMATE} <= names
    assert set(BLIND_TO_BACKUPS) <= names
    assert {circuit for _, circuit in [*APPROXIMATE, *UNRECOVERED]} <= circuits


def test_the_result_draws_and_saves_its_tables(quick, tmp_path):
    assert len(quick.plot().data) == 1
    quick.save(tmp_path)
    assert len(pd.read_csv(tmp_path / "oracles.csv")) == len(quick.frame)
    assert len(quick.worst) == len(quick.frame[["construction", "method"]].drop_duplicates())


def script():
    spec = importlib.util.spec_from_file_location("oracles_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("change", "code"), [(lambda known: known, 0), (planted, 1)])
def test_the_command_fails_on_a_planted_truth(monkeypatch, capsys, change, code):
    module = script()
    monkeypatch.setattr(sys, "argv", ["oracles.py"])
    monkeypatch.setattr(module, "every_circuit", lambda: [change(copy_circuit())])
    monkeypatch.setattr(
        module, "run_oracles", lambda circuits: run_oracles(circuits, methods=["ablate, zero"], edges=False)
    )
    assert module.main() == code
    printed = capsys.readouterr()
    assert "ablate, zero" in printed.out
    assert ("WRONG: ablate, zero on copy with a decoy" in printed.err) == bool(code)


@pytest.mark.slow
def test_every_method_on_every_circuit():
    result = run_oracles()
    assert result.failures == []
    assert set(result.frame["verdict"]) == {"exact", "within", "cannot"}
    for method, circuit in APPROXIMATE:
        rows = result.worst[(result.worst["method"] == method) & (result.worst["construction"] == circuit)]
        assert rows["verdict"].tolist() == ["cannot"], f"{method} sees {circuit} after all"
    for method, circuit in UNRECOVERED:
        rows = result.recovery[(result.recovery["method"] == method) & (result.recovery["construction"] == circuit)]
        assert rows["verdict"].tolist() == ["cannot"], f"{method} recovers {circuit} after all"


def test_no_circuits_and_unknown_methods_are_refused():
    with pytest.raises(InputError, match="circuits is empty: give at least one"):
        run_oracles([])
    with pytest.raises(InputError, match="no method's name begins with 'ablate_all': choose from ablate, ablate_pairs"):
        run_oracles([copy_circuit()], methods=["ablate_all"])
