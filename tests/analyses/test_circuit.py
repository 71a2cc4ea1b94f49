"""A circuit as a value: what it is made of, how it combines, how it is kept in a file."""

import json

import pytest
import torch

from analyses import Circuit
from analyses.circuit import Edge, places
from analyses.edges import Anatomy
from interp import HookedTransformer, HookedTransformerConfig
from tasks.errors import InputError

EDGES = ["embed->L0H0.v", "L0H0->L1H1.k", "L1H1->L1.mlp", "L1.mlp->output", "pos_embed->L0H1.q"]


def model_of(**options):
    sizes = {"n_layers": 2, "d_model": 8, "n_ctx": 4, "n_heads": 2, "d_vocab": 5, "mlp_layers": (1,)}
    return HookedTransformer(HookedTransformerConfig(**(sizes | options)))


@pytest.fixture(scope="module")
def model():
    return model_of()


@pytest.fixture
def circuit(model):
    return Circuit.of(model, EDGES)


def test_edges_may_be_written_in_several_ways(model, circuit):
    ways = [("embed", "L0H0", "v"), ("L0H0", "L1H1.k"), Edge("L1H1", "L1.mlp", "in"), *EDGES[3:]]
    assert Circuit.of(model, ways) == circuit
    assert Circuit.of(model, [*EDGES, *EDGES]) == circuit
    assert hash(Circuit.of(model, ways)) == hash(circuit)
    assert Circuit.of(model, EDGES[:4]) != circuit


def test_edges_stand_in_the_order_of_the_table_and_nodes_in_that_of_the_layers(circuit):
    assert [str(edge) for edge in circuit] == [EDGES[0], EDGES[4], *EDGES[1:4]]
    assert circuit.nodes == ("embed", "pos_embed", "L0H0", "L0H1", "L1H1", "L1.mlp", "output")
    assert circuit.components == ("L0H0", "L0H1", "L1H0", "L1H1", "L1.mlp")
    assert circuit.mask.sum() == len(circuit) == 5
    kept = [edge for edge, here in zip(places(circuit.anatomy), circuit.mask, strict=True) if here]
    assert kept == list(circuit)


def test_circuits_combine_like_sets(model, circuit):
    other = Circuit.of(model, [*EDGES[:2], "L0H0->output"])
    assert {str(edge) for edge in circuit | other} == {*EDGES, "L0H0->output"}
    assert {str(edge) for edge in circuit & other} == {*EDGES[:2]}
    assert {str(edge) for edge in circuit - other} == {*EDGES[2:]}
    assert ~Circuit.full(model) == Circuit.empty(model)
    assert len(~circuit) + len(circuit) == len(Circuit.full(model))
    assert circuit & other <= circuit
    assert not other <= circuit
    assert EDGES[0] in circuit
    assert "L0H0->output" not in circuit
    assert "no edge" not in circuit


def test_all_edges_between_components_are_those_of_the_model_without_the_others(model):
    some = Circuit.between(model, ["L0H1", "L1.mlp"])
    expected = {("embed", "L0H1"), ("pos_embed", "L0H1"), ("embed", "L1.mlp"), ("pos_embed", "L1.mlp")}
    expected |= {("L0H1", "L1.mlp"), ("L0H1", "output"), ("L1.mlp", "output")}
    expected |= {("embed", "output"), ("pos_embed", "output")}
    assert {(edge.sender, edge.receiver) for edge in some} == expected
    assert some == Circuit.full(model).without(["L0H0", "L1H0", "L1H1"])
    assert len(some) == 13


def test_what_is_connected_leads_from_an_embedding_to_the_output(model, circuit):
    assert [str(edge) for edge in circuit.connected()] == EDGES[:4]  # L0H1 leads nowhere
    unfed = Circuit.of(model, ["L0H0->output", "embed->output"])
    assert [str(edge) for edge in unfed.connected()] == ["embed->output"]
    assert Circuit.full(model).connected() == Circuit.full(model)


def test_a_circuit_prints_how_much_it_is(circuit, model):
    shown = "embed->L0H0.v, pos_embed->L0H1.q, L0H0->L1H1.k, L1H1->L1.mlp, L1.mlp->output"
    assert repr(circuit) == f"Circuit(5 of 49 edges: {shown})"
    assert repr(Circuit.full(model)).endswith(", …)")
    assert repr(Circuit.empty(model)) == "Circuit(0 of 49 edges)"


def test_scores_are_no_part_of_what_a_circuit_is(circuit):
    scored = Circuit(circuit.edges, circuit.anatomy, {circuit.edges[0]: 2.0, Edge("L0H1", "output", "in"): 9.0})
    assert scored == circuit
    assert scored.scores == {circuit.edges[0]: 2.0}
    assert (scored & circuit).scores == {circuit.edges[0]: 2.0}
    with pytest.raises(TypeError):
        scored.scores[circuit.edges[0]] = 1.0


def test_a_file_holds_the_circuit_and_its_scores(circuit, tmp_path):
    scored = Circuit(circuit.edges, circuit.anatomy, {circuit.edges[0]: 2.5})
    path = scored.save(tmp_path / "circuit.json")
    again = Circuit.load(path)
    assert again == circuit
    assert again.scores == {circuit.edges[0]: 2.5}
    with pytest.raises(InputError, match="exists: choose another name"):
        circuit.save(path)
    with pytest.raises(InputError, match="is no folder: make it first"):
        circuit.save(tmp_path / "nowhere" / "circuit.json")


WRONG = {
    "unknown key": (lambda data: data | {"extra": 1}, "holds 'extra', which a circuit has not"),
    "missing key": (lambda data: {k: v for k, v in data.items() if k != "scores"}, "lacks 'scores'"),
    "version": (lambda data: data | {"version": 2}, "has version 2: this reads version 1"),
    "format": (lambda data: data | {"format": "x"}, "is no circuit: give a file that Circuit.save wrote"),
    "no object": (lambda data: [data], "is no circuit"),
    "impossible edge": (
        lambda data: data | {"edges": [["L1H1", "L0H0", "k"], *data["edges"][1:]]},
        r"L1H1->L0H0.k does not exist .* L1H1 writes only after L0H0.k has read",
    ),
    "edge of two words": (lambda data: data | {"edges": [["L1H1", "L0H0"], *data["edges"][1:]]}, "is no edge"),
    "edge twice": (lambda data: data | {"edges": [data["edges"][0]] * 5}, "names an edge twice"),
    "scores short": (lambda data: data | {"scores": []}, "lists of one length"),
    "score of words": (lambda data: data | {"scores": ["high", *data["scores"][1:]]}, "'high' is no score"),
    "no layers": (lambda data: data | {"model": data["model"] | {"n_layers": 0}}, "no anatomy of a transformer"),
    "MLP beyond": (lambda data: data | {"model": data["model"] | {"mlp_layers": [2]}}, "no anatomy of a transformer"),
    "size unknown": (lambda data: data | {"model": data["model"] | {"d_model": 8}}, "holds 'd_model'"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_file_that_is_not_quite_a_circuit_is_refused(what, circuit, tmp_path):
    change, message = WRONG[what]
    data = json.loads(circuit.save(tmp_path / "circuit.json").read_text())
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(change(data)))
    with pytest.raises(InputError, match=message):
        Circuit.load(path)
    path.write_text(json.dumps(data))
    assert Circuit.load(path) == circuit


def test_what_is_no_json_or_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        Circuit.load(tmp_path / "circuit.json")
    (tmp_path / "circuit.json").write_text("circuit")
    with pytest.raises(InputError, match="is no JSON"):
        Circuit.load(tmp_path / "circuit.json")


@pytest.mark.parametrize(
    ("edge", "message"),
    [
        ("L1H0->L0H0.q", r"L1H0->L0H0.q does not exist .*: L1H0 writes only after L0H0.q has read"),
        ("L0H0->L1H0", "L1H0 reads by L1H0.q, L1H0.k, L1H0.v"),
        ("L0H0->L1H7.q", "nothing called 'L1H7' reads it"),
        ("L0.mlp->output", "nothing called 'L0.mlp' writes to the stream"),
        ("L0H0", "is no edge: write 'L0H0->L1H0.k'"),
    ],
)
def test_edges_that_cannot_be_are_refused(edge, message, model):
    with pytest.raises(InputError, match=message):
        Circuit.of(model, [edge])


def test_circuits_of_other_models_are_refused(model, circuit):
    circuit.check_fits(model)
    other = model_of(n_heads=4)
    message = r"of 2 layers × 2 heads, MLPs in layers 1, embed and pos_embed, the model has 2 layers × 4 heads"
    with pytest.raises(InputError, match=message):
        circuit.check_fits(other)
    with pytest.raises(InputError, match="their edges are not the same"):
        circuit | Circuit.full(other)
    with pytest.raises(InputError, match="'L5H0' is no head or MLP of 2 layers"):
        circuit.without(["L5H0"])
    with pytest.raises(InputError, match="is one edge: give a list"):
        Circuit.of(model, EDGES[0])


@pytest.mark.refusal
def test_what_is_no_model_is_refused():
    with pytest.raises(InputError, match="str is no model"):
        Circuit.of("model", EDGES)


def test_an_anatomy_is_that_of_the_model():
    assert Circuit.full(model_of(parallel_attn_mlp=True)).anatomy == Anatomy(2, 2, (1,), ("embed", "pos_embed"), True)
    without = model_of(positional_embedding_type="none", attn_only=True, mlp_layers=None)
    assert Circuit.full(without).anatomy == Anatomy(2, 2, (), ("embed",), False)
    assert torch.equal(Circuit.full(without).mask, torch.ones(29, dtype=torch.bool))
