"""The report in a real browser: it runs nothing that it should not, and shows everything that it should."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analyses import write_report
from interp import HookedTransformerConfig, TrainConfig, train
from tasks import BigramICL, BigramStatistics

pytestmark = pytest.mark.browser

CANARY = "document.title='ran'"
HOSTILE = (
    "\n",
    " ",
    '"',
    "'",
    "&amp;",
    "-->",
    "<!--<script>",
    f"</script><script>{CANARY}</script>",
    f"</style><script>{CANARY}</script>",
    f"<img src=x onerror={CANARY}>",
    f'"onmouseover="{CANARY}',
    f"<svg onload={CANARY}>",
    f"${{{CANARY}}}",
    "{{7*7}}",
    "\u2028",
    "\u202e",
    "😀",
    "a",
)


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    vocab = tuple(sorted(HOSTILE))
    counts = np.random.default_rng(0).integers(1, 9, size=(len(vocab), len(vocab)))
    task = BigramICL(BigramStatistics(vocab, counts), n_triggers=3, seq_len=24, scored="all")
    config = HookedTransformerConfig(n_layers=2, n_heads=1, d_model=16, n_ctx=24, d_vocab=len(vocab), attn_only=True)
    folder = tmp_path_factory.mktemp("hostile")
    run = train(task, config, TrainConfig(steps=2, eval_prompts=8), out=folder / "run", progress=False)
    return write_report(run, folder / "report", n_prompts=32)


@pytest.fixture
def opened(browser: Any, page: Path) -> Any:
    browser.appear(width=1400)
    browser.console()
    browser.requests()
    browser.open(page)
    return browser


def test_no_token_of_a_hostile_vocabulary_runs(opened: Any):
    opened.wait_for("return document.querySelectorAll('.heat canvas').length > 0")
    assert opened.run("return document.title") == "In-context bigrams: what the model learned"
    assert (
        opened.run("return document.querySelectorAll('img[src=x], svg[onload], [onmouseover], [onerror]').length") == 0
    )
    n_scripts = opened.run("return [...document.scripts].map((one) => one.type)")
    assert sorted(n_scripts) == ["", "", "", "application/json"]


def test_the_canary_would_have_been_heard(browser: Any, tmp_path: Path):
    bare = tmp_path / "bare.html"
    bare.write_text(
        f"<!doctype html><html data-ready=true><title>quiet</title><body>{HOSTILE[7]}</body></html>", encoding="utf-8"
    )
    browser.open(bare)
    assert browser.run("return document.title") == "ran"


def test_hostile_tokens_are_shown_as_they_are(opened: Any):
    shown = set(opened.run("return [...document.querySelectorAll('.tokens .token')].map((one) => one.textContent)"))
    assert shown & set(HOSTILE)
    assert not {" ", "\n", "\u2028", "\u202e"} & shown


def test_figures_and_attention_patterns_are_drawn_within_the_policy(opened: Any):
    opened.wait_for("return document.querySelectorAll('.heat canvas').length > 0")
    without = (
        "return [...document.querySelectorAll(arguments[0])].filter((one) => !one.querySelector(arguments[1])).length"
    )
    assert opened.run("return document.querySelectorAll('figure .js-plotly-plot').length") >= 8
    assert opened.run(without, "figure .js-plotly-plot", ".main-svg .trace") == 0
    assert opened.run(without, ".heat", "canvas") == 0
    assert opened.console() == []


def test_the_policy_stops_a_script_that_is_not_the_pages_own(opened: Any):
    opened.run(
        "const one = document.createElement('script'); one.textContent = arguments[0]; document.body.append(one);",
        CANARY,
    )
    assert opened.run("return document.title") != "ran"
    assert any("Content Security Policy" in message for message in opened.console())


def test_nothing_is_asked_of_the_network(opened: Any):
    opened.wait_for("return document.querySelectorAll('.heat canvas').length > 0")
    asked = opened.requests()
    assert any(url.endswith("report.html") for url in asked)
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    linked = (
        "return [...document.querySelectorAll('[src], [href]')].map((one) => one.src || one.href.baseVal || one.href)"
    )
    assert [url for url in opened.run(linked) if str(url).startswith(("http:", "https:", "//"))] == []


@pytest.mark.parametrize("width", [360, 420, 800, 1400])
def test_nothing_sticks_out_of_a_window(browser: Any, page: Path, width: int):
    browser.appear(width=width)
    browser.open(page)
    assert browser.run("return document.documentElement.scrollWidth") <= width
    ends = "return [...document.querySelectorAll('.plot svg')].map((one) => one.getBoundingClientRect().right)"
    assert max(browser.run(ends)) <= width


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_follows_the_readers_preference_and_the_button_changes_it(browser: Any, page: Path, dark: bool):
    browser.appear(width=1400, dark=dark)
    browser.open(page)
    brightness = "return parseInt(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])"
    ink = "return getComputedStyle(document.querySelector('.plot .xtick text, .plot .ytick text')).fill"
    assert (browser.run(brightness) < 128) == dark
    before = browser.run(ink)
    browser.run("document.querySelector('.theme').click()")
    assert (browser.run(brightness) < 128) != dark
    assert browser.run(ink) != before


def test_tables_are_sorted_by_a_button_that_the_keyboard_reaches(opened: Any):
    opened.run("document.querySelector('details.table').open = true; document.querySelector('th button').focus()")
    opened.press("Tab")
    column = opened.run("return [...document.querySelectorAll('th button')].indexOf(document.activeElement)")
    assert column == 1
    cells = (
        f"return [...document.querySelectorAll('table')][0].tBodies[0].querySelectorAll('td:nth-child({column + 1})')"
    )
    read = f"return [...(() => {{ {cells} }})()].map((one) => one.textContent)"
    opened.press("Enter")
    rising = opened.run(read)
    assert opened.run("return document.activeElement.parentElement.getAttribute('aria-sort')") == "ascending"
    opened.press("Enter")
    assert opened.run("return document.activeElement.parentElement.getAttribute('aria-sort')") == "descending"
    assert rising == sorted(rising)
    assert opened.run(read) == sorted(rising, reverse=True)


def test_numbers_are_sorted_as_numbers(opened: Any):
    script = """
      const table = [...document.querySelectorAll('table')].find((one) => one.querySelector('td.number'));
      const column = table.querySelector('td.number').cellIndex;
      table.tHead.rows[0].cells[column].querySelector('button').click();
      return [...table.tBodies[0].rows].map((row) => Number(row.cells[column].dataset.value));
    """
    values = opened.run(script)
    assert len(set(values)) > 2
    assert values == sorted(values)


def test_arrow_keys_walk_through_a_prompt_and_say_what_was_guessed(opened: Any):
    opened.run("document.querySelector('.tokens').focus()")
    opened.press("ArrowRight")
    opened.press("ArrowRight")
    assert (
        opened.run("return [...document.querySelector('.tokens').children].findIndex((one) => one.matches('.here'))")
        == 2
    )
    assert "to which the model gave" in opened.run("return document.querySelector('.about').textContent")


def test_a_figure_can_be_saved_within_the_policy(opened: Any):
    saved = opened.run(
        "return Plotly.toImage(document.querySelector('.plot'), {format: 'svg'}).then((one) => one.slice(0, 18))"
    )
    assert saved == "data:image/svg+xml"
    assert opened.console() == []
