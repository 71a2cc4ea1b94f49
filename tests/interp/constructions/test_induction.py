import pytest
import torch

from interp.constructions.induction import InductionCircuit, induction_circuit
from tasks.bigram import BigramICL
from tasks.errors import InputError


@pytest.fixture(scope="module")
def task() -> BigramICL:
    return BigramICL(seq_len=64)


@pytest.fixture(scope="module")
def circuit(task: BigramICL) -> InductionCircuit:
    return induction_circuit(d_vocab=task.d_vocab, n_ctx=task.n_ctx, triggers=task.trigger_tokens)


@pytest.mark.parametrize("repeats", [False, True])
def test_the_circuit_solves_in_context_bigrams(circuit: InductionCircuit, repeats: bool) -> None:
    prompts = BigramICL(seq_len=64, allow_repeats=repeats).sample(256, seed=1)
    hits, counted = prompts.accuracy(circuit.model(prompts.inputs))
    assert int(counted.sum()) > 1000
    assert torch.equal(hits, counted)


def test_random_triggers_are_solved_when_every_token_is_stored() -> None:
    task = BigramICL(seq_len=48, triggers="random")
    circuit = induction_circuit(d_vocab=task.d_vocab, n_ctx=task.n_ctx)
    prompts = task.sample(64, seed=1)
    hits, counted = prompts.accuracy(circuit.model(prompts.inputs))
    # Every earlier successor of a trigger is its output, so copying any of them is right.
    assert torch.equal(hits, counted)
    assert int(counted.sum()) > 100


def test_the_heads_look_where_the_truth_says(circuit: InductionCircuit, task: BigramICL) -> None:
    tokens = task.sample(32, seed=2).inputs
    _, cache = circuit.model.run_with_cache(tokens)
    expected = circuit.expected_attention(tokens)
    for layer in range(2):
        torch.testing.assert_close(cache["pattern", layer][:, 0], expected[layer], atol=1e-4, rtol=0)


def test_expected_attention_of_a_prompt_worked_out_by_hand() -> None:
    circuit = induction_circuit(d_vocab=4, n_ctx=6, triggers=[3])
    layer_0, layer_1 = circuit.expected_attention(torch.tensor([[3, 1, 2, 3, 0, 3]]))[:, 0]
    assert layer_0.argmax(dim=1).tolist() == [0, 0, 1, 2, 3, 4]
    assert layer_1[1].tolist() == [0.5, 0.5, 0, 0, 0, 0]  # token 1 is no trigger
    assert layer_1[3].tolist() == [0, 1, 0, 0, 0, 0]  # trigger 3 finds what followed it at position 0
    assert layer_1[5].tolist() == [0, 0.5, 0, 0, 0.5, 0]


def test_each_memory_is_needed(circuit: InductionCircuit, task: BigramICL) -> None:
    prompts = task.sample(64, seed=3)
    for name, parameter in circuit.parameters.items():
        broken = type(circuit.model)(circuit.model.cfg)
        broken.load_state_dict(circuit.model.state_dict())
        with torch.no_grad():
            broken.get_parameter(parameter)[0] -= circuit.memories[name]
        hits, counted = prompts.accuracy(broken(prompts.inputs))
        assert float(hits.sum() / counted.sum()) < 0.5, name


def test_memories_are_the_difference_to_the_initial_model() -> None:
    for embeddings in ("orthogonal", "random"):
        table = torch.log_softmax(torch.randn(5, 5, generator=torch.Generator().manual_seed(0)), dim=1)
        circuit = induction_circuit(
            d_vocab=5, n_ctx=8, d_model=32, triggers=[1, 2], embeddings=embeddings, log_bigram=table, idle_heads=1
        )
        before = circuit.initial_model.state_dict()
        for name, weight in circuit.model.state_dict().items():
            stored = {parameter: memory for memory, parameter in circuit.parameters.items()}
            if name in stored:
                memory = circuit.memories[stored[name]]
                added = memory if memory.shape == weight.shape else torch.stack([memory, torch.zeros_like(memory)])
                torch.testing.assert_close(weight - before[name], added)
            else:
                assert torch.equal(weight, before[name]), name


def test_random_embeddings_are_those_that_the_seed_draws_and_nearly_work(task: BigramICL) -> None:
    circuit = induction_circuit(
        d_vocab=task.d_vocab, n_ctx=64, triggers=task.trigger_tokens, d_model=256, embeddings="random", seed=3
    )
    drawn = type(circuit.model)(circuit.model.cfg).state_dict()
    for name in ("embed.W_E", "pos_embed.W_pos", "unembed.W_U", "blocks.1.attn.W_V", "blocks.0.attn.W_O"):
        assert torch.equal(circuit.model.state_dict()[name], drawn[name])
    prompts = task.sample(64, seed=1)
    hits, counted = prompts.accuracy(circuit.model(prompts.inputs))
    assert float(hits.sum() / counted.sum()) > 0.8


def test_the_feed_forward_part_adds_the_global_bigram_to_tokens_that_are_no_triggers() -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.log_softmax(torch.randn(6, 6, generator=generator), dim=1)
    settings = {"d_vocab": 6, "n_ctx": 10, "triggers": [4]}
    with_table = induction_circuit(**settings, log_bigram=table).model
    without = induction_circuit(**settings).model
    tokens = torch.randint(6, (8, 10), generator=generator)
    added = with_table(tokens) - without(tokens)
    expected = torch.where((tokens == 4)[..., None], 0.0, table[tokens])
    torch.testing.assert_close(added, expected, atol=1e-4, rtol=0)


def test_idle_heads_attend_and_change_nothing(task: BigramICL) -> None:
    settings = {"d_vocab": task.d_vocab, "n_ctx": 64, "triggers": task.trigger_tokens}
    circuit = induction_circuit(**settings, idle_heads=2)
    assert circuit.idle_heads == ((0, 1), (0, 2), (1, 1), (1, 2))
    tokens = task.sample(8, seed=1).inputs
    logits, cache = circuit.model.run_with_cache(tokens, names_filter=["blocks.1.attn.hook_z", "blocks.1.attn.hook_v"])
    assert float(cache["z", 1][:, :, 1:].abs().max()) > 0.01
    torch.testing.assert_close(logits, induction_circuit(**settings).model(tokens), atol=1e-3, rtol=0)


def test_what_the_paper_freezes_is_frozen_and_the_memories_are_trainable() -> None:
    circuit = induction_circuit(d_vocab=3, n_ctx=4, triggers=[0])
    trainable = {name for name, weight in circuit.model.named_parameters() if weight.requires_grad}
    assert trainable == set(circuit.parameters.values())


def test_refusals_say_what_to_do() -> None:
    induction_circuit(d_vocab=4, n_ctx=5, d_model=17, triggers=[0])
    for wrong, message in (
        ({"triggers": []}, "triggers is empty"),
        ({"triggers": [1, 1]}, "names a token twice"),
        ({"triggers": [4]}, "trigger 4 does not exist: the vocabulary has tokens 0 to 3"),
        ({"d_model": 16}, "d_model = 16 is too small .* give at least 17"),
        ({"embeddings": "random"}, "d_model is missing"),
        ({"idle_heads": -1}, "idle_heads = -1 is negative"),
        ({"log_bigram": torch.zeros(3, 3)}, r"log_bigram is \[3, 3\]: give \[4, 4\]"),
        ({"log_bigram": torch.eye(4).log()}, "smooth the bigram's zeros"),
        ({"log_bigram": 50 * torch.eye(4)}, "copy_logit = 30.0 does not outweigh log_bigram"),
    ):
        with pytest.raises(InputError, match=message):
            induction_circuit(**{"d_vocab": 4, "n_ctx": 5, **wrong})


@pytest.mark.refusal
def test_an_unknown_kind_of_embedding_is_refused() -> None:
    with pytest.raises(InputError, match="embeddings = 'ortogonal' is unknown: choose 'orthogonal' or 'random'"):
        induction_circuit(d_vocab=4, n_ctx=5, triggers=[0], embeddings="ortogonal")  # pyright: ignore
