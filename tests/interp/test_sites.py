import pytest
import torch

from interp.sites import Site
from tasks.errors import InputError


@pytest.mark.parametrize(
    ("written", "site"),
    [
        ("L1H3", Site(1, "z", 3)),
        ("L1H3.z", Site(1, "z", 3)),
        ("L12H10.v", Site(12, "v", 10)),
        ((1, 3), Site(1, "z", 3)),
        (("blocks.1.attn.hook_z", 3), Site(1, "z", 3)),
        (("blocks.2.attn.hook_q", 0), Site(2, "q", 0)),
        ("L0.mlp", Site(0, "mlp")),
        ("L0.mlp_out", Site(0, "mlp")),
        ("L0.attn", Site(0, "attn")),
        ("L0.attn_out", Site(0, "attn")),
        ("blocks.1.hook_resid_pre", Site(1, "resid_pre")),
        ("blocks.4.hook_mlp_out", Site(4, "mlp")),
        (Site(2, "resid_mid"), Site(2, "resid_mid")),
        ("L1H3.pattern", Site(1, "pattern", 3)),
        ("L1H3.attn_scores", Site(1, "scores", 3)),
        (("blocks.1.attn.hook_attn_scores", 3), Site(1, "scores", 3)),
        (("blocks.1.attn.hook_result", 0), Site(1, "result", 0)),
        ("embed", Site(None, "embed")),
        ("hook_pos_embed", Site(None, "pos_embed")),
        ("L1H3@0,-1", Site(1, "z", 3, (0, -1))),
        ("embed@2", Site(None, "embed", None, (2,))),
        ("blocks.1.hook_resid_pre@4", Site(1, "resid_pre", None, (4,))),
    ],
    ids=str,
)
def test_a_site_may_be_written_in_these_ways(written, site):
    assert Site.parse(written) == site


@pytest.mark.parametrize("name", ["z", "q", "k", "v", "attn_out", "mlp_out", "resid_pre", "resid_mid", "resid_post"])
def test_hook_names_are_transformer_lens(name):
    written, point = (f"L3H1.{name}", f"attn.hook_{name}") if len(name) == 1 else (f"L3.{name}", f"hook_{name}")
    assert Site.parse(written).hook_name == f"blocks.3.{point}"


@pytest.mark.parametrize("written", ["L1H3", "L1H3.v", "L0.mlp", "L2.resid_post", "embed", "L1H3.pattern@0,-2"])
def test_a_site_reads_as_it_is_written(written):
    assert str(Site.parse(written)) == written


@pytest.mark.parametrize(
    "written",
    [
        "H3",
        "L1",
        "l1h3",
        "L1H3.mlpx",
        "L-1H0",
        "L1H3 ",
        "L1H3@",
        "L1H3@x",
        "blocks.1.attn.hook_rot_q",
        "blocks.x.hook_mlp_out",
        "",
    ],
)
def test_what_is_no_site_is_refused_with_examples(written):
    with pytest.raises(InputError, match="is not understood"):
        Site.parse(written)


@pytest.mark.refusal
@pytest.mark.parametrize("written", [3, None, (1, 2, 3), (1.0, 2), ("L1H0", 2)], ids=str)
def test_what_has_the_wrong_type_for_a_site_is_refused(written):
    with pytest.raises(InputError, match="is not understood"):
        Site.parse(written)


@pytest.mark.parametrize("written", ["L1.z", "blocks.1.attn.hook_z", "L1.q", "blocks.1.attn.hook_pattern"])
def test_a_head_component_without_a_head_is_refused(written):
    with pytest.raises(InputError, match="names one head, L0H1 say"):
        Site.parse(written)


@pytest.mark.parametrize("written", ["L1H2.mlp", ("blocks.1.hook_resid_pre", 2)])
def test_a_head_of_what_has_none_is_refused(written):
    with pytest.raises(InputError, match="belongs to the layer, not to a head"):
        Site.parse(written)


@pytest.mark.parametrize(("layer", "component"), [(0, "embed"), (None, "mlp"), (None, "z")])
def test_what_lies_before_the_layers_has_none_and_all_else_has_one(layer, component):
    with pytest.raises(InputError, match="does not name a place"):
        Site(layer, component)


def test_a_component_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match="component 'zz' does not exist: choose z, q, k, v, attn"):
        Site(0, "zz", 1)


def test_positions_are_kept_and_none_at_all_are_refused():
    assert Site.parse("L1H3", positions=[0, 2]).positions == (0, 2)
    assert Site.parse(Site(1, "z", 3), positions=[0, 2]) == Site(1, "z", 3, (0, 2))
    assert Site.parse(Site(1, "z", 3, (4,))).positions == (4,)
    with pytest.raises(InputError, match="positions of L1H3 is empty"):
        Site.parse("L1H3", positions=[])
    with pytest.raises(InputError, match=r"site L1H3@4 has positions already: drop positions=\[0\]"):
        Site.parse("L1H3@4", positions=[0])


def test_layers_and_heads_out_of_range_are_refused():
    Site.parse("L1H2").check(n_layers=2, n_heads=3)
    with pytest.raises(InputError, match=r"L2H1 does not exist: the model has 2 layers \(L0, L1\)"):
        Site.parse("L2H1").check(n_layers=2, n_heads=3)
    with pytest.raises(InputError, match=r"L1\.mlp does not exist: the model has 1 layer \(L0\)"):
        Site.parse("L1.mlp").check(n_layers=1, n_heads=3)
    with pytest.raises(InputError, match="L1H3 does not exist: L1 has heads H0 to H2"):
        Site.parse("L1H3").check(n_layers=2, n_heads=3)


def test_the_index_picks_the_sites_numbers():
    z = torch.arange(2 * 4 * 3 * 5.0).reshape(2, 4, 3, 5)
    assert torch.equal(z[Site.parse("L0H2").index(z)], z[:, :, 2])
    picked = z[Site.parse("L0H2", positions=[3, 1]).index(z)]
    assert torch.equal(picked, torch.stack([z[:, 3, 2], z[:, 1, 2]], dim=1))
    resid = z[:, :, 0]
    assert torch.equal(resid[Site.parse("L0.mlp", positions=[-1]).index(resid)], resid[:, 3:])


@pytest.mark.parametrize("position", [4, -5])
def test_a_position_outside_the_prompt_is_refused(position):
    with pytest.raises(InputError, match=f"position {position} of L0H2 does not exist: the prompts have 4 positions"):
        Site.parse("L0H2", positions=[0, position]).index(torch.zeros(2, 4, 3, 5))


def test_the_index_picks_the_rows_of_a_pattern():
    pattern = torch.arange(2 * 3 * 4 * 4.0).reshape(2, 3, 4, 4)
    assert torch.equal(pattern[Site.parse("L0H2.pattern").index(pattern)], pattern[:, 2])
    picked = pattern[Site.parse("L0H1.scores@-1,0").index(pattern)]
    assert torch.equal(picked, torch.stack([pattern[:, 1, 3], pattern[:, 1, 0]], dim=1))
    with pytest.raises(InputError, match=r"position 4 of L0H1\.pattern does not exist"):
        Site.parse("L0H1.pattern@4").index(pattern)


def test_a_position_named_twice_is_refused():
    with pytest.raises(InputError, match="site L0H2@3,-1 names a position twice"):
        Site.parse("L0H2@3,-1").index(torch.zeros(2, 4, 3, 5))


def test_a_head_that_shares_its_keys_has_none_of_its_own():
    shared = torch.zeros(2, 4, 1, 5)
    assert shared[Site.parse("L0H0.k").index(shared)].shape == (2, 4, 5)
    with pytest.raises(InputError, match=r"L0H1\.k does not exist: blocks\.0\.attn\.hook_k has heads H0 to H0"):
        Site.parse("L0H1.k").index(shared)
