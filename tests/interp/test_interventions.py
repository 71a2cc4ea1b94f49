import pytest
import torch

from interp import HookedTransformer, HookedTransformerConfig
from interp.edits import Add, Clamp, ProjectOut, Scale
from interp.interventions import Intervention, Receipt, Replace, Zero, intervene
from interp.sites import Site
from tasks.errors import InputError


@pytest.fixture
def model():
    return HookedTransformer(HookedTransformerConfig(n_layers=2, d_model=8, n_ctx=6, d_vocab=5, n_heads=2))


@pytest.fixture
def tokens():
    return torch.tensor([[0, 3, 1, 1, 4], [2, 2, 0, 4, 3], [1, 0, 2, 4, 4]])


def at(written, edit, positions=None):
    return Intervention(Site.parse(written, positions), edit)


def activation(model, tokens, name):
    return model.run_with_cache(tokens, names_filter=name)[1][name]


@pytest.fixture
def z(model, tokens):
    return activation(model, tokens, "blocks.0.attn.hook_z")


def edited_z(model, tokens, *interventions):
    with intervene(model, interventions) as receipts:
        after = activation(model, tokens, "blocks.0.attn.hook_z")
    return after, receipts


def test_zeros_are_written_at_the_head_and_nowhere_else(model, tokens, z):
    after, _ = edited_z(model, tokens, at("L0H1", Zero()))
    assert torch.equal(after[:, :, 1], torch.zeros(3, 5, 4))
    assert torch.equal(after[:, :, 0], z[:, :, 0])


def test_zeros_are_written_at_the_positions_and_nowhere_else(model, tokens, z):
    after, _ = edited_z(model, tokens, at("L0H1", Zero(), positions=[0, -1]))
    expected = z.clone()
    expected[:, 0, 1] = expected[:, 4, 1] = 0
    assert torch.equal(after, expected)


@pytest.mark.parametrize("shape", [(4,), (5, 4), (3, 5, 4)], ids=["d", "pos d", "batch pos d"])
def test_given_values_are_written_exactly(model, tokens, z, shape):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    after, _ = edited_z(model, tokens, at("L0H0", Replace(values)))
    for b in range(3):
        for t in range(5):
            row = values if len(shape) == 1 else values[t] if len(shape) == 2 else values[b, t]
            assert torch.equal(after[b, t, 0], row)
    assert torch.equal(after[:, :, 1], z[:, :, 1])


@pytest.mark.parametrize("shape", [(3,), (1, 4), (3, 4), (3, 1, 4), (1, 5, 4), (3, 5, 4, 1)], ids=str)
def test_values_of_another_shape_are_refused_even_if_they_broadcast(model, tokens, shape):
    with pytest.raises(InputError, match=r"the replacement has shape \[.*\], the activation \[3, 5, 4\]"):
        edited_z(model, tokens, at("L0H0", Replace(torch.zeros(shape))))


def test_values_of_another_dtype_are_refused(model, tokens):
    with pytest.raises(InputError, match=r"the edit at L0H0 returned dtype torch\.float64 in place of torch\.float32"):
        edited_z(model, tokens, at("L0H0", Replace(torch.zeros(4, dtype=torch.float64))))


def test_an_edit_that_returns_nothing_or_another_shape_is_refused(model, tokens):
    def nothing(activation):
        activation.zero_()

    def first_prompt(activation):
        return activation[:1]

    for edit, message in ((nothing, "NoneType: return the edited Tensor"), (first_prompt, r"shape .*\[1, 5, 4\]")):
        with pytest.raises(InputError, match=f"the edit at L0H0 returned {message}"):
            edited_z(model, tokens, at("L0H0", edit))


def test_an_edit_in_place_that_returns_its_tensor_is_an_edit(model, tokens):
    def zero(activation):
        return activation.zero_()

    after, (receipt,) = edited_z(model, tokens, at("L0H0", zero))
    assert after[:, :, 0].abs().max() == 0
    assert receipt.mean_abs_change > 0


def test_several_sites_share_a_hook_point(model, tokens, z):
    after, receipts = edited_z(
        model, tokens, at("L0H0", Zero()), at("L0H1", Replace(torch.ones(4))), at("L0H0", Replace(torch.ones(4)), [2])
    )
    expected = z.clone()
    expected[:, :, 0] = 0
    expected[:, :, 1] = 1
    expected[:, 2, 0] = 1
    assert torch.equal(after, expected)
    assert [receipt.n_values for receipt in receipts] == [3 * 5 * 4, 3 * 5 * 4, 3 * 1 * 4]
    by_hand = [z[:, :, 0].abs().mean(), (1 - z[:, :, 1]).abs().mean(), 1.0]  # the third saw the zeros of the first
    assert [receipt.mean_abs_change for receipt in receipts] == pytest.approx([float(each) for each in by_hand])


@pytest.mark.parametrize("site", ["L1.mlp", "L0.attn", "L1.resid_pre", "L0.resid_mid", "L1.resid_post", "L1H0.q"])
def test_every_kind_of_site_is_written(model, tokens, site):
    site = Site.parse(site)
    before = activation(model, tokens, site.hook_name)
    with intervene(model, [Intervention(site, Zero())]) as (receipt,):
        after = activation(model, tokens, site.hook_name)
    where = site.index(before)
    assert after[where].abs().max() == 0
    assert receipt.mean_abs_change == pytest.approx(before[where].abs().mean().item())
    assert receipt.fired == 1


@pytest.mark.parametrize("edit", [Scale(0.5), Add(torch.ones(4)), ProjectOut(torch.ones(4)), Clamp(0.0), torch.tanh])
def test_every_edit_is_written_as_it_is_computed(model, tokens, z, edit):
    after, _ = edited_z(model, tokens, at("L0H1", edit))
    assert torch.equal(after[:, :, 1], edit(z[:, :, 1]))
    assert torch.equal(after[:, :, 0], z[:, :, 0])


def test_with_a_mask_the_edit_is_made_there_and_counted_there(model, tokens, z):
    mask = tokens == 4
    with intervene(model, [Intervention(Site.parse("L0H1"), Scale(3.0), mask)]) as (receipt,):
        after = activation(model, tokens, "blocks.0.attn.hook_z")
    for b in range(3):
        for t in range(5):
            assert torch.equal(after[b, t, 1], z[b, t, 1] * (3 if mask[b, t] else 1))
    assert torch.equal(after[:, :, 0], z[:, :, 0])
    assert receipt.n_values == 4 * int(mask.sum())
    assert receipt.mean_abs_change == pytest.approx(2 * z[:, :, 1][mask].abs().mean().item(), rel=1e-5)


def test_an_edit_with_a_mask_sees_every_position(model, tokens, z):
    def previous(activation):
        return activation.roll(1, dims=1)

    mask = torch.zeros(3, 5, dtype=torch.bool)
    mask[:, 3] = True
    with intervene(model, [Intervention(Site.parse("L0H1"), previous, mask)]):
        after = activation(model, tokens, "blocks.0.attn.hook_z")
    assert torch.equal(after[:, 3, 1], z[:, 2, 1])


def test_a_mask_that_cannot_be_is_refused(model, tokens):
    site, everywhere = Site.parse("L0H1"), torch.ones(3, 5, dtype=torch.bool)
    with pytest.raises(InputError, match="the mask of L0H1 holds nowhere"):
        Intervention(site, Zero(), ~everywhere)
    with pytest.raises(InputError, match="site L0H1@2 names positions and has a mask"):
        Intervention(Site.parse("L0H1@2"), Zero(), everywhere)
    with pytest.raises(InputError, match=r"the mask of L0H1 is \[2, 5\] where the prompts are \[3, 5\]"):
        edited_z(model, tokens, Intervention(site, Zero(), everywhere[:2]))


def embedded(model, tokens):
    return model.W_E[tokens], model.W_pos[:5].expand(3, -1, -1)


@pytest.mark.parametrize("site", ["embed", "pos_embed", "embed@1"])
def test_embeddings_are_written_before_the_layers(model, tokens, site):
    with intervene(model, [at(site, Zero())]) as (receipt,):
        resid = activation(model, tokens, "blocks.0.hook_resid_pre")
    tokens_part, positions_part = embedded(model, tokens)
    expected = {"embed": positions_part, "pos_embed": tokens_part}.get(site)
    if expected is None:
        expected = tokens_part + positions_part
        expected = torch.cat([expected[:, :1], positions_part[:, 1:2], expected[:, 2:]], dim=1)
    torch.testing.assert_close(resid, expected)
    assert receipt.fired == 1


def test_a_heads_result_is_written(model, tokens):
    with intervene(model, [at("L0H1.result", Zero())]):
        out = activation(model, tokens, "blocks.0.hook_attn_out")
    z = activation(model, tokens, "blocks.0.attn.hook_z")
    torch.testing.assert_close(out, z[:, :, 0] @ model.W_O[0, 0] + model.b_O[0])


def test_a_pattern_is_written_and_decides_what_is_read(model, tokens):
    def look_at_the_first(pattern):
        looks = torch.zeros_like(pattern)
        looks[..., 0] = 1
        return looks

    with intervene(model, [at("L0H1.pattern", look_at_the_first, positions=[-1])]) as (receipt,):
        after = activation(model, tokens, "blocks.0.attn.hook_z")
    v, z = activation(model, tokens, "blocks.0.attn.hook_v"), activation(model, tokens, "blocks.0.attn.hook_z")
    torch.testing.assert_close(after[:, -1, 1], v[:, 0, 1])
    torch.testing.assert_close(after[:, :-1], z[:, :-1])
    assert receipt.n_values == 3 * 5


def test_scores_may_be_taken_away_but_not_given_where_the_mask_hides(model, tokens):
    def look_nowhere_but_here(scores):
        here = torch.eye(scores.shape[-1], dtype=torch.bool)
        return scores.masked_fill(~here, -torch.inf)

    with intervene(model, [at("L0H0.scores", look_nowhere_but_here)]) as (receipt,):
        pattern = activation(model, tokens, "blocks.0.attn.hook_pattern")
    assert torch.equal(pattern[:, 0], torch.eye(5).expand(3, -1, -1))
    assert receipt.mean_abs_change == torch.inf
    with intervene(model, [at("L0H0.scores", lambda scores: scores)]) as (receipt,):
        model(tokens)
    assert receipt.mean_abs_change == 0.0
    with (
        pytest.raises(InputError, match="gave a score to 30 pairs of positions that the attention mask hides"),
        intervene(model, [at("L0H0.scores", Zero())]),
    ):
        model(tokens)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_an_edit_that_writes_what_is_no_number_is_refused(model, tokens, value):
    def spoil(activation):
        activation[0, 0, 0] = value
        return activation

    with pytest.raises(InputError, match="the edit at L0H0 wrote 1 values that are NaN or infinite"):
        edited_z(model, tokens, at("L0H0", spoil))


def test_a_receipt_of_an_edit_that_changes_nothing_says_so(model, tokens, z):
    after, (receipt,) = edited_z(model, tokens, at("L0H0", Replace(z[:, :, 0])))
    assert torch.equal(after, z)
    assert (receipt.fired, receipt.n_values, receipt.mean_abs_change) == (1, 60, 0.0)


def test_a_receipt_before_any_firing_is_empty():
    assert Receipt(Site.parse("L0H0")).mean_abs_change == 0.0


def test_receipts_add_up_over_passes(model, tokens, z):
    with intervene(model, [at("L0H0", Zero())], passes=2) as (receipt,):
        model(tokens[:1])
        model(tokens[1:])
    assert (receipt.fired, receipt.n_values) == (2, 60)
    assert receipt.mean_abs_change == pytest.approx(z[:, :, 0].abs().mean().item())
    total = Receipt(Site.parse("L0H0"))
    for _ in range(2):
        total.add(receipt)
    assert (total.fired, total.n_values) == (4, 120)
    assert total.mean_abs_change == pytest.approx(receipt.mean_abs_change)


@pytest.mark.parametrize(("runs", "passes"), [(2, 1), (1, 2)])
def test_an_intervention_that_fires_other_than_planned_is_refused(model, tokens, runs, passes):
    with (
        pytest.raises(InputError, match=f"at L0H0 fired {runs} times where {passes} were planned"),
        intervene(model, [at("L0H0", Zero())], passes=passes),
    ):
        _ = [model(tokens) for _ in range(runs)]


def test_an_intervention_that_never_fires_is_refused(model, tokens):
    with pytest.raises(InputError, match="never fired"), intervene(model, [at("L1H0", Zero())]):
        model(tokens, stop_at_layer=1)


@pytest.mark.parametrize(
    ("site", "message"),
    [("L2H0", "the model has 2 layers"), ("L0H2", "L0 has heads H0 to H1"), ("L2.mlp", "the model has 2 layers")],
)
def test_a_site_that_the_model_lacks_is_refused(model, tokens, site, message):
    with pytest.raises(InputError, match=message), intervene(model, [at(site, Zero())]):
        model(tokens)


def test_a_component_that_the_model_lacks_is_refused(tokens):
    attn_only = HookedTransformer(HookedTransformerConfig(n_layers=1, d_model=8, n_ctx=6, d_vocab=5, attn_only=True))
    with (
        pytest.raises(InputError, match=r"no hook point 'blocks\.0\.hook_mlp_out'"),
        intervene(attn_only, [at("L0.mlp", Zero())]),
    ):
        attn_only(tokens)


def test_a_position_outside_the_prompts_is_refused(model, tokens):
    with pytest.raises(InputError, match="position 5 of L0H0 does not exist: the prompts have 5 positions"):
        edited_z(model, tokens, at("L0H0", Zero(), positions=[5]))


def test_the_model_is_as_before_whatever_happens_in_the_block(model, tokens):
    clean = model(tokens)
    with pytest.raises(ZeroDivisionError), intervene(model, [at("L0H0", Zero())]):
        raise ZeroDivisionError
    with pytest.raises(InputError), intervene(model, [at("L0H0", Replace(torch.zeros(9)))]):
        model(tokens)
    with intervene(model, [at("L0H0", Zero())]):
        assert not torch.equal(model(tokens), clean)
    assert torch.equal(model(tokens), clean)


def test_an_interrupt_leaves_no_hook_behind(model, tokens):
    def interrupted(*_):
        raise KeyboardInterrupt

    for edit, run in ((Zero(), interrupted), (interrupted, model)):
        with pytest.raises(KeyboardInterrupt), intervene(model, [at("L0H0", Zero()), at("L1H1", edit)]):
            run(tokens)
        assert not any(point.fwd_hooks for point in model.hook_dict.values())
        assert model.context_level == 0


def test_the_inner_of_two_nested_blocks_edits_what_the_outer_one_wrote(model, tokens):
    ones, thrice = at("L0H0", Replace(torch.ones(4))), at("L0H0", Scale(3.0))
    with intervene(model, [ones]) as outer, intervene(model, [thrice]) as inner:
        both = activation(model, tokens, "blocks.0.attn.hook_z")
    assert torch.equal(both[:, :, 0], torch.full((3, 5, 4), 3.0))
    assert inner[0].mean_abs_change == 2.0
    assert outer[0].fired == 1


def test_nested_interventions_both_act(model, tokens, z):
    with intervene(model, [at("L0H0", Zero())]), intervene(model, [at("L0H1", Zero())]):
        after = activation(model, tokens, "blocks.0.attn.hook_z")
    assert after.abs().max() == 0


def test_gradients_flow_through_an_edit(model, tokens):
    values = torch.zeros(4, requires_grad=True)
    with intervene(model, [at("L0H0", Replace(values))]):
        model(tokens).square().sum().backward()
    assert values.grad is not None
    assert values.grad.abs().sum() > 0
