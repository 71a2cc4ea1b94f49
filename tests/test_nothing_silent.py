"""Everything that an intervention could fail at in silence, in one table: what is refused, beside what works.

The table is run on our model and on one of TransformerLens' own, whichever the installed version has.
"""

from collections.abc import Callable
from importlib.metadata import version
from typing import NamedTuple

import pytest
import torch

from analyses import ablate
from interp import HookedTransformer, HookedTransformerConfig
from interp.edits import Add, ProjectOut, Replace, Scale
from interp.interventions import Intervention, Zero, intervene
from interp.model_adapter import HookedModel, activations, hooked, outputs
from interp.sites import Site
from tasks.errors import InputError
from tasks.prompts import Prompts

TRANSFORMER_LENS_3 = int(version("transformer-lens").partition(".")[0]) < 4
pytestmark = pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
SIZES = {"n_layers": 2, "d_model": 8, "n_heads": 2, "d_head": 4, "n_ctx": 6, "d_vocab": 5}
Z = "blocks.0.attn.hook_z"
PROMPTS = Prompts.from_tensors(
    torch.tensor([[0, 3, 1, 1, 4], [2, 2, 0, 4, 3]]),
    labels={"first": torch.tensor([[True] + 4 * [False]] * 2), "never": torch.zeros(2, 5, dtype=torch.bool)},
)


def ours() -> HookedModel:
    return HookedTransformer(HookedTransformerConfig(**SIZES, attn_only=True))


def foreign() -> HookedModel:
    if TRANSFORMER_LENS_3:
        from transformer_lens import HookedTransformer as TheirTransformer
        from transformer_lens import HookedTransformerConfig as TheirConfig

        return TheirTransformer(TheirConfig(**SIZES, attn_only=True, normalization_type=None, seed=0))
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge.sources import boot_native

    architecture = {"architecture": "TransformerLensNative", "attn_only": True, "normalization_type": None}
    return boot_native(TransformerBridgeConfig(**SIZES, **architecture, seed=0))


MODELS = {"ours": ours, "TransformerLens'": foreign}


@pytest.fixture(params=MODELS)
def model(request) -> HookedModel:
    return MODELS[request.param]()


def hook(function, name=Z) -> Callable[[HookedModel], object]:
    """One pass with a hook."""

    def run(model):
        with hooked(model, [(name, lambda activation, **_: function(activation))]):
            outputs(model, PROMPTS.inputs)

    return run


def edit(written, *edits, positions=None, mask=None, runs=1, passes=1) -> Callable[[HookedModel], object]:
    """A pass (or ``runs`` of them) with edits at a site."""

    def run(model):
        site = Site.parse(written, positions)
        with intervene(model, [Intervention(site, one, mask) for one in edits], passes=passes):
            for _ in range(runs):
                outputs(model, PROMPTS.inputs)

    return run


def analysis(*sites, **how) -> Callable[[HookedModel], object]:
    return lambda model: ablate(model, PROMPTS, sites or ["L0H0"], **how)


def observe(activation):
    return None


def same(activation):
    return activation


def written_in_place(activation):
    activation[0, 1] = 0


def written_through_data(activation):
    activation.data[0, 1] = 0


def doubled_in_place(activation):
    return activation.mul_(2)


def spoilt(value):
    def spoil(activation):
        activation[0, 0, 0] = value
        return activation

    return spoil


def always(value):
    def own_metric(outputs, prompts):
        return torch.full((len(prompts),), value)

    return own_metric


EVERYWHERE = torch.ones(2, 5, dtype=torch.bool)


class Row(NamedTuple):
    refused: Callable[[HookedModel], object]
    message: str
    works: Callable[[HookedModel], object]


TABLE = {
    "a misspelled hook name": Row(
        hook(same, "blocks.0.attn.hook_zz"), r"did you mean blocks\.0\.attn\.hook_z", hook(same)
    ),
    "a misspelled site": Row(edit("L0HO", Zero()), "'L0HO' is not understood", edit("L0H0", Zero())),
    "a component that does not exist": Row(
        edit("L0.mpl", Zero()), r"'L0\.mpl' is not understood", edit("L0.attn", Zero())
    ),
    "a part that this model lacks": Row(analysis("L0.mlp"), r"L0\.mlp does not exist", analysis("L0.attn")),
    "a layer out of range": Row(
        edit("L2H0", Zero()), "L2H0 does not exist: the model has 2 layers", edit("L1H0", Zero())
    ),
    "a head out of range": Row(edit("L0H2", Zero()), "L0 has heads H0 to H1", edit("L0H1", Zero())),
    "a position out of range": Row(
        edit("L0H0@5", Zero()), "position 5 of L0H0 does not exist: the prompts have 5", edit("L0H0@4", Zero())
    ),
    "no position": Row(
        edit("L0H0", Zero(), positions=[]), "positions of L0H0 is empty", edit("L0H0", Zero(), positions=[0])
    ),
    "a mask that holds nowhere": Row(
        edit("L0H0", Zero(), mask=~EVERYWHERE), "the mask of L0H0 holds nowhere", edit("L0H0", Zero(), mask=EVERYWHERE)
    ),
    "a mask of another shape": Row(
        edit("L0H0", Zero(), mask=EVERYWHERE[:1]), r"is \[1, 5\] where the prompts are \[2, 5\]", edit("L0H0", Zero())
    ),
    "a label that does not exist": Row(analysis(where="frist"), "'frist' is no label", analysis(where="first")),
    "a label that holds nowhere": Row(analysis(where="never"), "at no position", analysis(where="first")),
    "an edit without a return": Row(edit("L0H0", observe), "returned NoneType: return the edited", edit("L0H0", same)),
    "an edit of another shape": Row(
        edit("L0H0", lambda x: x[:1]), r"returned shape torch\.Size\(\[1, 5, 4\]\)", edit("L0H0", lambda x: x / 2)
    ),
    "a hook of a broadcastable shape": Row(
        hook(lambda x: x[:1]), r"returned shape \[1, 5, 2, 4\]", hook(lambda x: x / 2)
    ),
    "given values of a broadcastable shape": Row(
        edit("L0H0", Replace(torch.zeros(2, 1, 4))),
        r"has shape \[2, 1, 4\]",
        edit("L0H0", Replace(torch.zeros(2, 5, 4))),
    ),
    "a steering vector of another width": Row(
        edit("L0H0", Add(torch.ones(8))), r"what is added has shape \[8\]", edit("L0H0", Add(torch.ones(4)))
    ),
    "an edit of another dtype": Row(
        edit("L0H0", lambda x: x.double()), r"returned dtype torch\.float64", edit("L0H0", lambda x: x.double().float())
    ),
    "a vector of another dtype": Row(
        edit("L0H0", Add(torch.ones(4, dtype=torch.float64))), r"what is added is torch\.float64", edit("L0H0", same)
    ),
    "an edit on another device": Row(
        edit("L0H0", lambda x: x.to("meta")),
        "returned device meta in place of cpu",
        edit("L0H0", lambda x: x.to("cpu")),
    ),
    "a vector on another device": Row(
        edit("L0H0", ProjectOut(torch.ones(4)), Add(torch.ones(4, device="meta"))),
        "what is added is .* on meta",
        edit("L0H0", ProjectOut(torch.ones(4)), Add(torch.ones(4))),
    ),
    "an observer that wrote in place": Row(
        hook(written_in_place), "changed its tensor in place and returned None", hook(doubled_in_place)
    ),
    "an observer that wrote through .data": Row(
        hook(written_through_data), "changed its tensor in place and returned None", hook(observe)
    ),
    "more passes than planned": Row(
        edit("L0H0", Zero(), runs=2), "fired 2 times where 1 were planned", edit("L0H0", Zero(), runs=2, passes=2)
    ),
    "fewer passes than planned": Row(
        edit("L0H0", Zero(), passes=2), "fired 1 times where 2 were planned", edit("L0H0", Zero())
    ),
    "no pass at all": Row(edit("L0H0", Zero(), runs=0), "never fired", edit("L0H0", Zero())),
    "NaN written": Row(edit("L0H0", spoilt(torch.nan)), "wrote 1 values that are NaN", edit("L0H0", spoilt(7.0))),
    "infinity written": Row(edit("L0H0", spoilt(torch.inf)), "wrote 1 values that are NaN", edit("L0H0", spoilt(0.0))),
    "an infinite factor": Row(lambda _: Scale(float("inf")), "is not finite", edit("L0H0", Scale(2.0))),
    "a direction of zero": Row(
        lambda _: ProjectOut(torch.zeros(4)), r"norm 0\.0", edit("L0H0", ProjectOut(torch.ones(4)))
    ),
    "a loss that is NaN": Row(
        analysis(metric=always(torch.nan)),
        "2 of the 2 sums are not finite",
        analysis(metric=always(1.0)),
    ),
    "a loss that is infinite": Row(analysis(metric=always(torch.inf)), "sums are not finite", analysis(metric="loss")),
    "a mean over nothing": Row(
        analysis(method="mean", reference=PROMPTS[:0]),
        "a mean over nothing",
        analysis(method="mean", reference=PROMPTS),
    ),
    "no counterfactual": Row(analysis(method="counterfactual"), "carry no counterfactual", analysis(method="resample")),
    "no sites": Row(lambda model: ablate(model, PROMPTS, []), "sites is empty", analysis("L0H0")),
    "no prompts": Row(lambda model: ablate(model, PROMPTS[:0], ["L0H0"]), "0 prompts", analysis("L0H0")),
    "nothing scored": Row(
        lambda model: ablate(model, PROMPTS.score_only(~EVERYWHERE), ["L0H0"]),
        "has a scored position",
        analysis("L0H0"),
    ),
}


@pytest.mark.parametrize("what", TABLE)
def test_what_would_be_silent_is_refused_and_leaves_no_trace(what, model):
    row = TABLE[what]
    clean = outputs(model, PROMPTS.inputs)
    row.works(model)
    with pytest.raises(InputError, match=row.message) as refusal:
        row.refused(model)
    assert "\n" not in str(refusal.value)
    assert not any(point.fwd_hooks or point.bwd_hooks for point in model.hook_dict.values())
    assert torch.equal(outputs(model, PROMPTS.inputs), clean)


def test_a_filter_that_matches_nothing_is_refused():
    model = ours()

    def with_hooks(ending):
        hooks = [(lambda name: name.endswith(ending), lambda activation, **_: same(activation))]
        return model.run_with_hooks(PROMPTS.inputs, fwd_hooks=hooks)

    def with_cache(ending):
        return model.run_with_cache(PROMPTS.inputs, names_filter=lambda name: name.endswith(ending))

    for run in (with_hooks, with_cache):
        run("hook_z")
        with pytest.raises(InputError, match="the filter matches none of the model's"):
            run("hook_zz")


def model_with_switches() -> HookedModel:
    if TRANSFORMER_LENS_3:
        return foreign()
    from transformer_lens.model_bridge.sources import build_bridge_from_module
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=2, n_embd=8, n_head=2, n_positions=6, vocab_size=5, bos_token_id=0, eos_token_id=0)
    return build_bridge_from_module(GPT2LMHeadModel(config).eval(), "GPT2LMHeadModel", hf_config=config)


def test_a_point_that_is_switched_off_on_a_foreign_model_is_refused_and_its_setter_named():
    model = model_with_switches()
    zero_result = edit("L0H1.result", Zero())
    with pytest.raises(InputError, match=r"hook_result is switched off in this \w+: call model\.set_use_attn_result"):
        zero_result(model)
    clean = outputs(model, PROMPTS.inputs)
    model.set_use_attn_result(True)
    zero_result(model)
    assert torch.allclose(outputs(model, PROMPTS.inputs), clean, atol=1e-5)


@pytest.mark.skipif(TRANSFORMER_LENS_3, reason="a matter of TransformerLens 4's bridge")
@pytest.mark.parametrize(("make", "written"), [(foreign, "L0H0.scores"), (model_with_switches, "L0.resid_mid")])
def test_an_edit_that_a_foreign_model_would_not_follow_is_refused_and_reading_is_not(make, written):
    model = make()
    name = Site.parse(written).hook_name
    _, kept = activations(model, PROMPTS.inputs, [name])
    assert kept[name].isfinite().any()
    with pytest.raises(InputError, match="can only be read in this model"):
        edit(written, Scale(0.5))(model)
    assert hooks_left(model) == 0


def test_a_point_that_is_cut_off_is_refused():
    model = ours()
    with intervene(model, [Intervention(Site.parse("L0H0"), Zero())]):
        model(PROMPTS.inputs, stop_at_layer=1)
    with (
        pytest.raises(InputError, match="never fired: no forward pass reached it"),
        intervene(model, [Intervention(Site.parse("L1H0"), Zero())]),
    ):
        model(PROMPTS.inputs, stop_at_layer=1)


def test_an_effect_of_exactly_zero_is_reported(model):
    frame = ablate(model, PROMPTS, ["L0H0", "L1H1"], method=same).frame
    assert frame["delta"].tolist() == [0.0, 0.0]


def hooks_left(model) -> int:
    return sum(len(point.fwd_hooks) + len(point.bwd_hooks) for point in model.hook_dict.values())


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("place", ["hook", "edit", "block", "metric"])
def test_hooks_are_removed_whatever_happens(error, place, model):
    def fail(*_):
        raise error

    runs = {
        "hook": hook(fail),
        "edit": edit("L1H0", Zero(), fail),
        "metric": analysis("L0H0", metric=fail),
    }
    clean = outputs(model, PROMPTS.inputs)
    if place == "block":
        with pytest.raises(error), intervene(model, [Intervention(Site.parse("L0H0"), Zero())]):
            fail()
    else:
        with pytest.raises(error):
            runs[place](model)
    assert hooks_left(model) == 0
    assert torch.equal(outputs(model, PROMPTS.inputs), clean)


def test_nested_blocks_act_together_and_end_one_by_one(model):
    def logits():
        return outputs(model, PROMPTS.inputs)

    def zero(written):
        return intervene(model, [Intervention(Site.parse(written), Zero())])

    clean = logits()
    with zero("L0H0"):
        alone = logits()
    with intervene(model, [Intervention(Site.parse("L0H0"), Zero())], passes=2):
        with zero("L1H1"):
            both = logits()
        again = logits()
    with intervene(model, [Intervention(Site.parse(site), Zero()) for site in ("L0H0", "L1H1")]):
        together = logits()
    assert torch.equal(alone, again)
    assert torch.equal(both, together)
    assert not torch.equal(both, alone)
    assert torch.equal(logits(), clean)
