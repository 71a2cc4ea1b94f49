from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from analyses import patch_activations, patch_paths
from interp import HookedTransformer, HookedTransformerConfig
from interp.constructions.induction import induction_circuit
from interp.sites import Site
from tasks import BigramICL, BigramStatistics
from tasks.errors import InputError
from tasks.prompts import Prompts

N_PROMPTS, N_POS, N_VOCAB = 6, 5, 6
VARIANTS = {
    "attention only": {"attn_only": True},
    "MLP": {},
    "LN, MLP": {"normalization_type": "LN"},
    "LNPre, attention only": {"normalization_type": "LNPre", "attn_only": True},
    "LN, parallel": {"normalization_type": "LN", "parallel_attn_mlp": True},
}


def random_model(**options) -> HookedTransformer:
    sizes = {"n_layers": 3, "d_model": 8, "n_ctx": N_POS, "n_heads": 2, "d_vocab": N_VOCAB, "act_fn": "gelu"}
    model = HookedTransformer(HookedTransformerConfig(**(sizes | options))).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64) * 0.5)
    return model


def random_prompts(seed=0) -> Prompts:
    generator = torch.Generator().manual_seed(seed)
    return Prompts.from_tensors(torch.randint(N_VOCAB, (N_PROMPTS, N_POS), generator=generator))


@pytest.fixture(params=VARIANTS)
def model(request):
    return random_model(**VARIANTS[request.param])


@pytest.fixture
def prompts():
    return replace(random_prompts(), counterfactual=random_prompts(seed=9))


def outputs_of(model, prompts, **how):
    """The logits of the base run, of the other run, and of every path, each as a list; and the result."""
    seen = []

    def keep(outputs, prompts):
        seen.append(outputs)
        return outputs.mean(dim=(1, 2)).float()

    result = patch_paths(model, prompts, metric=keep, **how)
    return seen[0], seen[1], seen[2:], result


# The model without hooks, from its weights, and the definition of a path without a second pass: what a receiver reads
# is the residual stream of the base run, plus what the sender writes more, plus what MLPs in between make of that.


def normalised(x, norm):
    if isinstance(norm, torch.nn.Identity):
        return x
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + norm.eps).sqrt()
    return x if norm.w is None else x * norm.w + norm.b


def mlp_of(block, x):
    hidden = F.gelu(normalised(x, block.ln2) @ block.mlp.W_in + block.mlp.b_in)
    return hidden @ block.mlp.W_out + block.mlp.b_out


def read_by(block, x, letter, head):
    attn = block.attn
    weight, bias = (getattr(attn, f"{kind}_{letter.upper()}")[head] for kind in "Wb")
    return normalised(x, block.ln1) @ weight + bias


def run_from_weights(model, tokens, given=None):
    """Logits, and every activation by (layer, component, head); ``given`` replaces some."""
    given, seen = given or {}, {}

    def through(key, value):
        seen[key] = given.get(key, value)
        return seen[key]

    embed = through((None, "embed", None), model.W_E[tokens])
    resid = embed + model.W_pos[: tokens.shape[1]]
    hidden = torch.ones(tokens.shape[1], tokens.shape[1]).triu(1).bool()
    for layer, block in enumerate(model.blocks):
        before = through((layer, "resid_pre", None), resid)
        attn_out = block.attn.b_O
        for head in range(model.cfg.n_heads):
            q, k, v = (through((layer, letter, head), read_by(block, before, letter, head)) for letter in "qkv")
            scores = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).masked_fill(hidden, -torch.inf)
            z = through((layer, "z", head), scores.softmax(-1) @ v)
            attn_out = attn_out + z @ block.attn.W_O[head]
        resid = before + attn_out
        if block.has_mlp:
            reads = through((layer, "mlp_in", None), before if model.cfg.parallel_attn_mlp else resid)
            resid = resid + through((layer, "mlp", None), mlp_of(block, reads))
    final = through(("final", "resid", None), resid)
    return normalised(final, model.ln_final) @ model.W_U + model.b_U, seen


def written_more(model, key, base, other):
    """s′ − s, what a sender writes more to the residual stream in the other run than in the base run."""
    layer, component, head = key
    change = other[key] - base[key]
    return change @ model.W_O[layer, head] if component == "z" else change


def changes_on_the_way(model, key, base, other, through):
    """The change of the residual stream at every place that reads it, if only the sender changes."""
    layer, component, _ = key
    parallel = model.cfg.parallel_attn_mlp
    change = written_more(model, key, base, other)
    at = {}
    for later, block in enumerate(model.blocks):
        here = layer is not None and later == layer
        if (layer is None or later >= layer) and not here:
            at[later, "attention"] = change
        if block.has_mlp:
            reads_it = (layer is None or later > layer) or (here and component == "z" and not parallel)
            if reads_it:
                at[later, "mlp"] = change
                if through == "mlps":
                    reads = base[later, "mlp_in", None]
                    change = change + mlp_of(block, reads + change) - mlp_of(block, reads)
    at["output"] = change
    return at


def by_definition(model, prompts, sender, receiver, through):
    """Logits of one path."""
    with torch.no_grad():
        _, base = run_from_weights(model, prompts.inputs)
        _, other = run_from_weights(model, prompts.counterfactual.inputs)
        at = changes_on_the_way(model, sender, base, other, through)
        if receiver == "output":
            return normalised(base["final", "resid", None] + at["output"], model.ln_final) @ model.W_U + model.b_U
        layer, component, head = receiver
        block = model.blocks[layer]
        if component == "mlp":
            got = mlp_of(block, base[layer, "mlp_in", None] + at[layer, "mlp"])
        else:
            got = read_by(block, base[layer, "resid_pre", None] + at[layer, "attention"], component, head)
        return run_from_weights(model, prompts.inputs, {receiver: got})[0]


def key_of(written):
    if written == "output":
        return "output"
    site = Site.parse(written)
    return site.layer, site.component, site.head


def test_the_oracle_is_the_model(model, prompts):
    with torch.no_grad():
        logits, seen = run_from_weights(model, prompts.inputs)
        torch.testing.assert_close(logits, model(prompts.inputs), atol=1e-12, rtol=0)
    assert torch.equal(run_from_weights(model, prompts.inputs, seen)[0], logits)


@pytest.mark.parametrize("through", ["direct", "mlps"])
def test_every_path_is_what_the_definition_says(model, prompts, through):
    parts = [] if model.cfg.attn_only else ["mlp"]
    how = {"senders": ["z", "embed", *parts], "receivers": ["q", "k", "v", *parts, "output"], "through": through}
    _, _, patched, result = outputs_of(model, prompts, **how)
    assert len(patched) == len(result.frame)
    for row, outputs in zip(result.frame.itertuples(), patched, strict=True):
        sender, receiver = key_of(row.sender), key_of(row.receiver)
        expected = by_definition(model, prompts, sender, receiver, through)
        torch.testing.assert_close(outputs, expected, atol=1e-10, rtol=0, msg=f"{row.sender} to {row.receiver}")


def test_there_is_a_row_for_every_pair_that_a_path_joins(prompts):
    for options, same_layer in (({}, True), ({"parallel_attn_mlp": True}, False)):
        frame = patch_paths(
            random_model(**options), prompts, senders=["z", "mlp"], receivers=["q", "mlp", "output"]
        ).frame
        expected = set()
        for layer, head in product(range(3), range(2)):
            for later, one in product(range(layer + 1, 3), range(2)):
                expected |= {(f"L{layer}H{head}", f"L{later}H{one}.q"), (f"L{layer}.mlp", f"L{later}H{one}.q")}
            for later in range(layer if same_layer else layer + 1, 3):
                expected.add((f"L{layer}H{head}", f"L{later}.mlp"))
            expected |= {(f"L{layer}.mlp", f"L{later}.mlp") for later in range(layer + 1, 3)}
            expected |= {(f"L{layer}H{head}", "output"), (f"L{layer}.mlp", "output")}
        assert sorted(zip(frame["sender"], frame["receiver"], strict=True)) == sorted(expected)


def test_a_sender_at_some_positions_changes_no_more(prompts):
    model = random_model(normalization_type="LN")
    _, _, patched, _ = outputs_of(model, prompts, senders=["L0H1@1,-1"], receivers=["L2H0.k", "output"])
    with torch.no_grad():
        _, base = run_from_weights(model, prompts.inputs)
        _, other = run_from_weights(model, prompts.counterfactual.inputs)
    change = written_more(model, (0, "z", 1), base, other)
    change[:, [0, 2, 3]] = 0
    got = read_by(model.blocks[2], base[2, "resid_pre", None] + change, "k", 0)
    expected = [run_from_weights(model, prompts.inputs, {(2, "k", 0): got})[0]]
    expected.append(normalised(base["final", "resid", None] + change, model.ln_final) @ model.W_U + model.b_U)
    for mine, theirs in zip(patched, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=0)


# Identities.


def all_senders(model):
    parts = [] if model.cfg.attn_only else [f"L{layer}.mlp" for layer in range(3)]
    return ["embed", *(f"L{layer}H{head}" for layer in range(3) for head in range(2)), *parts]


def test_all_senders_together_give_a_receiver_what_the_other_run_gives_it(model, prompts):
    receivers = ["L2H0.q", "L2H1.k", "L2H0.v"]
    senders = [one for one in all_senders(model) if "L2" not in one]
    _, _, patched, _ = outputs_of(model, prompts, senders=[senders], receivers=[*receivers, receivers])
    seen = []

    def keep(outputs, prompts):
        seen.append(outputs)
        return outputs[:, 0, 0].float()

    patch_activations(model, prompts, sites=[*receivers, receivers], metric=keep)
    for mine, theirs in zip(patched, seen[2:], strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=0)


def test_all_senders_together_give_the_output_of_the_other_run(model, prompts):
    _, other, (patched,), result = outputs_of(model, prompts, senders=[all_senders(model)], receivers="output")
    torch.testing.assert_close(patched, other, atol=1e-10, rtol=0)
    assert result.frame["sender"].tolist() == ["+".join(all_senders(model))]


def test_without_normalisation_direct_effects_on_the_logits_sum_to_the_whole_difference(prompts):
    model = random_model()
    base, other, patched, _ = outputs_of(model, prompts, senders=all_senders(model), receivers="output")
    torch.testing.assert_close(sum(one - base for one in patched), other - base, atol=1e-10, rtol=0)


def test_in_a_linear_network_effects_through_values_sum_to_that_of_the_values(prompts):
    model = random_model(attn_only=True)
    senders = [one for one in all_senders(model) if "L2" not in one]
    base, _, patched, _ = outputs_of(model, prompts, senders=senders, receivers="L2H1.v")
    seen = []

    def keep(outputs, prompts):
        seen.append(outputs)
        return outputs[:, 0, 0].float()

    patch_activations(model, prompts, sites=["L2H1.v"], metric=keep)
    torch.testing.assert_close(sum(one - base for one in patched), seen[2] - base, atol=1e-10, rtol=0)


def test_without_mlps_it_does_not_matter_whether_they_pass_changes_on(prompts):
    model = random_model(attn_only=True, normalization_type="LN")
    frames = [patch_paths(model, prompts, through=through).frame for through in ("direct", "mlps")]
    assert frames[0]["delta"].tolist() == frames[1]["delta"].tolist()


@pytest.mark.parametrize(
    ("variant", "through"), [("attention only", "direct"), ("LN, MLP", "mlps"), ("LN, parallel", "direct")]
)
def test_a_run_patched_with_itself_changes_nothing_exactly(variant, through, prompts):
    model = random_model(**VARIANTS[variant])
    parts = [] if model.cfg.attn_only else ["mlp"]
    how = {"senders": ["z", "attn", "embed", *parts], "receivers": ["q", "k", "v", *parts, "output"]}
    result = patch_paths(model.float(), prompts, prompts, **how, through=through)
    assert (result.frame["delta"] == 0.0).all()
    assert result.frame["effect"].isna().all()
    assert {receipt.mean_abs_change for receipts in result.receipts for receipt in receipts} == {0.0}


def test_denoising_is_noising_with_the_runs_exchanged(prompts):
    model, other = random_model(normalization_type="LN"), prompts.counterfactual
    frame = patch_paths(model, prompts, direction="denoising").frame
    answered = replace(prompts, inputs=other.inputs, counterfactual=replace(other, inputs=prompts.inputs))
    exchanged = patch_paths(model, answered).frame
    for column in ("baseline", "other", "patched", "delta", "effect", "ci_low", "ci_high"):
        np.testing.assert_allclose(frame[column], exchanged[column], atol=1e-9, err_msg=column)


def test_the_batch_size_does_not_matter(prompts):
    model = random_model(normalization_type="LN")
    whole, batched = (patch_paths(model, prompts, batch_size=size) for size in (512, 4))
    numbers = ["baseline", "other", "delta", "ci_low", "ci_high"]
    np.testing.assert_allclose(batched.frame[numbers], whole.frame[numbers], atol=1e-9)
    for mine, theirs in zip(batched.receipts, whole.receipts, strict=True):
        assert [one.mean_abs_change for one in mine] == pytest.approx([one.mean_abs_change for one in theirs])


def test_a_receipt_says_how_far_the_path_moved_what_is_received(prompts):
    model = random_model()
    result = patch_paths(model, prompts, senders=["L0H0"], receivers=["L1H1.k", "output"])
    with torch.no_grad():
        _, base = run_from_weights(model, prompts.inputs)
        _, other = run_from_weights(model, prompts.counterfactual.inputs)
        moved = written_more(model, (0, "z", 0), base, other) @ model.W_K[1, 1]
    (receipt,), none = result.receipts
    assert none == ()
    assert receipt.mean_abs_change == pytest.approx(moved.abs().mean().item(), rel=1e-9)


# A circuit that is known.


@pytest.fixture(scope="module")
def circuit():
    return induction_circuit(d_vocab=6, n_ctx=8, triggers=[2, 4], idle_heads=1)


def triggered(tokens, answer):
    """Prompts whose last token is a trigger that has occurred, judged by what followed it."""
    tokens = torch.tensor(tokens)
    targets = torch.tensor(answer)[:, None].expand_as(tokens).contiguous()
    return Prompts.from_tensors(tokens, targets, scored=torch.arange(tokens.shape[1]).expand_as(tokens) == 7)


PROMPTS = triggered([[0, 2, 5, 1, 3, 0, 1, 2], [1, 0, 4, 3, 0, 5, 1, 4], [3, 4, 0, 5, 1, 1, 0, 4]], [5, 3, 0])
EVERY = {"senders": ["z", "embed"], "receivers": ["q", "k", "v", "output"], "metric": "prob"}


def effects(circuit, counterfactual, **how):
    frame = patch_paths(circuit.model, PROMPTS, counterfactual, **(EVERY | how)).frame
    return frame.set_index(["sender", "receiver"])["effect"]


def but(effect, *paths):
    return effect.drop(list(paths)).abs().max()


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_where_the_first_trigger_is_taken_away_the_previous_token_head_says_so_through_the_keys(circuit, direction):
    tokens = PROMPTS.inputs.clone()
    tokens[0, 1], tokens[1, 2], tokens[2, 1] = 3, 1, 5
    effect = effects(circuit, Prompts.from_tensors(tokens), direction=direction)
    found = effect["L0H0", "L1H0.k"], effect["L1H0", "output"]
    assert found == pytest.approx((1.0, 1.0), abs=1e-3)
    # the previous-token head reads the trigger, which is an embedding
    assert effect["embed", "L0H0.v"] == pytest.approx(1.0, abs=1e-3)
    assert but(effect, ("L0H0", "L1H0.k"), ("L1H0", "output"), ("embed", "L0H0.v")) < 1e-3


def test_where_the_output_is_another_its_embedding_says_so_through_the_values(circuit):
    tokens = PROMPTS.inputs.clone()
    tokens[0, 2], tokens[1, 3], tokens[2, 2] = 3, 1, 5
    effect = effects(circuit, Prompts.from_tensors(tokens))
    found = effect["embed", "L1H0.v"], effect["L1H0", "output"]
    assert found == pytest.approx((1.0, 1.0), abs=1e-3)
    assert but(effect, ("embed", "L1H0.v"), ("L1H0", "output")) < 1e-3


def test_where_the_last_token_is_another_its_embedding_says_so_through_the_queries(circuit):
    tokens = PROMPTS.inputs.clone()
    tokens[:, -1] = 1
    effect = effects(circuit, Prompts.from_tensors(tokens))
    # not all: a head that finds nothing looks everywhere, so that in the other run it reads the last token too
    assert 0.85 < effect["embed", "L1H0.q"] < 1
    assert effect["L1H0", "output"] == pytest.approx(1.0, abs=1e-3)
    assert but(effect, ("embed", "L1H0.q"), ("L1H0", "output")) < 1e-3


def test_the_tasks_own_counterfactual_travels_through_values_alone():
    stats = BigramStatistics.from_text("the cat sat on the mat and the rat ate the cake that the cat hid")
    task = BigramICL(stats, n_triggers=2, seq_len=16)
    circuit = induction_circuit(d_vocab=task.d_vocab, n_ctx=16, triggers=task.trigger_tokens)
    result = patch_paths(circuit.model, task.sample(30, seed=0), task, senders=["z", "embed"], metric="loss", seed=3)
    effect = result.frame.set_index(["sender", "receiver"])["effect"]
    assert effect["embed", "L1H0.v"] == pytest.approx(1, abs=1e-3)
    assert but(effect, ("embed", "L1H0.v"), ("L1H0", "output")) < 1e-3
    assert result.settings["counterfactual_seed"] == 3


# Refusals; the valid examples are above.

WRONG = {
    "no senders": ({"senders": []}, "senders is empty"),
    "no receivers": ({"receivers": []}, "receivers is empty"),
    "a sender that only reads": ({"senders": ["L0H0.q"]}, r"L0H0\.q sends nothing: a path starts at a head"),
    "a sender that is the stream": ({"senders": "resid_pre"}, r"L0\.resid_pre sends nothing"),
    "a receiver that only writes": ({"receivers": ["L1H0"]}, r"L1H0 receives nothing: a path ends at L1H0\.q"),
    "a receiver before the sender": ({"senders": ["L1H0"], "receivers": ["L1H1.q"]}, "L1H0 is on no path"),
    "a receiver that nothing reaches": (
        {"receivers": ["L0H1.k", "output"]},
        r"L0H1\.k is on no path: no sender writes",
    ),
    "a path named twice": ({"senders": ["z", "L0H0"]}, r"the path from L0H0 to L1H0\.q is named twice"),
    "a head that does not exist": ({"senders": ["L0H2"]}, "L0 has heads H0 to H1"),
    "a layer that does not exist": ({"receivers": ["L3H0.q"]}, "the model has 3 layers"),
    "an MLP that does not exist": ({"senders": "mlp"}, "the model has no mlp"),
    "a component that does not exist": ({"senders": "zz"}, "'zz' is not understood"),
    "a position that does not exist": ({"senders": ["L0H0@9"]}, "position 9 of L0H0 does not exist"),
    "another length": ({"counterfactual": triggered([[0] * 8], [0])}, "aligned prompt by prompt"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_path_is_refused_in_one_line(what, prompts):
    how, message = WRONG[what]
    with pytest.raises(InputError, match=message) as refusal:
        patch_paths(random_model(attn_only=True), prompts, **how)
    assert "\n" not in str(refusal.value)


@pytest.mark.refusal
def test_a_way_through_that_does_not_exist_is_refused(prompts):
    with pytest.raises(InputError, match="through = 'heads' is unknown: choose 'direct' or 'mlps'"):
        patch_paths(random_model(), prompts, through="heads")


def test_the_map_shows_every_path_at_its_sender_and_receiver(circuit):
    tokens = PROMPTS.inputs.clone()
    tokens[0, 1], tokens[1, 2], tokens[2, 1] = 3, 1, 5
    result = patch_paths(circuit.model, PROMPTS, Prompts.from_tensors(tokens), metric="prob")
    (trace,) = result.plot().data
    shown = {(y, x): trace.z[i][j] for i, y in enumerate(trace.y) for j, x in enumerate(trace.x)}
    for row in result.frame.itertuples():
        assert shown.pop((row.sender, row.receiver)) == row.effect
    assert np.isnan(list(shown.values())).all()
