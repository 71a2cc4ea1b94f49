"""Each way in which a hook could silently do nothing is refused, beside the way that works."""

import functools

import pytest
import torch
from transformer_lens.hook_points import HookPoint

from interp import HookedTransformer, HookedTransformerConfig
from interp.hook_gate import GuardedHook, matching_points
from tasks.errors import InputError

Z = "blocks.0.attn.hook_z"
LAST = "blocks.1.hook_resid_post"


@pytest.fixture
def model():
    return HookedTransformer(HookedTransformerConfig(n_layers=2, d_model=8, n_ctx=6, d_vocab=5, n_heads=2))


@pytest.fixture
def tokens():
    return torch.tensor([[0, 3, 1, 1, 4], [2, 2, 0, 4, 3]])


def halve(activation, hook):
    return activation / 2


def observe(activation, hook):
    return None


def watched(model):
    return [name for name, point in model.hook_dict.items() if point._forward_hooks or point._backward_hooks]


def test_an_edit_is_written_and_leaves_no_hook_behind(model, tokens):
    clean = model(tokens)
    with model.hooks(fwd_hooks=[(LAST, halve)]):
        halved = model(tokens)
    torch.testing.assert_close(halved, clean / 2)  # b_U is zero
    assert torch.equal(model(tokens), clean)
    assert watched(model) == []


def test_an_observer_changes_nothing(model, tokens):
    clean = model(tokens)
    assert torch.equal(model.run_with_hooks(tokens, fwd_hooks=[(Z, observe)]), clean)


def test_a_filter_reaches_every_point_that_it_matches(model, tokens):
    seen = []

    def keep(activation, hook):
        seen.append(hook.name)

    model.run_with_hooks(tokens, fwd_hooks=[(lambda name: name.endswith("hook_z"), keep)])
    assert seen == ["blocks.0.attn.hook_z", "blocks.1.attn.hook_z"]


def enter_hooks(model, direction, name):
    with model.hooks(**{f"{direction}_hooks": [(name, halve)]}):
        pass


ENTRIES = {
    "hooks": lambda model, _, name: enter_hooks(model, "fwd", name),
    "backward hooks": lambda model, _, name: enter_hooks(model, "bwd", name),
    "run_with_hooks": lambda model, tokens, name: model.run_with_hooks(tokens, fwd_hooks=[(name, halve)]),
    "add_hook": lambda model, _, name: model.add_hook(name, halve),
    "run_with_cache": lambda model, tokens, name: model.run_with_cache(tokens, names_filter=name),
    "list of names": lambda model, tokens, name: model.run_with_cache(tokens, names_filter=[Z, name]),
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_misspelled_name_is_refused_with_the_nearest(model, tokens, entry):
    name = "blocks.0.attn.hook_zz"
    with pytest.raises(
        InputError, match=r"no hook point 'blocks\.0\.attn\.hook_zz': did you mean blocks\.0\.attn\.hook_z"
    ):
        ENTRIES[entry](model, tokens, name)
    assert watched(model) == []


def test_a_name_like_no_other_is_refused_with_the_place_to_look(model):
    with pytest.raises(InputError, match=r"see model\.hook_dict"):
        matching_points(model.hook_dict, "xyz")


@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if entry != "list of names"])
def test_a_filter_that_matches_nothing_is_refused(model, tokens, entry):
    def nothing(name):
        return name.endswith("hook_zz")

    with pytest.raises(InputError, match=r"the filter matches none of the model's \d+ hook points"):
        ENTRIES[entry](model, tokens, nothing)


@pytest.mark.refusal
def test_a_name_that_is_neither_string_nor_filter_is_refused(model):
    with pytest.raises(InputError, match="named by a string or a filter on names, not by 3"):
        model.add_hook(3, halve)


BAD_EDITS = {
    "broadcastable shape": (lambda x: x[:1], r"returned shape \[1, 5, 2, 4\] in place of \[2, 5, 2, 4\]"),
    "scalar": (lambda x: x.sum(), r"returned shape \[\] in place of \[2, 5, 2, 4\]"),
    "other shape": (lambda x: x.flatten(2), r"returned shape \[2, 5, 8\]"),
    "other dtype": (lambda x: x.double(), r"returned dtype torch\.float64 in place of torch\.float32"),
    "number": (lambda _: 0.0, "returned float: return a Tensor, or None"),
    "tuple": (lambda x: (x, x), "returned tuple: return a Tensor, or None"),
    "other device": (lambda x: x.to("meta"), "returned device meta in place of cpu"),
}


@pytest.mark.parametrize("kind", BAD_EDITS)
def test_an_edit_unlike_its_input_is_refused(model, tokens, kind):
    change, message = BAD_EDITS[kind]

    def edit(activation, hook):
        return change(activation)

    with pytest.raises(InputError, match=rf"the hook on blocks\.0\.attn\.hook_z {message}"):
        model.run_with_hooks(tokens, fwd_hooks=[(Z, edit)])
    assert watched(model) == []


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_an_observer_that_edits_in_place_is_refused(model, tokens, mode):
    def zero(activation, hook):
        activation.detach()[:, 1] = 0

    def zero_and_return(activation, hook):
        activation.detach()[:, 1] = 0
        return activation

    with mode():
        edited = model.run_with_hooks(tokens, fwd_hooks=[(Z, zero_and_return)])
        assert not torch.equal(edited, model(tokens))
        assert torch.equal(model.run_with_hooks(tokens, fwd_hooks=[(Z, observe)]), model(tokens))
        with pytest.raises(InputError, match=r"hook_z changed its tensor in place and returned None: edit a clone"):
            model.run_with_hooks(tokens, fwd_hooks=[(Z, zero)])


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_an_observer_that_edits_behind_the_version_counter_is_refused(model, tokens, mode):
    def through_data(activation, hook):
        activation.data[:, 1] = 0

    def through_numpy(activation, hook):
        activation.detach().numpy()[0, 0] += 1

    def permute(activation, hook):
        activation.data[:] = activation.data[[1, 0]]

    with mode():
        for edit in (through_data, through_numpy, permute, functools.partial(through_data)):
            with pytest.raises(InputError, match="changed its tensor in place and returned None"):
                model.run_with_hooks(tokens, fwd_hooks=[(Z, edit)])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_an_observer_of_what_is_no_number_is_not_accused(model, tokens, mode):
    with torch.no_grad():
        model.blocks[0].attn.W_V[0] = torch.nan
    seen = []

    def keep(activation, hook):
        seen.append(activation.isnan().any())

    with mode():
        model.run_with_hooks(tokens, fwd_hooks=[(Z, keep)])
    assert seen == [True]


def test_a_residual_given_under_inference_mode_is_watched_as_well(model, tokens):
    resid = model(tokens, stop_at_layer=1).detach()

    def zero(activation, hook):
        activation[:] = 0

    with torch.inference_mode(), pytest.raises(InputError, match="changed its tensor in place"):
        model.run_with_hooks(resid, start_at_layer=1, fwd_hooks=[("blocks.1.hook_resid_pre", zero)])


def test_a_hook_that_the_pass_does_not_reach_is_refused(model, tokens):
    model.run_with_hooks(tokens, stop_at_layer=1, fwd_hooks=[(Z, observe)])
    with pytest.raises(InputError, match=r"blocks\.1\.hook_resid_post never fired: no forward pass reached it"):
        model.run_with_hooks(tokens, stop_at_layer=1, fwd_hooks=[(LAST, observe)])
    with pytest.raises(InputError, match=r"hook_z never fired"), model.hooks(fwd_hooks=[(Z, observe)]):
        pass
    with pytest.raises(InputError, match=r"never fired"):
        model.run_with_cache(tokens, stop_at_layer=1, names_filter=LAST)
    assert watched(model) == []


def test_a_backward_hook_that_no_gradient_reaches_is_refused(model, tokens):
    gradients = []

    def keep(gradient, hook):
        gradients.append(gradient)

    with model.hooks(bwd_hooks=[(Z, keep)]):
        model(tokens).sum().backward()
    assert gradients[0].shape == (2, 5, 2, 4)
    with (
        pytest.raises(InputError, match="never fired: no gradient reached it"),
        model.hooks(bwd_hooks=[(Z, keep)]),
    ):
        model(tokens)
    frozen = HookedTransformer(HookedTransformerConfig(n_layers=1, d_model=4, n_ctx=6, d_vocab=5, frozen=("*embed*",)))
    with (
        pytest.raises(InputError, match="hook_embed never fired: no gradient reached it"),
        frozen.hooks(bwd_hooks=[("hook_embed", keep)]),
    ):
        frozen(tokens).sum().backward()


def test_a_gradient_edit_is_written_and_checked(model, tokens):
    def doubled(gradient, hook):
        return (gradient * 2,)

    def summed(gradient, hook):
        return gradient.sum(0, keepdim=True)

    def gradient_of_W_E(**hooks):
        model.zero_grad()
        with model.hooks(**hooks):
            model(tokens).square().sum().backward()
        return model.W_E.grad.clone()

    clean = gradient_of_W_E()
    torch.testing.assert_close(gradient_of_W_E(bwd_hooks=[("hook_embed", doubled)]), 2 * clean)
    with pytest.raises(InputError, match=r"the hook on hook_embed returned shape \[1, 5, 8\]"):
        gradient_of_W_E(bwd_hooks=[("hook_embed", summed)])


def test_hooks_are_removed_after_an_exception(model, tokens):
    with pytest.raises(ZeroDivisionError), model.hooks(fwd_hooks=[(Z, halve)], bwd_hooks=[(LAST, observe)]):
        raise ZeroDivisionError
    assert watched(model) == []

    def fail(activation, hook):
        raise ZeroDivisionError

    clean = model(tokens)
    with pytest.raises(ZeroDivisionError):
        model.run_with_hooks(tokens, fwd_hooks=[(LAST, halve), (Z, fail)])
    assert watched(model) == []
    assert torch.equal(model(tokens), clean)


def test_an_exception_of_the_block_is_not_hidden_by_a_hook_that_did_not_fire(model):
    with pytest.raises(ZeroDivisionError), model.hooks(fwd_hooks=[(Z, halve)]):
        raise ZeroDivisionError


def test_nested_hooks_are_removed_level_by_level(model, tokens):
    clean = model(tokens)
    with model.hooks(fwd_hooks=[(LAST, halve)]):
        with model.hooks(fwd_hooks=[(LAST, halve)]):
            quarter = model(tokens)
        half = model(tokens)
        _, cache = model.run_with_cache(tokens)
        still_half = model(tokens)
    torch.testing.assert_close(quarter, clean / 4)
    torch.testing.assert_close(half, clean / 2)
    assert torch.equal(still_half, half)
    torch.testing.assert_close(cache[LAST] @ model.W_U, clean / 2, atol=1e-5, rtol=0)
    assert torch.equal(model(tokens), clean)


def test_an_added_hook_stays_until_reset_and_through_temporary_ones(model, tokens):
    clean = model(tokens)
    model.add_hook(LAST, halve)
    model.run_with_hooks(tokens, fwd_hooks=[(LAST, observe)])
    torch.testing.assert_close(model(tokens), clean / 2)
    model.reset_hooks()
    assert torch.equal(model(tokens), clean)


def test_hooks_on_one_point_act_in_their_order(model, tokens):
    def add_one(activation, hook):
        return activation + 1

    clean = model(tokens, stop_at_layer=2)
    for hooks, expected in (([halve, add_one], clean / 2 + 1), ([add_one, halve], (clean + 1) / 2)):
        edited = model.run_with_hooks(tokens, stop_at_layer=2, fwd_hooks=[(LAST, hook) for hook in hooks])
        torch.testing.assert_close(edited, expected)


def test_a_guarded_hook_counts_its_firings():
    hook = GuardedHook("somewhere", observe)
    for _ in range(3):
        hook(torch.zeros(2), HookPoint())
    assert hook.fired == 3
