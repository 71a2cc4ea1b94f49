"""What the findings say of models whose answer is known: a hand-built circuit, and models that learned nothing."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from analyses.report.bigram_report import BigramMeasurements, Chance, in_context_positions, measure_bigram
from analyses.report.findings import Finding
from interp import HookedTransformer, HookedTransformerConfig
from interp.constructions.induction import InductionCircuit, induction_circuit
from tasks import BigramICL, BigramStatistics, CurrentToken
from tasks.errors import InputError
from tasks.prompts import Prompts

LETTERS = BigramStatistics.from_text("the quick brown fox jumps over the lazy dog and then the dog sleeps " * 3)


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return _task().sample(128, seed=5)


@pytest.fixture(scope="module")
def circuit() -> InductionCircuit:
    task = _task()
    return induction_circuit(d_vocab=task.d_vocab, n_ctx=task.n_ctx, triggers=task.trigger_tokens, idle_heads=1)


@pytest.fixture(scope="module")
def of_circuit(circuit: InductionCircuit, prompts: Prompts) -> BigramMeasurements:
    return measure_bigram(circuit.model, _task(), prompts)


def test_the_hand_built_circuit_is_found_to_copy(of_circuit: BigramMeasurements):
    copying = of_circuit.findings[0]
    assert copying.numbers["copies"]
    assert copying.numbers["model"]["value"] == 1


def test_its_two_heads_are_found_with_their_roles_and_its_idle_heads_are_not(
    of_circuit: BigramMeasurements, circuit: InductionCircuit
):
    found = {one["head"]: one["role"] for one in of_circuit.findings[1].numbers["heads"] if one["carries"]}
    names = [f"L{layer}H{head}" for layer, head in (circuit.previous_token_head, circuit.induction_head)]
    assert found == dict(zip(names, ["previous-token head", "induction head"], strict=True))


def test_its_memories_are_read_from_the_heads_that_hold_them(of_circuit: BigramMeasurements):
    memories = of_circuit.findings[2].numbers["memories"]
    assert [one["memory"] for one in memories if one["remembered"]] == ["W_O2", "W_K2", "W_K1"]
    assert {one["recall"]["value"] for one in memories} == {1.0}


def test_nothing_is_found_in_the_circuit_with_its_unembedding_permuted(circuit: InductionCircuit, prompts: Prompts):
    confused = HookedTransformer(circuit.model.cfg)
    confused.load_state_dict(circuit.model.state_dict())
    with torch.no_grad():
        confused.unembed.W_U.copy_(circuit.model.W_U.roll(1, dims=1))
    assert _claims(measure_bigram(confused, _task(), prompts).findings) == 0


def test_nothing_is_found_where_labels_are_relabelled(circuit: InductionCircuit, prompts: Prompts):
    assert _claims(measure_bigram(circuit.model, _task(), _relabelled(prompts, seed=0)).findings) == 0


def test_nothing_is_found_in_untrained_models(prompts: Prompts):
    assert sum(_claims(measure_bigram(_untrained(seed), _task(), prompts).findings) for seed in range(2)) == 0


@pytest.mark.slow
def test_at_most_one_finding_in_twenty_claims_something_of_models_that_learned_nothing(circuit: InductionCircuit):
    task = _task()
    claims = 0
    for seed in range(50):
        fresh = task.sample(128, seed=(6, seed))
        claims += _claims(measure_bigram(_untrained(seed), task, fresh).findings)
        claims += _claims(measure_bigram(circuit.model, task, _relabelled(fresh, seed)).findings)
    assert claims <= 0.05 * 50 * 2 * 3


def test_chance_is_the_current_token_predictor_of_each_kind_of_position(prompts: Prompts):
    task = _task()
    here = in_context_positions(prompts)
    chance = Chance(task)(prompts)
    torch.testing.assert_close(chance[here], CurrentToken(replace(task, scored="in_context"))(prompts)[here])
    torch.testing.assert_close(chance[~here], CurrentToken(task)(prompts)[~here])


@pytest.mark.parametrize("changed", [{"triggers": "random"}, {"scored": "in_context"}, {"allow_repeats": True}])
def test_every_kind_of_bigram_task_can_be_measured(changed: dict[str, Any]):
    task = _task(**changed)
    measured = measure_bigram(_untrained(0), task, task.sample(32, seed=1))
    assert len(measured.findings) == 3


def test_a_model_of_one_layer_has_no_memories_to_read(prompts: Prompts):
    memories = measure_bigram(_untrained(0, n_layers=1), _task(), prompts).findings[2]
    assert not memories.claims
    assert "needs two layers" in memories.sentence


def test_prompts_that_score_nothing_in_context_are_refused():
    task = _task()
    first = task.sample(8, seed=1)
    with pytest.raises(InputError, match="none of the 8 prompts scores a position in context"):
        measure_bigram(_untrained(0), task, first.score_only(~in_context_positions(first)))


def _task(**changed: Any) -> BigramICL:
    return replace(BigramICL(LETTERS, n_triggers=3, seq_len=24, scored="all"), **changed)


def _untrained(seed: int, **changed: Any) -> HookedTransformer:
    shape: dict[str, Any] = {"n_layers": 2, "n_heads": 2, "d_model": 16, "attn_only": True} | changed
    return HookedTransformer(HookedTransformerConfig(n_ctx=24, d_vocab=len(LETTERS.vocab), seed=seed, **shape))


def _relabelled(prompts: Prompts, seed: int) -> Prompts:
    """The prompts with every trigger's output drawn anew after the fact: what the context shows says nothing of it.

    Drawn per prompt and trigger, as the task does, and not dealt among all prompts, which would make them depend on
    each other more than an interval over prompts can know.
    """
    here = in_context_positions(prompts)
    size = len(LETTERS.vocab)
    drawn = torch.randint(size - 1, (len(prompts), size), generator=torch.Generator().manual_seed(seed))
    answers = (drawn + 1 + torch.arange(size)) % size  # never the trigger itself
    return replace(prompts, targets=torch.where(here, answers.gather(1, prompts.inputs), prompts.targets))


def _claims(findings: Sequence[Finding]) -> int:
    return sum(finding.claims for finding in findings)
