"""Training under interventions: what they do to the steps and to what can learn, their receipts, resuming, refusals."""

import math
from dataclasses import replace

import pytest
import torch

from interp import HookedTransformer, Run, TrainConfig, TrainingIntervention, train
from interp.checkpoints import read_tensors, state_path, weights_path
from interp.edits import Add, Clamp, ProjectOut, Replace, Scale, Zero
from interp.evaluation import evaluate
from interp.interventions import Intervention, intervene
from interp.sites import Site
from tasks.errors import InputError

FAST = {"steps": 12, "batch_size": 4, "eval_prompts": 8, "log_every": 4, "checkpoint_every": 5}


@pytest.fixture
def run(task, model_config, tmp_path):
    def run(*interventions, folder="run", config=model_config, readouts=None, **fields):
        training = TrainConfig(**(FAST | fields))
        return train(
            task,
            config,
            training,
            out=tmp_path / folder,
            interventions=interventions,
            readouts=readouts,
            progress=False,
        )

    return run


def same_weights(one: HookedTransformer, other: HookedTransformer) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(left, right) for left, right in pairs)


def by_hand(task, model_config, config: TrainConfig, edits) -> HookedTransformer:
    """Plain SGD by a loop of one's own; ``edits`` gives the hooks of a step."""
    model = HookedTransformer(replace(model_config, seed=config.init_seed))
    for step in range(1, config.steps + 1):
        prompts = task.sample(config.batch_size, seed=(config.train_seed, step))
        outputs = model.run_with_hooks(prompts.inputs, fwd_hooks=edits(step))
        sums, counts = prompts.loss(outputs)
        model.zero_grad()
        (sums.sum() / counts.sum()).backward()
        with torch.no_grad():
            for weight in model.parameters():
                if weight.grad is not None:
                    weight -= config.lr * weight.grad
    return model


def test_the_steps_of_the_span_are_taken_under_the_edit_and_the_others_are_not(run, task, model_config):
    def zeroed(z, hook):
        return torch.zeros_like(z)

    fields = {"optimizer": "sgd", "lr": 0.1, "steps": 6}
    found = run(TrainingIntervention("L0H0", Zero(), first_step=2, last_step=4), **fields).model
    config = TrainConfig(**(FAST | fields))
    expected = by_hand(
        task, model_config, config, lambda step: [("blocks.0.attn.hook_z", zeroed)] if 2 <= step <= 4 else []
    )
    unedited = by_hand(task, model_config, config, lambda _step: [])
    for name, weight in expected.named_parameters():
        torch.testing.assert_close(found.get_parameter(name), weight)
    assert not torch.allclose(found.W_V, unedited.W_V, atol=1e-5)


def test_what_only_an_ablated_site_depends_on_does_not_learn_and_what_it_is_added_to_does(run):
    trained = run(TrainingIntervention("L0H0", Zero()))
    before, after = trained.at(0).blocks[0].attn, trained.model.blocks[0].attn
    for name in ("W_Q", "W_K", "W_V"):
        assert torch.equal(getattr(before, name), getattr(after, name))
    assert not torch.equal(trained.at(0).blocks[1].attn.W_V, trained.model.blocks[1].attn.W_V)


def test_a_replaced_pattern_holds_the_attention_and_lets_the_values_learn(run, task):
    previous = torch.eye(task.n_ctx).roll(1, dims=0)
    previous[0] = torch.eye(task.n_ctx)[0]
    trained = run(TrainingIntervention("L0H0.pattern", Replace(previous)), lr=0.01)
    before, after = trained.at(0).blocks[0].attn, trained.model.blocks[0].attn
    assert torch.equal(before.W_K, after.W_K)
    assert not torch.equal(before.W_V, after.W_V)


def test_a_clamp_stops_the_gradient_where_it_holds_and_scale_lets_it_through(run):
    clamped = run(TrainingIntervention("L0H0", Clamp(low=5.0, high=6.0)), folder="clamped")
    assert torch.equal(clamped.at(0).blocks[0].attn.W_V, clamped.model.blocks[0].attn.W_V)
    scaled = run(TrainingIntervention("L0H0", Scale(0.5)), folder="scaled")
    assert not torch.equal(scaled.at(0).blocks[0].attn.W_V, scaled.model.blocks[0].attn.W_V)


def test_an_edit_that_changes_nothing_gives_the_run_without_it_bit_for_bit(run):
    assert same_weights(run(folder="plain").model, run(TrainingIntervention("L1H0", Scale(1.0)), folder="one").model)


def test_the_receipts_count_each_step_of_the_span_and_say_how_much_was_changed(run, task):
    trained = run(
        TrainingIntervention("L0H0", Zero(), first_step=3, last_step=9),
        TrainingIntervention("L1.resid_pre@0,-1", Add(torch.full((8,), 0.25)), last_step=4),
    )
    receipts = trained.receipts
    assert receipts[["step", "site", "edit", "fired"]].values.tolist() == [
        [4, "L0H0", "Zero()", 2],
        [4, "L1.resid_pre@0,-1", receipts["edit"][1], 4],
        [8, "L0H0", "Zero()", 4],
        [12, "L0H0", "Zero()", 1],
    ]
    assert receipts["edit"][1].startswith("Add(values=tensor ")
    assert receipts["n_values"].tolist() == [fired * 4 * task.seq_len * 8 for fired in (2,)] + [4 * 4 * 2 * 8] + [
        fired * 4 * task.seq_len * 8 for fired in (4, 1)
    ]
    assert receipts["mean_abs_change"][1] == pytest.approx(0.25)
    assert (receipts["mean_abs_change"] > 0).all()
    assert Run.load(trained.path).receipts.equals(receipts)


def test_a_run_without_interventions_has_no_receipts_and_no_further_columns(run):
    trained = run()
    assert trained.receipts.empty
    assert not [name for name in trained.history if name.startswith("intervened")]
    assert not (trained.path / "receipts.csv").exists()


def test_the_history_has_the_figures_with_and_without_the_interventions(run, task):
    trained = run(TrainingIntervention("L0H0", Zero(), first_step=3, last_step=9), checkpoint_every=4)
    history = trained.history.set_index("step")
    config = trained.train_config
    prompts = task.sample(config.eval_prompts, seed=config.eval_seed)
    for step in (4, 8):
        model = trained.at(step)
        assert history["loss"][step] == evaluate(model, prompts, 4)["loss"]
        with intervene(model, [Intervention(Site.parse("L0H0"), Zero())], passes=2):
            assert history["intervened_loss"][step] == evaluate(model, prompts, 4)["loss"]
        assert history["intervened_loss"][step] != history["loss"][step]
    assert all(math.isnan(history["intervened_loss"][step]) for step in (0, 12))
    assert "intervened_accuracy" in history


def test_readouts_see_the_model_left_alone(run):
    def attached(model, _prompts):
        return sum(len(point._forward_hooks) for point in model.hook_dict.values())

    trained = run(TrainingIntervention("L0H0", Zero()), readouts={"attached": attached})
    assert trained.history["attached"].tolist() == [0.0] * 4


@pytest.mark.parametrize("failed_after", [0, 5, 10])
def test_a_run_that_goes_on_ends_bit_for_bit_like_one_that_never_stopped(run, failed_after):
    parts = (
        TrainingIntervention("L0H0", Zero(), first_step=2, last_step=7),
        TrainingIntervention("L1H0.pattern", Scale(0.5), first_step=6),
    )
    fields = {"freeze_during": {"blocks.1.attn.W_K": (3, 8)}, "lr": 0.01}
    whole, broken = run(*parts, folder="whole", **fields), run(*parts, folder="broken", **fields)
    for later in broken.steps:
        if later > failed_after:
            weights_path(broken.path, later).unlink()
            state_path(broken.path, later).unlink()
    continued = run(*parts, folder="broken", **fields)
    for step in whole.steps:
        for path in (weights_path, state_path):
            there, here = read_tensors(path(whole.path, step))[0], read_tensors(path(continued.path, step))[0]
            assert there.keys() == here.keys()
            assert all(torch.equal(there[name], here[name]) for name in there)
    histories = [each.history.drop(columns="seconds") for each in (whole, continued)]
    assert histories[0].equals(histories[1])
    assert whole.receipts.equals(continued.receipts)


def test_the_interventions_are_in_config_json_and_others_are_refused_by_name(run):
    one = TrainingIntervention("L0H0", Replace(torch.zeros(8)), first_step=2)
    record = run(one).record.interventions[0]
    assert (record.site, record.edit["kind"], record.first_step, record.last_step) == ("L0H0", "Replace", 2, 12)
    assert Run.load(run(one).path).record.interventions == (record,)
    for other in (
        (),
        (TrainingIntervention("L0H0", Replace(torch.ones(8)), first_step=2),),
        (TrainingIntervention("L0H0", Replace(torch.zeros(8)), first_step=3),),
        (TrainingIntervention("L1H0", Replace(torch.zeros(8)), first_step=2),),
        (one, one),
    ):
        with pytest.raises(InputError, match="holds another run: interventions"):
            run(*other)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainingIntervention("L0HO", Zero()), "'L0HO' is not understood"),
        (lambda: TrainingIntervention("L0H0", lambda z: z), "which config.json cannot hold: give one of Zero, Replace"),
        (lambda: TrainingIntervention("L0H0", Zero(), first_step=0), "first_step = 0"),
        (lambda: TrainingIntervention("L0H0", Zero(), first_step=5, last_step=4), "before it begins"),
    ],
)
def test_an_intervention_that_cannot_be_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("intervention", "message"),
    [
        (TrainingIntervention("L2H0", Zero()), "L2H0 does not exist"),
        (TrainingIntervention("L0.mlp", Zero()), "hook_mlp_out"),
        (TrainingIntervention("L0H0", Zero(), first_step=13), "first_step = 13 .* after the last of 12 steps"),
        (TrainingIntervention("L0H0", Zero(), last_step=13), "last_step = 13 .* after the last of 12 steps"),
        (TrainingIntervention("L0H0", Replace(torch.zeros(7)), first_step=9), r"shape \[7\], the activation"),
        (TrainingIntervention("L0H0", ProjectOut(torch.ones(7))), r"shape \[7\], the activation"),
        (TrainingIntervention("L0H0@12", Zero()), "position 12 of L0H0 does not exist"),
    ],
)
def test_an_intervention_that_does_not_fit_is_refused_before_a_folder_is_made(run, tmp_path, intervention, message):
    with pytest.raises(InputError, match=message):
        run(intervention)
    assert not (tmp_path / "run").exists()


def test_steps_at_which_nothing_could_learn_are_refused_before_a_folder_is_made(run, model_config, tmp_path):
    behind = replace(model_config, frozen=("unembed.*",))
    with pytest.raises(InputError, match="no trained parameter reaches the loss at step 4: intervene elsewhere"):
        run(TrainingIntervention("L1.resid_post", Zero(), first_step=4), config=behind)
    with pytest.raises(InputError, match="no parameter is trained at step 3: freeze fewer"):
        run(freeze_during={"*": (3, 4)})
    assert not (tmp_path / "run").exists()
    assert run(TrainingIntervention("L1.resid_post", Zero(), first_step=4)).steps[-1] == 12


def test_a_parameter_frozen_for_a_span_is_still_in_it_and_moves_before_and_after(run):
    trained = run(
        freeze_during={"embed.W_E": (3, 5), "blocks.0.attn.W_K": (2, 2)},
        freeze_until={"blocks.0.attn.W_K": 1},
        checkpoint_every=1,
        optimizer="sgd",
        lr=0.1,
        momentum=0.9,
    )

    def moved(name, step):
        return not torch.equal(trained.at(step).get_parameter(name), trained.at(step - 1).get_parameter(name))

    assert [moved("embed.W_E", step) for step in range(1, 8)] == [True, True, False, False, False, True, True]
    assert [moved("blocks.0.attn.W_K", step) for step in range(1, 5)] == [False, False, True, True]


def test_a_span_out_of_order_is_refused():
    assert TrainConfig(freeze_during={"embed.*": (2, 2)}).freeze_during == {"embed.*": (2, 2)}
    for span in ((0, 3), (4, 3)):
        with pytest.raises(InputError, match="expected a first step, then a last"):
            TrainConfig(freeze_during={"embed.*": span})


def test_a_span_that_ends_after_the_last_step_is_refused(run, tmp_path):
    with pytest.raises(InputError, match=r"freeze_during\['embed.W_E'\] = \(3, 13\) ends after the last of 12 steps"):
        run(freeze_during={"embed.W_E": (3, 13)})
    assert not (tmp_path / "run").exists()
    assert run(freeze_during={"embed.W_E": (3, 12)}).steps[-1] == 12


@pytest.mark.refusal
def test_an_intervention_that_is_not_in_a_list_is_refused(task, model_config, tmp_path):
    with pytest.raises(InputError, match="give a list, of one if need be"):
        train(task, model_config, out=tmp_path / "run", interventions=TrainingIntervention("L0H0", Zero()))
    assert not (tmp_path / "run").exists()


def test_receipts_that_are_missing_or_damaged_are_refused_by_name(run):
    trained = run(TrainingIntervention("L0H0", Zero()))
    path = trained.path / "receipts.csv"
    content = path.read_text()
    path.write_text(content.replace("Zero(),1", "Zero(),one"))
    with pytest.raises(InputError, match=r"receipts\.csv is no table of receipts"):
        _ = trained.receipts
    path.unlink()
    with pytest.raises(InputError, match=r"receipts\.csv is missing"):
        _ = trained.receipts
