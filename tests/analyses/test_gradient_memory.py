import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from analyses.gradient_memory import best_step, gradient_recall, loss_gradients
from analyses.memory import memory_recall
from interp import HookedTransformer, HookedTransformerConfig
from interp.constructions.induction import InductionCircuit, induction_circuit
from interp.presets import preset
from interp.statistics import jackknife_values, seed_interval
from tasks import BigramICL
from tasks.errors import InputError
from tasks.prompts import Prompts

PARAMETERS = {
    "W_O2": "blocks.1.attn.W_O",
    "W_K1": "blocks.0.attn.W_K",
    "W_K2": "blocks.1.attn.W_K",
    "W_F": "blocks.1.mlp.W_F",
}


def small(seed: int = 0, *, d_vocab: int = 7, n_ctx: int = 8, **fields) -> HookedTransformer:
    shape = {
        "n_layers": 2,
        "d_model": 6,
        "d_head": 6,
        "mlp_type": "linear",
        "mlp_layers": (1,),
        "use_biases": False,
        "init_mode": "torch_linear",
        "frozen": ("embed.*",),
    }
    return HookedTransformer(
        HookedTransformerConfig(**{**shape, **fields}, d_vocab=d_vocab, n_ctx=n_ctx, seed=seed)  # pyright: ignore
    )


def some_prompts(n: int, *, d_vocab: int = 7, n_pos: int = 8, seed: int = 0) -> Prompts:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(d_vocab, (n, n_pos), generator=generator)
    prompts = Prompts.from_tensors(tokens)
    return prompts.score_only(torch.rand(n, n_pos, generator=generator) < 0.6)


@pytest.fixture(scope="module")
def task() -> BigramICL:
    return BigramICL(seq_len=32)


@pytest.fixture(scope="module")
def prompts(task: BigramICL) -> Prompts:
    return task.sample(512, seed=5)


@pytest.fixture(scope="module")
def circuit(task: BigramICL) -> InductionCircuit:
    return induction_circuit(
        d_vocab=task.d_vocab, n_ctx=32, triggers=task.trigger_tokens, attention_logit=10.0, copy_logit=10.0
    )


@pytest.mark.parametrize("memory", PARAMETERS)
def test_gradients_agree_with_finite_differences(memory: str) -> None:
    prompts, name = some_prompts(20), PARAMETERS[memory]
    model = small(3).double()
    n_scored, gradients = loss_gradients(model, prompts, [name], batch_size=7)
    generator = torch.Generator().manual_seed(1)

    def loss_at(direction: Tensor, step: float) -> float:
        moved = copy.deepcopy(model)
        with torch.no_grad():
            moved.get_parameter(name).add_(step * direction)
            return float(prompts.loss(moved(prompts.inputs))[0].sum())

    assert n_scored == int(prompts.scored.sum())
    for direction in (gradients[name], torch.randn(gradients[name].shape, generator=generator).double()):
        direction = direction / direction.norm()
        step = 1e-5
        slope = (loss_at(direction, step) - loss_at(direction, -step)) / (2 * step)
        assert float((gradients[name] * direction).sum()) == pytest.approx(slope, rel=1e-6)


@torch.no_grad()
def test_the_gradient_of_a_copy_behind_even_attention_is_the_one_worked_out_by_hand() -> None:
    model = small(1, attn_only=True, mlp_layers=None)
    prompts = some_prompts(15)
    W_O1 = model.blocks[0].attn.W_O
    W_O1.zero_()
    for block in model.blocks:
        block.attn.W_K.zero_()
    # Every position averages w_E + p over the past, layer 0 writes nothing: Σ zᵀ (softmax − onehot) W_Uᵀ.
    expected = torch.zeros(6, 6, dtype=torch.float64)
    for tokens, targets, scored in zip(prompts.inputs, prompts.targets, prompts.scored, strict=True):
        resid = (model.W_E[tokens] + model.W_pos[:8]).double()
        for t in range(8):
            if not scored[t]:
                continue
            z = resid[: t + 1].mean(dim=0) @ model.W_V[1, 0].double()
            logits = (resid[t] + z @ model.W_O[1, 0].double()) @ model.W_U.double()
            surprise = logits.softmax(dim=0)
            surprise[targets[t]] -= 1
            expected += torch.outer(z, model.W_U.double() @ surprise)
    _, gradients = loss_gradients(model, prompts, ["blocks.1.attn.W_O"])
    assert torch.allclose(gradients["blocks.1.attn.W_O"][0], expected, rtol=1e-4, atol=1e-5)
    # and its readout: token v is recalled if v itself gains most where v is attended to
    step = -expected
    gains = model.W_E.double() @ model.W_V[1, 0].double() @ step @ model.W_U.double()
    hits = sum(int(gains[v].argmax()) == v for v in range(7))
    frame = gradient_recall(model, prompts, triggers=[1, 2], memories=["W_O2"], n_blocks=5).frame
    assert frame["recall"].item() == hits / 7
    assert frame["gradient_norm"].item() == pytest.approx(float(expected.norm()) / int(prompts.scored.sum()), rel=1e-4)


@pytest.mark.parametrize("named", [{}, {"previous_token_head": "L1H1", "induction_head": "L2H0"}])
def test_readouts_are_those_of_the_step_really_taken(named: dict[str, str]) -> None:
    deep = {"n_layers": 3, "n_heads": 2, "mlp_layers": (2,)} if named else {}
    earlier, later = ((1, 1), (2, 0)) if named else ((0, 0), (1, 0))
    model = small(2, n_ctx=70, **deep)
    prompts = some_prompts(25, n_pos=70)
    bigram = torch.rand(7, 7, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    asked = {"triggers": [1, 3, 4], "bigram": bigram, **named}
    found = gradient_recall(model, prompts, **asked, n_blocks=5).frame
    assert found["memory"].tolist() == ["W_O2", "W_K1", "W_K1", "W_K2", "W_K2", "W_F"]
    for memory, rows in found.groupby("memory"):
        layer, head = earlier if memory == "W_K1" else later
        name = f"blocks.{layer}.{PARAMETERS[str(memory)].removeprefix('blocks.').partition('.')[2]}"
        n_scored, gradients = loss_gradients(model, prompts, [name])
        moved = copy.deepcopy(model)
        with torch.no_grad():
            step = -1000 / n_scored * gradients[name].float()
            weight = moved.get_parameter(name)
            (weight if memory == "W_F" else weight[head]).add_(step if memory == "W_F" else step[head])
        taken = memory_recall(moved, **asked, memories=[memory], init_model=model).frame  # pyright: ignore
        taken = taken.iloc[: len(rows)]
        assert rows["index_set"].tolist() == taken["index_set"].tolist()
        assert rows["cosine"].tolist() == pytest.approx(taken["cosine"].tolist(), rel=1e-3, abs=1e-4)
        if memory != "W_F":
            assert rows["margin"].tolist() == pytest.approx(taken["learned_margin"].tolist(), rel=0.01)
            assert rows["crosstalk"].tolist() == pytest.approx(taken["learned_crosstalk"].tolist(), rel=0.05)
            assert (rows["component"] == f"L{layer}H{head}").all()


def test_the_best_step_of_the_feed_forward_part_is_the_best_of_a_grid() -> None:
    model, prompts = small(4), some_prompts(60)
    bigram = torch.rand(7, 7, generator=torch.Generator().manual_seed(2)).mul(3).softmax(dim=1)
    for v in range(7):  # prompts that follow the bigram roughly, so that a step helps
        here = prompts.inputs == v
        prompts.targets[here] = int(bigram[v].argmax())
    frame = gradient_recall(model, prompts, triggers=[0], bigram=bigram, memories=["W_F"], n_blocks=5).frame
    assert frame["index_set"].tolist() == ["tokens that are no triggers"]
    _, gradients = loss_gradients(model, prompts, ["blocks.1.mlp.W_F"])
    W_E, W_U = model.W_E.detach().double(), model.W_U.detach().double()
    logits = W_E @ -gradients["blocks.1.mlp.W_F"] @ W_U / int(prompts.scored.sum())

    def divergence(step: float) -> float:
        predicted = (step * logits[1:]).log_softmax(dim=1)
        return float((bigram[1:] * (bigram[1:].double().log() - predicted)).sum(dim=1).mean())

    grid = np.linspace(0, 4 * frame["step_size"].item(), 401)
    values = [divergence(step) for step in grid]
    assert 0 < int(np.argmin(values)) < 400
    assert frame["step_size"].item() == pytest.approx(grid[int(np.argmin(values))], abs=2 * grid[1])
    assert frame["kl"].item() == pytest.approx(min(values), rel=1e-3)
    assert frame["kl"].item() < divergence(0)


def test_steps_that_make_it_worse_and_steps_without_end() -> None:
    bigram = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert best_step(bigram, -logits) == 0
    assert best_step(bigram, torch.zeros(2, 2)) == 0
    without_end = best_step(torch.eye(2), logits) * logits
    assert without_end.log_softmax(dim=1).diagonal().abs().max() < 1e-12
    assert best_step(bigram, 10 * logits) == pytest.approx(best_step(bigram, logits) / 10)


@pytest.mark.parametrize(("memory", "recall", "cosine"), [("W_O2", 0.95, 0.8), ("W_K2", 1, 0.5), ("W_K1", 0.9, 0.3)])
def test_the_gradient_writes_the_one_memory_that_the_circuit_lacks(
    circuit: InductionCircuit, task: BigramICL, prompts: Prompts, memory, recall: float, cosine: float
) -> None:
    lacking = copy.deepcopy(circuit.model)
    with torch.no_grad():
        lacking.get_parameter(circuit.parameters[memory])[0].sub_(circuit.memories[memory])
    frame = gradient_recall(lacking, prompts, task, memories=[memory]).frame
    assert (frame["recall"] >= recall).all()
    assert (frame["p_value"] < 0.01).all()
    assert (frame["cosine"] > cosine).all()
    assert (frame["ci_low"] > cosine - 0.05).all()


def test_an_untrained_model_learns_to_copy_first(task: BigramICL, prompts: Prompts) -> None:
    model = HookedTransformer(preset("bietti-simplified", task)[0])
    frame = gradient_recall(model, prompts, task).frame.set_index("memory")
    assert frame.loc["W_O2", "significant"]
    assert frame.loc["W_O2", "cosine"] > 0.4
    assert not frame.loc[["W_K1", "W_K2"], "significant"].any()
    assert (frame.loc[["W_K1", "W_K2"], "cosine"] < 0.1).all()


def test_targets_that_follow_from_nothing_teach_no_copying(task: BigramICL, prompts: Prompts) -> None:
    significant = 0
    for seed in range(10):
        relabel = torch.randperm(task.d_vocab, generator=torch.Generator().manual_seed(seed))
        model = HookedTransformer(preset("bietti-simplified", task, {"seed": seed})[0])
        shuffled = replace(prompts, targets=relabel[prompts.targets])
        found = gradient_recall(model, shuffled, task, memories=["W_O2"]).frame
        assert found["cosine"].item() < 0.15
        significant += int(found["significant"].item())
    assert significant <= 1


def test_the_model_is_left_as_it_was() -> None:
    model = small(0)
    model.get_parameter("blocks.1.attn.W_O").grad = torch.ones(1, 6, 6)
    before = copy.deepcopy(model.state_dict())
    trained = [parameter.requires_grad for parameter in model.parameters()]
    with torch.no_grad():  # the caller's own setting does not keep it from working
        gradient_recall(model, some_prompts(10), triggers=[1, 2], n_blocks=5)
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == trained
    kept = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert list(kept) == ["blocks.1.attn.W_O"]
    assert torch.equal(kept["blocks.1.attn.W_O"], torch.ones(1, 6, 6))


def test_a_frozen_memory_has_the_gradient_it_would_have_and_a_note() -> None:
    prompts = some_prompts(10)
    free, frozen = small(0), small(0, frozen=("blocks.1.attn.W_K",))
    free.zero_grad()
    prompts.loss(free(prompts.inputs))[0].sum().backward()
    _, gradients = loss_gradients(frozen, prompts, ["blocks.1.attn.W_K"])
    own = free.get_parameter("blocks.1.attn.W_K").grad
    assert own is not None
    assert torch.allclose(gradients["blocks.1.attn.W_K"].float(), own, rtol=1e-4, atol=1e-6)
    result = gradient_recall(frozen, prompts, triggers=[1, 2], n_blocks=5)
    assert [note for note in result.notes if "is frozen" in note] == [
        "blocks.1.attn.W_K is frozen in this model: training would not take the step of W_K2"
    ]
    assert not any("is frozen" in note for note in gradient_recall(free, prompts, triggers=[1], n_blocks=5).notes)


def test_batches_do_not_matter() -> None:
    model, prompts = small(5).double(), some_prompts(31)
    names = list(PARAMETERS.values())
    (n_whole, whole), (n_parts, parts) = (loss_gradients(model, prompts, names, batch_size=size) for size in (31, 4))
    assert n_whole == n_parts
    assert all(torch.allclose(whole[name], parts[name], rtol=1e-10, atol=1e-13) for name in names)


def test_a_gradient_of_zero_is_said_to_store_nothing() -> None:
    model = small(0, attn_only=True, mlp_layers=None)
    with torch.no_grad():
        model.blocks[1].attn.W_O.zero_()
    result = gradient_recall(model, some_prompts(20), triggers=[1, 2], n_blocks=5)
    # What layer 1 looks at is of no consequence; layer 0 still writes to the logits.
    silent = result.frame["memory"] == "W_K2"
    assert (result.frame.loc[silent, ["gradient_norm", "recall"]] == 0).all(axis=None)
    assert result.frame.loc[silent, ["cosine", "ci_low", "ci_high"]].isna().all(axis=None)
    assert (result.frame.loc[~silent, "gradient_norm"] > 0).all()
    assert [note for note in result.notes if "exactly zero" in note] == [
        "W_K2 has a gradient of exactly zero: a step would store nothing"
    ]


def test_too_few_prompts_are_noticed() -> None:
    few = gradient_recall(small(0), some_prompts(10), triggers=[1, 2], memories=["W_O2"], n_blocks=5)
    many = gradient_recall(small(0), some_prompts(4000), triggers=[1, 2], memories=["W_O2"], n_blocks=5)
    assert any(note.startswith("the gradients of W_O2 on two halves of the prompts") for note in few.notes)
    assert many.frame["stability"].item() > 0.95
    assert many.notes == ()
    width = [frame["ci_high"].item() - frame["ci_low"].item() for frame in (few.frame, many.frame)]
    assert width[1] < width[0] / 4


@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_the_interval_of_a_cosine_covers_that_of_the_population(noise: float) -> None:
    # Blocks of a gradient are the population's plus noise; 2000 experiments of 8 blocks.
    rng = np.random.default_rng(0)
    ideal, population = rng.normal(size=(2, 40))
    population = population + ideal
    blocks = population + noise * rng.normal(size=(2000, 8, 40))

    def cosines(sums: np.ndarray) -> np.ndarray:
        return sums @ ideal / np.linalg.norm(sums, axis=-1) / np.linalg.norm(ideal)

    total = blocks.sum(axis=1)
    whole, without = cosines(total), cosines(total[:, None] - blocks)
    held = []
    for one, others in zip(whole, without, strict=True):
        interval = seed_interval(jackknife_values(float(one), others))
        held.append(interval.low <= cosines(population) <= interval.high)
    assert 0.93 < np.mean(held) < 0.97


def test_prompts_shorter_than_the_model_bound_the_positions() -> None:
    model = small(0, n_ctx=8)
    result = gradient_recall(model, some_prompts(10, n_pos=5), triggers=[1, 2], memories=["W_K1"], n_blocks=5)
    assert result.frame["n"].tolist() == [4]
    assert "the prompts have 5 positions, and no others are asked about" in result.notes


def test_refusals_say_what_to_do(task: BigramICL) -> None:
    model, prompts = small(0), some_prompts(10)
    gradient_recall(model, prompts, triggers=[1, 2], n_blocks=5)
    for wrong, message in (
        ({"n_blocks": 4}, "n_blocks = 4 gives no interval over blocks: ask for at least 5"),
        ({"n_blocks": 11}, "n_blocks = 11 exceeds the 10 prompts"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"triggers": [9]}, "trigger 9 does not exist"),
        ({"memories": ["W_F"]}, "W_F cannot be read: π_b is unknown"),
        ({"previous_token_head": "L1H0", "induction_head": "L1H0"}, "is not in an earlier layer"),
    ):
        with pytest.raises(InputError, match=message):
            gradient_recall(model, prompts, **({"triggers": [1, 2], "n_blocks": 5} | wrong))  # pyright: ignore
    silent = prompts.score_only(torch.arange(10)[:, None] > 3)
    with pytest.raises(InputError, match="block 0 of 5, 2 prompts, has no scored position"):
        gradient_recall(model, silent, triggers=[1, 2], n_blocks=5)
    with pytest.raises(InputError, match="the task has 63 tokens but the model reads 7"):
        gradient_recall(model, prompts, task, n_blocks=5)
    with pytest.raises(InputError, match=r"the model has no parameter blocks\.5\.attn\.W_O"):
        loss_gradients(model, prompts, ["blocks.5.attn.W_O"])
    with torch.no_grad():
        model.embed.W_E[0, 0] = math.inf
    with pytest.raises(InputError, match="holds NaN or infinity"):
        loss_gradients(model, prompts, ["blocks.1.attn.W_O"])


def test_the_picture_and_the_files_are_those_of_a_recall(tmp_path) -> None:
    result = gradient_recall(small(0), some_prompts(10), triggers=[1, 2], n_blocks=5)
    bars, chance = result.plot().data
    assert list(bars.y) == result.frame["recall"].dropna().tolist()
    assert list(chance.y) == result.frame["chance"].tolist()
    result.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gradient_recall.csv", "gradient_recall.json"]
