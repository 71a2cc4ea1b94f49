"""Training: updates by hand, freezing, seeds, resuming bit for bit, refusals."""

import math
from dataclasses import replace

import pytest
import torch

from interp import HookedTransformer, HookedTransformerConfig, Run, TrainConfig, train
from interp.checkpoints import read_tensors, state_path, weights_path
from interp.trainee import TrainingDivergedError
from tasks import BigramICL, Prompts
from tasks.errors import InputError

SGD = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
FAST = {"batch_size": 4, "eval_prompts": 8, "log_every": 4, "checkpoint_every": 5}


@pytest.fixture
def run(task, model_config, tmp_path):
    def run(folder="run", config=model_config, readouts=None, initial=None, **fields):
        training = TrainConfig(**({"steps": 12} | FAST | fields))
        return train(task, config, training, out=tmp_path / folder, initial=initial, readouts=readouts, progress=False)

    return run


def same_weights(one: HookedTransformer, other: HookedTransformer) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(left, right) for left, right in pairs)


def drop_after(run: Run, step: int) -> None:
    """What a machine that fails just after this checkpoint leaves."""
    for later in run.steps:
        if later > step:
            weights_path(run.path, later).unlink()
            state_path(run.path, later).unlink()


def gradients(model, task, config, step):
    prompts = task.sample(config.batch_size, seed=(config.train_seed, step))
    sums, counts = prompts.loss(model(prompts.inputs))
    model.zero_grad()
    (sums.sum() / counts.sum()).backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


def test_two_steps_of_sgd_are_those_computed_by_hand(run, task, model_config):
    config = TrainConfig(steps=2, **FAST, **SGD, schedule="linear")
    found = run(steps=2, **SGD, schedule="linear").model
    model = HookedTransformer(replace(model_config, seed=config.init_seed))
    velocity = dict.fromkeys(dict(model.named_parameters()), torch.zeros(()))
    for step, rate in ((1, 0.1), (2, 0.05)):
        grads = gradients(model, task, config, step)
        for name, weight in model.named_parameters():
            velocity[name] = 0.9 * velocity[name] + grads[name] + 0.01 * weight.detach()
            weight.data -= rate * velocity[name]
    for name, weight in model.named_parameters():
        torch.testing.assert_close(found.get_parameter(name), weight)


def test_the_first_step_of_adamw_moves_every_weight_by_the_rate(run):
    trained = run(steps=1, lr=1e-3)
    moved = (trained.at(1).W_K - trained.at(0).W_K).abs()
    torch.testing.assert_close(moved.median(), torch.tensor(1e-3), rtol=1e-2, atol=0)


def test_the_gradient_is_clipped_to_the_norm(run):
    plain = {"optimizer": "sgd", "lr": 1.0, "steps": 1}
    trained = run(**plain, grad_clip=1e-3)
    change = [
        after - before for after, before in zip(trained.at(1).parameters(), trained.at(0).parameters(), strict=True)
    ]
    assert torch.cat([part.flatten() for part in change]).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_a_parameter_frozen_until_a_step_stays_bit_for_bit_and_then_moves(run):
    trained = run(**SGD, freeze_until={"blocks.1.attn.W_K": 5, "blocks.1.attn.*": 3}, checkpoint_log_spaced=True)
    start = trained.at(0)
    for name, last_still in (("blocks.1.attn.W_K", 5), ("blocks.1.attn.W_O", 2)):
        assert torch.equal(trained.at(last_still).get_parameter(name), start.get_parameter(name))
    assert not torch.equal(trained.at(4).get_parameter("blocks.1.attn.W_O"), start.get_parameter("blocks.1.attn.W_O"))
    assert not torch.equal(trained.at(8).get_parameter("blocks.1.attn.W_K"), start.get_parameter("blocks.1.attn.W_K"))
    assert not torch.equal(trained.at(1).get_parameter("blocks.0.attn.W_K"), start.get_parameter("blocks.0.attn.W_K"))


def test_a_parameter_first_moves_in_the_step_after_its_last_frozen_one(run):
    trained = run(**SGD, freeze_until={"embed.W_E": 5}, checkpoint_every=1, steps=6)
    assert torch.equal(trained.at(5).W_E, trained.at(0).W_E)
    assert not torch.equal(trained.at(6).W_E, trained.at(5).W_E)


def test_a_parameter_frozen_for_good_is_moved_by_neither_decay_nor_momentum(run, model_config):
    config = replace(model_config, frozen=("embed.W_E",))
    trained = run(config=config, **SGD)
    assert torch.equal(trained.model.W_E, trained.at(0).W_E)
    assert not torch.equal(trained.model.W_U, trained.at(0).W_U)


def test_training_lowers_the_loss(run):
    history = run(steps=100, lr=0.01, log_every=50).history
    assert history["loss"].iloc[-1] < history["loss"].iloc[0] - 0.5


def test_the_history_says_what_was_seen_and_at_what_rate(run, task):
    history = run(schedule="linear", lr=0.12).history
    assert history["step"].tolist() == [0, 4, 8, 12]
    assert history["tokens"].tolist() == [step * 4 * task.seq_len for step in (0, 4, 8, 12)]
    assert history["lr"].tolist()[1:] == pytest.approx([0.12 * (1 - (step - 1) / 12) for step in (4, 8, 12)])
    assert math.isnan(history["train_loss"][0])
    assert history["seconds"].is_monotonic_increasing


def test_the_training_loss_is_the_ratio_of_sums_since_the_row_before(run, task, model_config):
    # A rate this small leaves the weights as they were, so that the loss can be had afterwards.
    trained = run(optimizer="sgd", lr=1e-12, steps=6, log_every=3)
    model, config = trained.at(0), trained.train_config
    pairs = []
    for step in (4, 5, 6):
        prompts = task.sample(config.batch_size, seed=(config.train_seed, step))
        pairs.append([part.sum().item() for part in prompts.loss(model(prompts.inputs))])
    expected = sum(total for total, _ in pairs) / sum(count for _, count in pairs)
    assert trained.history["train_loss"].iloc[-1] == pytest.approx(expected, rel=1e-5)


def test_readouts_are_columns(run):
    readouts = {
        "norm": lambda model, _prompts: model.W_E.norm().item(),
        "count": lambda model, prompts: {"prompts": len(prompts), "layers": model.cfg.n_layers},
    }
    trained = run(readouts=readouts)
    last = trained.history.iloc[-1]
    assert last["norm"] == trained.model.W_E.norm().item()
    assert (last["count_prompts"], last["count_layers"]) == (8, 2)


def test_a_readout_that_repeats_a_column_is_refused(run):
    with pytest.raises(InputError, match="second column 'loss'"):
        run(readouts={"loss": lambda _model, _prompts: 0.0})


def test_equal_seeds_give_equal_runs_and_another_train_seed_another(run):
    one, again, other = run("one"), run("again"), run("other", train_seed=99)
    assert same_weights(one.model, again.model)
    assert same_weights(one.at(0), other.at(0))
    assert not same_weights(one.model, other.model)


def test_init_seed_decides_the_initial_weights_whatever_the_models_own_seed(run, model_config):
    one = run("one", replace(model_config, seed=5), init_seed=8)
    assert same_weights(one.at(0), HookedTransformer(replace(model_config, seed=8)))


def test_training_starts_from_the_weights_it_is_given_and_says_so(run):
    first = run("first")
    second = run("second", initial=first.model)
    assert same_weights(second.at(0), first.model)
    assert first.record.initial_sha256 is None
    assert second.record.initial_sha256 is not None
    assert same_weights(run("second", initial=first.model).model, second.model)  # complete: returned as it is


def test_a_run_that_started_from_other_weights_is_not_continued(run):
    first = run("first")
    run("second", initial=first.model)
    with pytest.raises(InputError, match="initial_sha256"):
        run("second", initial=first.at(0))
    with pytest.raises(InputError, match="initial_sha256"):
        run("second")


def test_initial_weights_of_another_architecture_are_refused_before_a_folder_is_made(run, model_config, tmp_path):
    other = HookedTransformer(replace(model_config, d_head=4))
    with pytest.raises(InputError, match="has shape"):
        run("new", initial=other)
    assert not (tmp_path / "new").exists()


def test_an_absent_head_neither_acts_nor_learns(run, model_config):
    config = replace(model_config, n_heads=2, d_head=4, absent_heads=("L1H1",))
    trained = run(config=config, lr=0.1)
    before, after = trained.at(0).blocks[1].attn, trained.model.blocks[1].attn
    for name in ("W_Q", "W_K", "W_V", "W_O"):
        assert torch.equal(getattr(before, name)[1], getattr(after, name)[1])
        assert not torch.equal(getattr(before, name)[0], getattr(after, name)[0])
    whole = HookedTransformer(replace(config, absent_heads=()))
    whole.load_state_dict(trained.model.state_dict())
    tokens = torch.arange(12)[None] % model_config.d_vocab
    zeroed = whole.run_with_hooks(tokens, fwd_hooks=[("blocks.1.attn.hook_z", without_head_1)])
    assert torch.equal(trained.model(tokens), zeroed)
    assert not torch.equal(trained.model(tokens), whole(tokens))


def without_head_1(z, hook):
    z = z.clone()
    z[:, :, 1] = 0
    return z


def test_the_global_generators_are_left_alone(run):
    before = torch.get_rng_state()
    run()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("optimizer", [SGD, {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.01}])
@pytest.mark.parametrize("failed_after", [0, 5, 10])
def test_a_run_that_goes_on_ends_bit_for_bit_like_one_that_never_stopped(run, optimizer, failed_after):
    fields = {**optimizer, "schedule": "cosine", "freeze_until": {"blocks.0.attn.W_K": 7}}
    whole, broken = run("whole", **fields), run("broken", **fields)
    drop_after(broken, failed_after)
    continued = run("broken", **fields)
    assert continued.steps == whole.steps
    for step in whole.steps:
        for path in (weights_path, state_path):
            there, _ = read_tensors(path(whole.path, step))
            here, _ = read_tensors(path(continued.path, step))
            assert there.keys() == here.keys()
            assert all(torch.equal(there[name], here[name]) for name in there)
    untimed = [history.drop(columns="seconds") for history in (whole.history, continued.history)]
    assert untimed[0].equals(untimed[1])


def test_a_crash_at_any_write_costs_no_more_than_the_steps_since_the_last_checkpoint(run, monkeypatch):
    class PowerCut(BaseException):
        pass

    whole = run("whole")
    writes = 0

    def fail_at(last):
        import interp.atomic_files

        def flush(_folder):
            nonlocal writes
            writes += 1
            if writes == last:
                raise PowerCut

        monkeypatch.setattr(interp.atomic_files, "_flush_folder", flush)

    for last in range(1, 100):
        writes = 0
        fail_at(last)
        try:
            run(f"broken-{last}")
        except PowerCut:
            fail_at(None)
            continued = run(f"broken-{last}")
            assert same_weights(continued.model, whole.model)
            assert continued.history.drop(columns="seconds").equals(whole.history.drop(columns="seconds"))
        else:
            break
    assert last > 10  # config, task file, four rows, four checkpoints of two files


def test_a_finished_run_returns_at_once_and_writes_nothing(run):
    first = run()
    before = {path: path.stat().st_mtime_ns for path in first.path.rglob("*")}
    again = run()
    assert {path: path.stat().st_mtime_ns for path in first.path.rglob("*")} == before
    assert same_weights(first.model, again.model)


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"lr": 0.5}, "train.lr"),
        ({"steps": 20}, "train.steps"),
        ({"freeze_until": {"embed.*": 2}}, "train.freeze_until"),
    ],
)
def test_a_folder_of_another_training_is_refused_by_the_first_key_that_differs(run, changed, key):
    run()
    with pytest.raises(InputError, match=f"holds another run: {key}"):
        run(**changed)


def test_a_folder_of_another_task_or_model_or_readout_is_refused(run, task, model_config, tmp_path):
    first = run()
    with pytest.raises(InputError, match=r"model.d_head = 8 there and 4 here"):
        run(config=replace(model_config, d_head=4))
    with pytest.raises(InputError, match="readouts"):
        run(readouts={"zero": lambda _model, _prompts: 0.0})
    with pytest.raises(InputError, match=r"task.config.n_triggers = 2 there and 3 here"):
        train(replace(task, n_triggers=3), model_config, first.train_config, out=first.path, progress=False)


def test_a_folder_with_something_else_in_it_is_refused_and_left_alone(run, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty and holds no run"):
        run("notes")
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["thesis.txt"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        run("file")
    (tmp_path / "empty").mkdir()
    assert run("empty").steps == [0, 5, 10, 12]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"freeze_until": {"blocks.7.*": 3}}, "matches no parameter"),
        ({"freeze_until": {"*": 3}}, "no parameter is trained at step 1"),
        ({"device": "gpu"}, "device = 'gpu' cannot be used here"),
        ({"train_seed": 2}, "train_seed and eval_seed"),
    ],
)
def test_a_training_that_cannot_be_is_refused_before_a_folder_is_made(run, tmp_path, fields, message):
    with pytest.raises(InputError, match=message):
        run(**fields)
    assert not (tmp_path / "run").exists()


def test_thawing_what_is_frozen_for_good_is_refused(run, model_config):
    with pytest.raises(InputError, match="frozen for good"):
        run(config=replace(model_config, frozen=("embed.W_E",)), freeze_until={"embed.W_E": 3})


def test_a_model_that_does_not_fit_the_task_is_refused(run, model_config):
    with pytest.raises(InputError, match=r"n_ctx = 11 but the task's prompts have 12"):
        run(config=replace(model_config, n_ctx=11))
    with pytest.raises(InputError, match="d_vocab = 99 but the task has"):
        run(config=HookedTransformerConfig(n_layers=1, d_model=8, n_ctx=12, d_vocab=99))


def test_a_loss_that_explodes_stops_training_at_the_last_good_checkpoint(run, tmp_path):
    with pytest.raises(TrainingDivergedError, match=r"not finite .* step 0\): .*lr below 1e\+30"):
        run(optimizer="sgd", lr=1e30)
    assert Run.load(tmp_path / "run").steps == [0]


def test_the_step_whose_loss_was_first_not_finite_is_named(task, model_config, tmp_path):
    class Poisoned(BigramICL):
        def sample(self, n, *, seed):
            prompts = super().sample(n, seed=seed)
            return PoisonedPrompts(**vars(prompts)) if seed == (1, 6) else prompts

    class PoisonedPrompts(Prompts):
        def loss(self, outputs):
            sums, counts = super().loss(outputs)
            return sums * math.nan, counts

    poisoned = Poisoned(task.stats, n_triggers=2, seq_len=12, scored="all")
    fields = {"steps": 12} | FAST
    with pytest.raises(TrainingDivergedError, match=r"^the loss of step 6 is not finite \(noticed at step 8;"):
        train(poisoned, model_config, TrainConfig(**fields), out=tmp_path / "run", progress=False)


def test_ctrl_c_ends_the_step_saves_and_can_be_continued(run, tmp_path):
    import signal

    whole = run("whole")
    calls = 0

    def interrupt(model, prompts):
        nonlocal calls
        calls += 1
        if calls == 3:  # at step 8
            signal.raise_signal(signal.SIGINT)
        return 0.0

    with pytest.raises(KeyboardInterrupt, match="stopped after step 8 of 12"):
        run(readouts={"nothing": interrupt})
    assert Run.load(tmp_path / "run").steps == [0, 5, 8]
    continued = run(readouts={"nothing": interrupt})
    assert same_weights(continued.model, whole.model)
    assert continued.steps == [0, 5, 8, 10, 12]
