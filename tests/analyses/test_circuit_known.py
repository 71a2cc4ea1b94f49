"""On every construction whose components do not overlap, the true edges are found, all of them and no others."""

import pytest

from analyses import Circuit, discover_circuit, edge_roc
from interp.constructions.backup import backup_circuit
from interp.constructions.copying import copy_circuit
from interp.constructions.known_induction import known_induction
from interp.constructions.linear import linear_network
from interp.constructions.two_paths import two_path_circuit

KNOWN = {
    "copy": copy_circuit,
    "two paths": two_path_circuit,
    "induction": known_induction,
    "linear network": linear_network,
}
each_known = pytest.mark.parametrize("name", KNOWN)


def built(name):
    known = KNOWN[name]()
    assert not known.crosstalk
    return known, Circuit.of(known.model, known.true_edges)


@each_known
@pytest.mark.parametrize("metric", ["kl", "logit_diff"])
def test_acdc_finds_exactly_the_true_edges(name, metric):
    known, truth = built(name)
    result = discover_circuit(known.model, known.prompts, threshold=1e-8, reference="zero", metric=metric)
    assert result.circuit == truth
    assert 0 < len(truth) < len(Circuit.full(known.model)) / 2
    assert edge_roc(known.model, result, truth).area == 1


@each_known
def test_brute_force_finds_exactly_the_true_components(name):
    known, truth = built(name)
    how = {"method": "brute_force", "level": "nodes", "reference": "zero", "metric": "logit_diff"}
    result = discover_circuit(known.model, known.prompts, faithfulness=1 - 1e-6, **how)
    assert [circuit.nodes for circuit in result.ties] == [truth.nodes]


@pytest.mark.parametrize("name", ["copy", "induction", "linear network"])
def test_brute_force_finds_exactly_the_true_edges(name):
    """Among all edges where there are 16, and where there are more among those that ACDC leaves."""
    known, truth = built(name)
    how = {"reference": "zero", "metric": "logit_diff"}
    left = discover_circuit(known.model, known.prompts, threshold=1e-8, **how).circuit
    within = None if len(Circuit.full(known.model)) <= 16 else left
    result = discover_circuit(
        known.model, known.prompts, method="brute_force", within=within, faithfulness=1 - 1e-6, **how
    )
    assert result.ties == (truth,)


def test_acdc_cannot_see_a_backup_that_idles():
    known = backup_circuit()
    truth = Circuit.of(known.model, known.true_edges)
    result = discover_circuit(known.model, known.prompts, threshold=1e-8, reference="zero")
    assert result.circuit <= truth
    assert "L1H0" in truth.nodes
    assert "L1H0" not in result.circuit.nodes
    assert edge_roc(known.model, result, truth).area < 1
