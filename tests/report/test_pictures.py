"""Pictures of rules: what is drawn, and what is written."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import polyak
from polyak.averaging.rules import Mean
from polyak.cli import main
from polyak.errors import PolyakError, RuleError
from polyak.report.pictures import write_page, write_picture
from polyak.report.shares import ASCII, in_stretches, plots

matplotlib = pytest.importorskip("matplotlib")
DOCS = Path(__file__).resolve().parents[2] / "docs"


def drawn(ax: object) -> list[np.ndarray]:
    return [patch.get_data().values for patch in ax.patches]  # type: ignore[attr-defined]


def test_the_lines_are_the_shares() -> None:
    ax = polyak.plot_profile(["ema:0.99", Mean()], 1000)
    ema, mean = drawn(ax)
    np.testing.assert_allclose(mean[1:], 1.0)
    shares = polyak.profile("ema:0.99", 1000).shares[1:].reshape(200, 5).sum(axis=1)
    np.testing.assert_allclose(ema[1:], shares[1:] * 200)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [
        "ema:0.99: mean age 95.66, effective samples 197.7",
        "mean: mean age 499.5, effective samples 1,000",
    ]


def test_the_start_is_a_dot_of_its_own() -> None:
    ax = polyak.plot_profile("ema:0.999,start=initial", 1000)
    assert ax.lines[0].get_ydata() == pytest.approx([100 * 0.999**1000])
    assert "start 36.77 %" in ax.get_legend().get_texts()[0].get_text()
    copied = polyak.plot_profile("ema:0.999,start=copy", 1000)
    assert copied.lines[0].get_ydata() == pytest.approx([100 * 0.999**999])
    assert drawn(copied)[0][0] < 0.4  # in which the start would be 36
    assert len(polyak.plot_profile("mean", 1000).lines) == 0


def test_it_draws_into_axes_that_are_given_and_opens_no_window() -> None:
    from matplotlib.figure import Figure

    given = Figure().subplots()
    assert polyak.plot_profile("mean", 10, given) is given
    script = "import polyak, sys; polyak.plot_profile('mean', 9); print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("rules", "steps", "message"),
    [
        ([], 9, "expected at least one rule"),
        ("meen", 9, "unknown rule 'meen'"),
        ("mean", 0, "steps=0: expected at least"),
    ],
)
def test_what_cannot_be_drawn_is_refused(rules: object, steps: int, message: str) -> None:
    with pytest.raises(RuleError, match=message):
        polyak.plot_profile(rules, steps)  # type: ignore[arg-type]


def test_pictures_are_the_same_each_time(tmp_path: Path) -> None:
    for name in "ab":
        write_picture(["mean"], 100, tmp_path / f"{name}.svg")
        write_picture(["mean"], 100, tmp_path / f"{name}.png", "png")
    for kind, start in (("svg", b"<?xml"), ("png", b"\x89PNG")):
        a, b = ((tmp_path / f"{name}.{kind}").read_bytes() for name in "ab")
        assert a == b
        assert a.startswith(start)


def test_a_page_is_one_file_with_the_picture_and_the_figures(tmp_path: Path) -> None:
    write_page(["ema:0.99", "mean"], 1000, tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 1
    assert re.search(r"<td>ema:0\.99</td><td>95\.66</td><td>68\.\d+</td><td>197\.7</td><td>0\.00</td>", page)
    assert not re.search(r"""(src|href)=["']https?:""", page)
    assert "<?xml" not in page


def test_rules_are_shown_in_the_words_that_they_were_given_in(tmp_path: Path) -> None:
    asked = ["power:sigma_rel=0.1", "swa"]
    write_page(asked, 1000, tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert re.findall(r"<tr><td>([^<]*)</td>", page) == asked
    told = CliRunner().invoke(main, ["profile", *asked, "--steps", "100", "--steps", "1000"]).stdout
    assert [line.split()[0] for line in told.splitlines()[1:5]] == [asked[0], asked[0], asked[1], asked[1]]
    data = json.loads(CliRunner().invoke(main, ["profile", *asked, "--steps", "9", "--json"]).stdout)
    assert [polyak.parse(row["rule"]) for row in data] == [polyak.parse(text) for text in asked]


def test_without_matplotlib_the_hint_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(PolyakError, match="expected matplotlib for a picture") as caught:
        polyak.plot_profile("mean")
    assert "pip install 'polyak[plot]'" in str(caught.value.hint)


def test_the_pictures_of_the_pages_are_those_that_the_script_makes(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("make_pictures", DOCS / "images" / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.make(tmp_path)
    made, kept = ({p.name: p.read_text(encoding="utf-8") for p in f.glob("*.svg")} for f in (tmp_path, DOCS / "images"))
    assert made.keys() == kept.keys()
    page = (DOCS / "which-rule.md").read_text(encoding="utf-8")
    for name, text in made.items():
        # The words, with the figures in them; curves differ in the last digit between versions of matplotlib.
        assert re.findall(r">([^<>]*updates?[^<>]*|[^<>]*age[^<>]*)</text>", text) == re.findall(
            r">([^<>]*updates?[^<>]*|[^<>]*age[^<>]*)</text>", kept[name]
        )
        assert f"(images/{name})" in page


# --- plain text ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 3, 7, 60, 250])
@pytest.mark.parametrize("rule", ["ema:0.9,start=initial", "mean", "power:sigma_rel=0.1,every=7"])
def test_stretches_cover_the_run(rule: str, parts: int) -> None:
    shares = polyak.profile(rule, 100).shares
    sums = in_stretches(shares, parts)
    assert sums.shape == (parts,)
    assert sums.min() >= 0
    assert sums.sum() == pytest.approx(1.0)
    assert in_stretches(shares, 100)[1:] == pytest.approx(shares[2:])


def test_the_newest_values_are_at_the_right() -> None:
    text = plots(["copy", "ema:0.9999,start=initial"], 600, ASCII).splitlines()
    assert text[3] == f"  100 % |{'#':>60}"
    assert text[11].startswith(" 94.")
    assert text[11].endswith(" % |#")


def test_a_run_of_one_update_has_a_plot() -> None:
    assert "1 (now)" in plots(["mean"], 1)
