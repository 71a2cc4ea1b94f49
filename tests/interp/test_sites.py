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
    ],
    ids=str,
)
def test_a_site_may_be_written_in_these_ways(written, site):
    assert Site.parse(written) == site


@pytest.mark.parametrize("name", ["z", "q", "k", "v", "attn_out", "mlp_out", "resid_pre", "resid_mid", "resid_post"])
def test_hook_names_are_transformer_lens(name):
    written, point = (f"L3H1.{name}", f"attn.hook_{name}") if len(name) == 1 else (f"L3.{name}", f"hook_{name}")
    assert Site.parse(written).hook_name == f"blocks.3.{point}"


@pytest.mark.parametrize("written", ["L1H3", "L1H3.v", "L0.mlp", "L2.resid_post"])
def test_a_site_reads_as_it_is_written(written):
    assert str(Site.parse(written)) == written


@pytest.mark.parametrize(
    "written",
    ["H3", "L1", "l1h3", "L1H3.mlpx", "L-1H0", "L1H3 ", "blocks.1.attn.hook_pattern", "blocks.x.hook_mlp_out", ""],
)
def test_what_is_no_site_is_refused_with_examples(written):
    with pytest.raises(InputError, match="is not understood"):
        Site.parse(written)


@pytest.mark.refusal
@pytest.mark.parametrize("written", [3, None, (1, 2, 3), (1.0, 2), ("L1H0", 2)], ids=str)
def test_what_has_the_wrong_type_for_a_site_is_refused(written):
    with pytest.raises(InputError, match="is not understood"):
        Site.parse(written)


@pytest.mark.parametrize("written", ["L1.z", "blocks.1.attn.hook_z", "L1.q"])
def test_a_head_component_without_a_head_is_refused(written):
    with pytest.raises(InputError, match="names one head, L0H1 say"):
        Site.parse(written)


@pytest.mark.parametrize("written", ["L1H2.mlp", ("blocks.1.hook_resid_pre", 2)])
def test_a_head_of_what_has_none_is_refused(written):
    with pytest.raises(InputError, match="belongs to the layer, not to a head"):
        Site.parse(written)


def test_a_component_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match="component 'zz' does not exist: choose z, q, k, v, attn"):
        Site(0, "zz", 1)


def test_positions_are_kept_and_none_at_all_are_refused():
    assert Site.parse("L1H3", positions=[0, 2]).positions == (0, 2)
    assert Site.parse(Site(1, "z", 3), positions=[0, 2]) == Site(1, "z", 3, (0, 2))
    assert Site.parse(Site(1, "z", 3, (4,))).positions == (4,)
    with pytest.raises(InputError, match="positions of L1H3 is empty"):
        Site.parse("L1H3", positions=[])


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
