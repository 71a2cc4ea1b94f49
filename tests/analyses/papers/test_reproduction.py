import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

from analyses.papers import reproduction
from analyses.papers.claims import Claim, Evidence, Outcomes, Scale
from analyses.papers.jobs import Calculation
from analyses.papers.reproduction import Paper, find_paper, reproduce
from analyses.papers.seed_figures import seed_points
from analyses.papers.verdicts import Criterion
from analyses.report.contents import FigureOf, TableOf
from interp.cli import run
from tasks.errors import InputError


def measured(*, seed: int, centre: float) -> pd.DataFrame:
    return pd.DataFrame({"value": [centre + 0.01 * seed]})


def evidence(outcomes: Outcomes) -> Evidence:
    values = [float(table["value"].iloc[0]) for table in outcomes["arm"]]
    table = TableOf("raw", "Raw values", pd.DataFrame({"value": values}))
    return Evidence({"value": values}, [FigureOf(seed_points({"arm": values}, y="value"), "Values.")], [table], ["So."])


def claim_of(name: str, centre: float, null: float = 0.0):
    def claim(scale: Scale) -> Claim:
        def arm(at: float):
            return {"arm": tuple(Calculation(f"at {at}", s, measured, {"centre": at}) for s in range(5))}

        return Claim(
            name, f"{name} holds.", "[abs]", "Does it?", (Criterion("value", "value", 0.5),), f"At scale {scale}.",
            arm(centre), evidence, "Nothing there.", arm(null),
        )  # fmt: skip

    return claim


def about(scale: Scale) -> Sequence[str]:
    return (f"All at scale {scale}.",)


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> Paper:
    claims = (claim_of("true", 1.0), claim_of("false", 0.1), claim_of("open", 0.49), claim_of("broken", 1.0, null=1.0))
    made = Paper("made-up", "A paper", "Nobody, 2024", claims, about)
    monkeypatch.setattr(reproduction, "find_paper", lambda _: made)
    return made


def test_every_claim_has_a_verdict_an_interval_and_a_control(paper: Paper, tmp_path: Path):
    page = reproduce("made-up", out=tmp_path / "out", workers=1, progress=False)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    verdicts = {one["name"]: one["verdict"] for one in results["claims"]}
    assert verdicts == {"true": "reproduced", "false": "not reproduced", "open": "inconclusive", "broken": "reproduced"}
    for one in results["claims"]:
        assert {"name", "criterion", "value", "ci_low", "ci_high", "verdict", "control"} <= one.keys()
        assert one["ci_low"] < one["value"] < one["ci_high"]
        assert one["control"]["passed"] == (one["name"] != "broken")
    settle = {one["name"]: one["seeds_to_settle"] for one in results["claims"]}
    assert settle["true"] is None
    assert settle["open"] > 5
    assert results["runs"][0]["setting"] == "at 1.0"
    text = page.read_text()
    assert text.count("negative control failed") >= 1
    assert "FAILED" in text


def test_the_page_has_claim_criterion_verdict_and_control(paper: Paper, tmp_path: Path):
    page = reproduce("made-up", out=tmp_path, workers=1, progress=False)
    text = page.read_text()
    for said in ("true holds.", "value is above 0.5 [ours]", "not reproduced", "Nothing there.", "All at scale quick."):
        assert said in text
    markdown = (tmp_path / "report.md").read_text()
    assert "**inconclusive.** open holds." in markdown
    assert "seeds of this mean and spread would settle it" in markdown
    assert (tmp_path / "tables" / "true-raw.csv").read_text().startswith("value\n1.0")


def test_again_it_computes_nothing_and_says_the_same(paper: Paper, tmp_path: Path):
    reproduce("made-up", out=tmp_path, workers=1, progress=False)
    first = (tmp_path / "results.json").read_bytes()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("rows.csv")}
    reproduce("made-up", out=tmp_path, workers=1, progress=False)
    assert (tmp_path / "results.json").read_bytes() == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("rows.csv")} == before


def test_a_folder_of_something_else_is_not_written_to(paper: Paper, tmp_path: Path):
    reproduce("made-up", out=tmp_path / "quick", workers=1, progress=False)
    with pytest.raises(InputError, match="holds a reproduction of"):
        reproduce("made-up", scale="full", out=tmp_path / "quick", workers=1, progress=False)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty and holds no reproduction"):
        reproduce("made-up", out=tmp_path / "notes", workers=1, progress=False)
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["mine.txt"]
    with pytest.raises(InputError, match=r"mine\.txt is a file"):
        reproduce("made-up", out=tmp_path / "notes" / "mine.txt", workers=1, progress=False)


@pytest.mark.refusal
def test_an_unknown_paper_or_scale_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="no paper 'bietti2024' to reproduce: choose from bietti2023, chen2024"):
        find_paper("bietti2024")
    with pytest.raises(InputError, match="scale = 'huge' is unknown: choose from quick, full"):
        reproduce("bietti2023", scale="huge", out=tmp_path / "out")  # pyright: ignore[reportArgumentType]
    assert not (tmp_path / "out").exists()


def test_the_command_reproduces_or_says_in_one_line_what_is_wrong(
    paper: Paper, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    assert run(["reproduce", "made-up", "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    said = capsys.readouterr()
    assert "report.html" in said.out
    assert "measuring open (3 of 4 claims)" in said.err
    assert (tmp_path / "out" / "index.md").read_text().startswith("# A paper")
    assert (tmp_path / "out" / "figures" / "true-1.svg").exists()
    monkeypatch.setattr(reproduction, "find_paper", find_paper)
    assert run(["reproduce", "nothing", "--out", str(tmp_path / "other")]) == 2
    message = capsys.readouterr().err
    assert message == "error: there is no paper 'nothing' to reproduce: choose from bietti2023, chen2024\n"


@pytest.mark.parametrize("key", ["bietti2023"])
@pytest.mark.parametrize("scale", ["quick", "full"])
def test_every_paper_can_be_planned(key: str, scale: Scale):
    paper = find_paper(key)
    assert paper.key == key
    claims = [claim(scale) for claim in paper.claims]
    assert len({claim.name for claim in claims}) == len(claims)
    for claim in claims:
        assert claim.criteria
        assert all(len(arm) >= 5 for arm in (*claim.arms.values(), *claim.null_arms.values()))
        assert claim.null_arms.keys() <= claim.arms.keys()
