"""The oracle of every sweep: one full pass for each set of edits, with plain hooks that write index by index.

Models are of double precision, so that what differs by more than roundings cannot hide behind them.
"""

from itertools import combinations

import pytest
import torch

from analyses import ablate, patch_activations
from analyses.edited_passes import EditedPasses
from analyses.passes_from_z import can_go_on_from_z
from interp import HookedTransformer, HookedTransformerConfig
from interp.edits import Scale
from interp.interventions import Intervention, Replace, Zero
from interp.sites import Site
from tasks.errors import InputError
from tasks.prompts import Prompts

VARIANTS = {
    "attention only": {"attn_only": True},
    "no biases, no positions": {"attn_only": True, "use_biases": False, "positional_embedding_type": "none"},
    "attention only, LN": {"attn_only": True, "normalization_type": "LN"},
    "MLP": {"act_fn": "relu"},
    "MLP, LN": {"normalization_type": "LN", "act_fn": "gelu"},
    "MLP in the first layer only": {"mlp_layers": (0,)},
    "parallel": {"parallel_attn_mlp": True},
    "parallel, LN": {"parallel_attn_mlp": True, "normalization_type": "LN"},
    "linear memory": {"mlp_type": "linear"},
    "bidirectional": {"attn_only": True, "attention_dir": "bidirectional"},
    "query masked, linear attention": {"attn_only": True, "attention_dir": "query_masked", "attn_fn": "linear"},
    "one head": {"n_heads": 1},
}
each_variant = pytest.mark.parametrize("variant", VARIANTS)
EVERYWHERE = ["embed", "L0H0", "L2H0", "L0H0.q", "L1H0.k", "L2H0.v", "L1H0.scores", "L2H0.pattern", "L0H0.result"]
EVERYWHERE += ["L1.attn", "L1.mlp", "L0.resid_pre", "L1.resid_mid", "L2.resid_post"]


def model_of(variant):
    sizes = {"n_layers": 3, "d_model": 8, "n_ctx": 5, "n_heads": 2, "d_vocab": 6}
    model = HookedTransformer(HookedTransformerConfig(**(sizes | VARIANTS[variant])))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.3)
    return model.double()


@pytest.fixture
def inputs():
    return torch.randint(6, (7, 5), generator=torch.Generator().manual_seed(0))


def heads_of(model):
    return [Site(layer, "z", head) for layer in range(3) for head in range(model.cfg.n_heads)]


def hooked_pass(model, inputs, edits):
    """The outputs of a full pass in which (site, function, mask) are written, one hook for each."""

    def hook_of(site, function, mask):
        def write(activation, hook):
            activation = activation.clone()
            where = (slice(None),)
            if site.head is not None:
                by_head = site.component in ("scores", "pattern")
                where = (slice(None), site.head) if by_head else (slice(None), slice(None), site.head)
            after = function(activation[where])
            activation[where] = after if mask is None else torch.where(mask.unsqueeze(-1), after, activation[where])
            return activation

        return site.hook_name, write

    with torch.no_grad():
        return model.run_with_hooks(inputs, fwd_hooks=[hook_of(*edit) for edit in edits])


def assert_passes_agree(model, inputs, plans, mask=None):
    """``plans`` are lists of (site, function); sets that name the same pair share an Intervention."""
    passes = EditedPasses(model, [[site for site, _ in plan] for plan in plans])
    with torch.no_grad():
        clean = passes.clean(inputs)
        torch.testing.assert_close(clean, model(inputs), atol=1e-11, rtol=1e-11)
        made = {edit: Intervention(*edit, mask) for plan in plans for edit in plan}
        planned = [[made[edit] for edit in plan] for plan in plans]
        found = {number: each.clone() for number, each in passes.edited(planned)}
    assert sorted(found) == list(range(len(plans)))
    for number, plan in enumerate(plans):
        expected = hooked_pass(model, inputs, [(*edit, mask) for edit in plan])
        torch.testing.assert_close(found[number], expected, atol=1e-11, rtol=1e-11)
        assert [receipt.fired for receipt in passes.receipts[number]] == [1] * len(plan)
    return clean, found, passes


def halve(activation):
    return 0.5 * activation


def zero(activation):
    return torch.zeros_like(activation)


@each_variant
def test_every_edited_head_gives_what_one_hooked_pass_gives(variant, inputs):
    model = model_of(variant)
    clean, found, passes = assert_passes_agree(model, inputs, [[(site, zero)] for site in heads_of(model)])
    assert all(passes.from_z)
    assert min(float((each - clean).abs().max()) for each in found.values()) > 1e-3


@each_variant
def test_every_set_of_heads_gives_what_one_hooked_pass_gives(variant, inputs):
    model = model_of(variant)
    heads = heads_of(model)[:5]
    subsets = [each for size in range(1, len(heads) + 1) for each in combinations(heads, size)]
    plans = [[(site, zero) for site in subset] for subset in subsets]
    plans += [[(site, halve if k else zero) for k, site in enumerate(reversed(subset))] for subset in subsets[-4:]]
    _, found, _ = assert_passes_agree(model, inputs, plans)
    assert len({round(float(each.double().square().sum()), 6) for each in found.values()}) > len(subsets) - 2


@pytest.mark.parametrize("variant", ["attention only", "MLP, LN", "parallel"])
def test_masks_hold_where_they_hold(variant, inputs):
    model = model_of(variant)
    heads = heads_of(model)
    plans = [[(site, zero)] for site in heads] + [[(a, zero), (b, halve)] for a, b in combinations(heads, 2)]
    _, _, passes = assert_passes_agree(model, inputs, plans, mask=inputs > 2)
    n_written = int((inputs > 2).sum()) * model.cfg.d_head
    assert {receipt.n_values for receipts in passes.receipts for receipt in receipts} == {n_written}


@each_variant
def test_every_kind_of_site_gives_what_one_hooked_pass_gives(variant, inputs):
    model = model_of(variant)
    sites = [site for one in EVERYWHERE if (site := Site.parse(one)).hook_name in model.hook_dict]
    plans = [[(site, halve)] for site in sites]
    plans += [[(sites[1], halve), (sites[-1], halve)], [(sites[2], zero), (sites[0], halve)]]
    assert_passes_agree(model, inputs, plans)


def test_the_last_linear_layer_needs_no_pass(inputs):
    """Counted by the model's own forward: one clean pass, and no other for all sets of heads of the last layer."""
    model = model_of("attention only")
    passes = []
    original = model.forward

    def counted(*args, **kwargs):
        passes.append(kwargs)
        return original(*args, **kwargs)

    model.forward = counted
    heads = [Site(2, "z", head) for head in range(2)]
    edited = EditedPasses(model, [[heads[0]], [heads[1]], heads])
    with torch.no_grad():
        edited.clean(inputs)
        first, second = (Intervention(site, Zero()) for site in heads)
        assert len(list(edited.edited([[first], [second], [first, second]]))) == 3
    assert len(passes) == 1


def test_sets_that_begin_alike_share_the_passes_that_are_alike(inputs):
    """All 15 sets of 4 heads in 2 layers: attention runs once clean, and in layer 1 once for each set of layer 0."""
    model = HookedTransformer(
        HookedTransformerConfig(n_layers=2, d_model=8, n_ctx=5, n_heads=2, d_vocab=6, attn_only=True)
    )
    heads = [Site(layer, "z", head) for layer in range(2) for head in range(2)]
    sets = [[heads[k] for k in range(4) if chosen >> k & 1] for chosen in range(1, 16)]
    mixed = []
    for block in model.blocks:
        original = block.attn.mixed

        def counted(*args, _original=original, _layer=block):
            mixed.append(_layer)
            return _original(*args)

        block.attn.mixed = counted
    passes = EditedPasses(model, sets)
    one_each = {site: Intervention(site, Zero()) for site in heads}
    with torch.no_grad():
        passes.clean(inputs)
        assert len(mixed) == 2
        list(passes.edited([[one_each[site] for site in each] for each in sets]))
    # each of the 3 sets of layer 0: once stacked for its own outputs, once to edit layer 1 behind it
    assert len(mixed) - 2 <= 3 + 3


@each_variant
def test_what_changes_nothing_is_exactly_nothing_alone_and_beside_others(variant, inputs):
    model = model_of(variant)
    heads = heads_of(model)
    first, last = heads[0], heads[-1]
    same = Intervention(first, lambda z: z.clone())
    also_same = Intervention(last, Scale(1.0))
    real = Intervention(Site(1, "z", 0), Zero())
    plans = [[same], [also_same], [same, also_same], [real], [same, real], [real, also_same], [same, real, also_same]]
    passes = EditedPasses(model, [[one.site for one in plan] for plan in plans])
    with torch.no_grad():
        clean = passes.clean(inputs)
        found = {number: each.clone() for number, each in passes.edited(plans)}
    assert all(torch.equal(found[number], clean) for number in range(3))
    assert all(torch.equal(found[number], found[3]) for number in range(4, 7))
    assert not torch.equal(found[3], clean)


def test_hooks_that_are_there_already_are_not_passed_by(inputs):
    model = model_of("MLP, LN")
    free = EditedPasses(model, [[Site(1, "z", 0)]])
    assert free.from_z == [True]

    def double(out, hook):
        return 2 * out

    model.add_hook("blocks.2.hook_attn_out", double)
    assert not can_go_on_from_z(model, ())
    try:
        assert_passes_agree(model, inputs, [[(site, zero)] for site in heads_of(model)])
    finally:
        model.reset_hooks()
    handle = model.blocks[0].attn.register_forward_hook(double)
    assert not can_go_on_from_z(model, ())
    handle.remove()
    assert can_go_on_from_z(model, ())


def test_small_stacks_and_large_ones_give_the_same(inputs, monkeypatch):
    model = model_of("MLP, LN")
    plans = [[(site, zero)] for site in heads_of(model)]
    for at_once in (1, 70, 10_000):
        monkeypatch.setattr("analyses.passes_from_z._POSITIONS_AT_ONCE", at_once)
        assert_passes_agree(model, inputs, plans)


@pytest.mark.parametrize("hooked", [False, True])
def test_where_memory_is_short_every_pass_gives_its_own_back_before_the_next(hooked, inputs, monkeypatch):
    model, happened = model_of("MLP, LN"), []
    if hooked:
        model.add_hook("hook_embed", lambda *_, **__: None)
    assert can_go_on_from_z(model, ()) is not hooked
    unembed = model.unembed.forward

    def counted(stream):
        happened.append("pass")
        return unembed(stream)

    monkeypatch.setattr(model.unembed, "forward", counted)
    monkeypatch.setattr("analyses.edited_passes.return_freed_memory", lambda: happened.append("return"))
    sets = [[Site(2, "z", 0)], [Site(2, "resid_pre")], [Site(1, "z", 1), Site(2, "z", 0)], [Site(0, "z", 0)]]
    for stacked in (True, False):
        passes = EditedPasses(model, sets, stacked=stacked)
        happened.clear()
        with torch.no_grad():
            passes.clean(inputs)
            happened.clear()
            found = passes.edited([[Intervention(site, Zero()) for site in each] for each in sets])
            happened.extend("used" for _ in found)
        if stacked:
            assert "return" not in happened
        else:
            assert happened == ["pass", "used", "return"] * len(sets)


def test_positions_and_several_edits_of_one_head(inputs):
    model = model_of("MLP, LN")
    early, late = Site(1, "z", 0, positions=(0, 1)), Site(1, "z", 0, positions=(-1, 1))
    passes = EditedPasses(model, [[early, late]])
    with torch.no_grad():
        passes.clean(inputs)
        ((_, found),) = passes.edited([[Intervention(early, Zero()), Intervention(late, lambda z: z + 1)]])

    def write(z):
        z = z.clone()
        z[:, :2] = 0
        z[:, [4, 1]] += 1
        return z

    torch.testing.assert_close(found, hooked_pass(model, inputs, [(Site(1, "z", 0), write, None)]), atol=1e-11, rtol=0)


def test_wrong_edits_are_refused_on_the_short_way_too(inputs):
    model = model_of("attention only")
    site = Site(2, "z", 1)
    for edit, message in (
        (lambda z: z * float("nan"), "wrote 140 values that are NaN or infinite"),
        (lambda z: z[:1], "returned shape"),
        (print, "returned NoneType"),
        (Replace(torch.zeros(3)), "the replacement has shape"),
    ):
        passes = EditedPasses(model, [[site]])
        passes.clean(inputs)
        with torch.no_grad(), pytest.raises(InputError, match=message):
            list(passes.edited([[Intervention(site, edit)]]))
    for wrong, message in ((Site(3, "z", 0), "L3H0 does not exist"), (Site(0, "z", 2), "L0H2 does not exist")):
        with pytest.raises(InputError, match=message):
            EditedPasses(model, [[wrong]])
    with pytest.raises(InputError, match="position 5"):
        ablate(model, Prompts.from_tensors(inputs), ["L0H0@5"], method="zero")


@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("variant", ["attention only", "MLP, LN", "parallel, LN"])
def test_patched_heads_give_what_one_hooked_pass_gives(variant, direction, inputs):
    model = model_of(variant)
    prompts, other = Prompts.from_tensors(inputs), Prompts.from_tensors(inputs.flip(0))
    found = patch_activations(model, prompts, other, sites="z", positions=[1, -1], direction=direction).frame
    base, source = (prompts, other) if direction == "noising" else (other, prompts)
    before, counts = prompts.loss(hooked_pass(model, base.inputs, []))
    _, cache = model.run_with_cache(source.inputs)
    for row in found.itertuples():
        site = Site(int(row.layer), "z", int(row.head))

        def write(z, site=site, position=int(row.pos)):
            z = z.clone()
            z[:, position] = cache[site.hook_name][:, position, site.head]
            return z

        after, _ = prompts.loss(hooked_pass(model, base.inputs, [(site, write, None)]))
        assert row.delta == pytest.approx(float((after - before).sum() / counts.sum()), abs=1e-11)
