"Each explorer's JavaScript equals the package in Python; what every explorer promises."
import ast
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import erf
from scipy.stats import norm

pytest.importorskip("anywidget", reason="explorers need anywidget: pip install -e '.[lab]'")

from traitlets import TraitError

from vqvae import explorers
from vqvae.data.digits import DigitsDataset
from vqvae.evaluation.metrics import CodebookMetrics
from vqvae.explorers import (
    Array,
    CodebookExplorer,
    CollapseExplorer,
    Explorer,
    FSQExplorer,
    GradientExplorer,
    Real,
    Whole,
    explorer_source,
    load_recording,
    record_run,
)
from vqvae.explorers.collapse import collapse_trainer, record_collapse
from vqvae.explorers.gradient import ESTIMATORS
from vqvae.initialization.rate_distortion import codebook_covariance
from vqvae.quantizers.fsq import FiniteScalarQuantizer, bound
from vqvae.quantizers.gumbel import draw_codewords, gumbel_noise, kl_to_uniform
from vqvae.quantizers.search import nearest_codes
from vqvae.theory.high_resolution import LATTICE_CONSTANTS, zador_distortion
from vqvae.theory.rate_distortion import water_filling

NOTEBOOKS = Path(__file__).parent.parent / "nbs" / "explorers"
SEEDS = range(8)


@pytest.fixture(scope="module")
def call(chromium):
    """Call an exported function of an explorer's module in the browser: call(module, function,
    *arguments)."""
    page = chromium.new_page()
    page.set_content("<p>")  # arguments travel as text: number by number is ten times slower
    def call(module: str, function: str, *arguments):
        return page.evaluate(
            """async ([source, name, given]) => {
            const blob = new Blob([source], { type: "text/javascript" });
            const module = await import(URL.createObjectURL(blob));
            return module[name](...JSON.parse(given));
        }""",
            [explorer_source(module), function, json.dumps(arguments)],
        )
    yield call
    page.close()


def close(found, expected, tolerance=1e-6):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("seed", SEEDS)
def test_water_filling(call, seed):
    generator = torch.Generator().manual_seed(seed)
    variances = 4 * torch.rand(8, generator=generator, dtype=torch.float64) ** 3
    variances[seed % 8] = 0.0
    rate = [0.0, 0.3, 2.0, 6.0, 12.0, 23.9, 1.0, 24.0][seed]
    found = call("waterfilling", "compute", {"variances": variances.tolist(), "rate": rate})
    expected = water_filling(variances, rate)
    close(found["level"], expected.level)
    close(found["rates"], expected.rates)
    close(found["distortions"], expected.distortions)
    close(found["distortion"], expected.distortion)
    codes = codebook_covariance(torch.diag(variances), 2**round(rate))
    again = call("waterfilling", "compute",
                 {"variances": variances.tolist(), "rate": float(round(rate))})
    close(again["codeVariances"], codes.diagonal())


DEGENERATE = [([1.0, 2.0], [-1.0, -2.0]), ([0.0, 0.0], [1.0, 0.0]), ([1.0, 1.0], [0.0, 0.0]),
              ([1.0, 2.0], [1.0, 2.0]), ([1e-200, 0.0], [1.0, 0.0]), ([1.0, 0.0], [-1.0, 1e-9])]


@pytest.mark.parametrize("case", [*SEEDS, *DEGENERATE], ids=str)
def test_gradients(call, case):
    generator = torch.Generator().manual_seed(case if isinstance(case, int) else 0)
    z, q, g = torch.randn(3, 2, generator=generator, dtype=torch.float64).tolist()
    if not isinstance(case, int): z, q = case
    found = call("gradient", "compute", {"z": z, "q": q, "g": g})
    expected = GradientExplorer(z=z, q=q, g=g).gradients()
    assert found["gradients"].keys() == expected.keys() == ESTIMATORS.keys()
    for name in ESTIMATORS: close(found["gradients"][name], expected[name])
    close(found["qg"], np.dot(q, g))


def test_error_function(call):
    for x in [-6.0, -3.0, -2.999, -0.5, 0.0, 1e-9, 0.3, 1.7, 2.5, 3.0, 3.7, 5.0]:
        close(call("fsq", "erf", x), erf(x), 1e-12)


@pytest.mark.parametrize("levels", [[2, 3], [4, 5], [8, 8], [7, 16], [2, 2], [16, 3]], ids=str)
def test_finite_scalar_quantization(call, levels):
    state = {"levels": levels, "mean": 0.4, "scale": 0.9}
    found = call("fsq", "compute", state)
    quantizer = FiniteScalarQuantizer(levels)
    z = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.4
    z_q, indices, _ = quantizer(z)
    digits = [np.searchsorted(c["edges"], z[:, i].double().numpy())
              for i, c in enumerate(found["coordinates"])]
    away = torch.stack([(bound(z.double(), torch.tensor(levels))[:, i] % 1 - 0.5).abs() > 1e-5
                        for i in (0, 1)]).all(0)
    # all but points on an edge, which float32 may round the other way
    assert away.float().mean() > 0.99
    assert (torch.from_numpy(digits[0] + levels[0] * digits[1])[away] == indices[away]).all()
    values = np.stack([np.array(c["values"])[d] for c, d in zip(found["coordinates"], digits)], 1)
    close(values[away], z_q[away])
    for i, (level, coordinate) in enumerate(zip(levels, found["coordinates"])):
        edges = torch.tensor(coordinate["edges"], dtype=torch.float64)
        halves = torch.arange(level - 1) - level // 2 + 0.5
        close(bound(edges[:, None].expand(-1, 2), torch.tensor(levels))[:, i], halves)
        close(coordinate["probabilities"], np.diff(norm.cdf([-np.inf, *edges, np.inf], 0.4, 0.9)))
    p = np.outer(found["coordinates"][1]["probabilities"],
                 found["coordinates"][0]["probabilities"]).ravel()
    close(found["joint"], p)
    close(found["entropy"], -(p * np.log2(p, where=p > 0, out=np.zeros_like(p))).sum())
    close(found["seen"], (1 - (1 - p) ** 10000).sum())


@pytest.mark.parametrize("seed", SEEDS)
def test_gumbel(call, seed):
    generator = torch.Generator().manual_seed(seed)
    logits, noise = (
        2 * torch.randn(3, generator=generator).double(),
        gumbel_noise(torch.empty(50, 3).double(), generator),
    )
    temperature = [0.05, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 0.1][seed]
    found = call("gumbel", "compute",
                 {"logits": logits.tolist(), "noise": noise.tolist(), "temperature": temperature})
    soft, choices = draw_codewords(logits + noise, torch.eye(3).double(), temperature, hard=False)
    close(found["samples"], soft)
    assert found["choices"] == choices.tolist()
    close(found["probabilities"], logits.softmax(0))
    close(found["kl"], kl_to_uniform(logits))
    close(found["hard"], torch.bincount(choices, minlength=3) / 50)


@pytest.mark.parametrize("source", ["Gaussian", "ring", "mixture", "digits"])
@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_codebook(call, source, size):
    codebook = torch.randn(size, 2, generator=torch.Generator().manual_seed(size)).double()
    explorer = CodebookExplorer(codebook, source=source, deviation=0.3, angle=75)
    found = call("codebook", "compute", explorer.state())
    points = torch.from_numpy(explorer.points)
    indices = nearest_codes(points, codebook)
    metrics = CodebookMetrics(size)
    metrics.update(indices, points, codebook[indices])
    assert found["owners"] == indices.tolist()
    scores = metrics.compute()
    close(found["distortion"], (points - codebook[indices]).square().mean())
    close(found["entropy"], scores["entropy_bits"])
    close(found["perplexity"], scores["perplexity"])
    assert found["dead"] == scores["dead_codes"]
    moved = call("codebook", "lloydStep", explorer.points.tolist(), codebook.tolist())
    for i, code in enumerate(moved):
        close(code, points[indices == i].mean(0) if (indices == i).any() else codebook[i])


@pytest.mark.parametrize("variances", [[1.0, 1.0], [1.0, 0.25], [2.0, 0.01]], ids=str)
def test_limits(call, variances):
    scalar = CodebookExplorer().scalar
    for bits in (0.0, 0.5, 1.0, 2.0, 4.0, 6.0):
        close(call("codebook", "limit", variances, bits), water_filling(variances, bits).distortion)
        law = zador_distortion(torch.tensor(2.0**bits, dtype=torch.float64), variances,
                               LATTICE_CONSTANTS[2][1])
        close(call("codebook", "highResolution", variances, bits), law)
    for codes in (1, 3, 4, 12, 64):
        pairs = [(a, codes // a) for a in range(1, codes + 1)]
        best = min((variances[0] * scalar[a] + variances[1] * scalar[b]) / 2 for a, b in pairs)
        close(call("codebook", "scalarPair", variances, codes, scalar.tolist()), best)


def test_cells_hold_what_their_codewords_own(call):
    codebook = torch.randn(20, 2, generator=torch.Generator().manual_seed(1)).double()
    outlines = call("codebook", "cells", codebook.tolist(), 3.0)
    area = lambda p: abs(np.dot(p[:, 0], np.roll(p[:, 1], -1))
                         - np.dot(p[:, 1], np.roll(p[:, 0], -1))) / 2
    polygons = [np.array(outline) for outline in outlines if outline]
    close(sum(map(area, polygons)), 36.0)  # they fill the square and do not overlap
    for i, outline in enumerate(outlines):
        if not outline: continue
        middle = torch.tensor(outline, dtype=torch.float64).mean(0, keepdim=True)
        assert nearest_codes(middle, codebook).item() == i


@pytest.mark.parametrize("frame", [0, 3, 20])
def test_collapse(call, frame):
    recording = load_recording()
    for left, right in zip(recording["runs"], reversed(recording["runs"])):
        explorer = CollapseExplorer(frame=frame, left=left.split(", "), right=right.split(", "))
        found = call("collapse", "compute", explorer.state())
        assert found["step"] == recording["steps"][frame]
        for side, run in (("left", recording["runs"][left]), ("right", recording["runs"][right])):
            codes, latents = (torch.tensor(run[name][frame], dtype=torch.float64)
                              * recording["unit"] for name in ("codes", "latents"))
            metrics = CodebookMetrics(len(codes))
            metrics.update(
                torch.arange(len(codes)).repeat_interleave(torch.tensor(run["counts"][frame]))
            )
            scores = metrics.compute()
            close(found[side]["entropy"], scores["entropy_bits"])
            close(found[side]["perplexity"], scores["perplexity"])
            assert found[side]["dead"] == scores["dead_codes"]
            assert found[side]["owners"] == nearest_codes(latents, codes).tolist()
            close(found[side]["codes"], codes)
            assert found[side]["reconstruction"] == run["reconstruction"][frame]


@pytest.mark.slow
@pytest.mark.parametrize("names", [("uniform", "rotation", "after 50 idle steps"),
                                   ("k-means", "straight-through", "none")], ids=", ".join)
def test_the_recording_can_be_made_again(names):
    """The first hundred steps, past the first revival: later a difference of rounding on another
    machine may have grown."""
    recording, data = load_recording(), DigitsDataset()
    steps = [step for step in recording["steps"] if step <= 98]
    again, stored = record_run(collapse_trainer(*names, data), data,
                               steps), recording["runs"][", ".join(names)]
    for name in ("codes", "latents"):
        np.testing.assert_allclose(again[name], stored[name][:len(steps)], atol=2)  # thousandths
    for name in ("reconstruction", "codebook"):
        np.testing.assert_allclose(again[name], stored[name][:len(steps)], rtol=0.02)
    # of 360
    assert np.abs(np.subtract(again["counts"], stored["counts"][:len(steps)])).sum(1).max() <= 8


def test_a_recording_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "collapse.json"
    path.write_text("old")
    monkeypatch.setattr("vqvae.explorers.collapse.record_run", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError): record_collapse(path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]

# --- what every explorer promises; one that is exported is tested ---

EXPORTED = [getattr(explorers, name) for name in explorers.__all__]
EXPLORERS = [part for part in EXPORTED if isinstance(part, type) and issubclass(part, Explorer)
             and part is not Explorer]
WIDGETS = [*EXPLORERS, explorers.LiveTraining]
SOURCES = sorted(Path(explorers.__file__).parent.glob("*.js"))


def traits(explorer, kind): return [name for name, t in explorer.traits().items()
                                    if isinstance(t, kind)]


def test_every_class_of_the_room_is_exported():
    found = {cls for path in Path(explorers.__file__).parent.glob("[!_]*.py")
             for cls in vars(import_module(f"vqvae.explorers.{path.stem}")).values()
             if isinstance(cls, type) and issubclass(cls, Explorer) and cls is not Explorer}
    assert found == set(EXPLORERS)


@pytest.mark.parametrize("cls", WIDGETS, ids=lambda cls: cls.__name__)
def test_it_opens_and_closes(cls, monkeypatch):
    monkeypatch.setenv("VQVAE_STATIC", "1")
    widget = cls()
    assert len(widget._repr_mimebundle_()) == 2 and widget.comm is not None
    widget.close()
    widget.close()  # twice is once
    assert widget.comm is None


@pytest.mark.parametrize("cls", EXPLORERS, ids=lambda cls: cls.__name__)
def test_it_refuses_what_is_no_number_and_stays_as_it_was(cls):
    explorer = cls()
    before = json.dumps(explorer.state())
    for wrong in (float("nan"), float("inf"), "text", None, [[["x"]]]):
        for name in traits(explorer, (Real, Whole)):
            with pytest.raises(TraitError): setattr(explorer, name, wrong)
        for name in traits(explorer, Array):
            array = np.full_like(getattr(explorer, name), np.nan) if wrong != wrong else wrong
            with pytest.raises(TraitError): setattr(explorer, name, array)
    assert json.dumps(explorer.state()) == before


@pytest.mark.parametrize("cls", EXPLORERS, ids=lambda cls: cls.__name__)
def test_it_takes_numbers_of_numpy_and_tensors_of_every_dtype(cls):
    explorer = cls()
    before = explorer.state()
    for name in traits(explorer, Real): setattr(explorer, name, np.float64(getattr(explorer, name)))
    for name in traits(explorer, Whole): setattr(explorer, name, np.int64(getattr(explorer, name)))
    for name in traits(explorer, Array):
        setattr(explorer, name, torch.from_numpy(getattr(explorer, name).copy()).requires_grad_())
    assert json.dumps(explorer.state()) == json.dumps(before)
    for name in traits(explorer, Array):
        setattr(explorer, name, torch.from_numpy(getattr(explorer, name).copy()).bfloat16())


def test_levels_of_numpy_reach_javascript():
    explorer = FSQExplorer(levels=[np.int64(3), np.int32(4)])
    assert json.dumps(explorer.state()["levels"]) == "[3, 4]"
    for wrong in ([3.0, 4], [3], [1, 2], [3, 4, 5]):
        with pytest.raises(TraitError, match="levels"): explorer.levels = wrong


@pytest.mark.parametrize("cls", WIDGETS, ids=lambda cls: cls.__name__)
def test_it_has_a_page_in_the_index_and_in_the_sidebar(cls):
    pages = [path.name for path in NOTEBOOKS.glob("[0-9]*.ipynb")
             if f"class {cls.__name__}(" in path.read_text(encoding="utf-8")]
    assert len(pages) == 1
    assert f"({pages[0]})" in (NOTEBOOKS / "index.ipynb").read_text(encoding="utf-8")
    sidebar = (NOTEBOOKS.parent.parent / "_quarto.yml").read_text(encoding="utf-8")
    assert f"explorers/{pages[0]}" in sidebar or "auto: explorers" in sidebar


@pytest.mark.parametrize("cls", EXPLORERS, ids=lambda cls: cls.__name__)
def test_its_picture_can_be_taken_away(cls, chromium):
    "What `render` returns, if anything, is a function that stops what moves by itself."
    page = chromium.new_page()
    page.set_content("<div id=host></div>")
    moved = page.evaluate(
        """async ([source, given]) => {
            const blob = new Blob([source], { type: "text/javascript" });
            const { default: explorer, pageModel } = await import(URL.createObjectURL(blob));
            const model = pageModel(JSON.parse(given)), el = document.getElementById("host");
            const away = explorer.render({ model, el });
            for (const button of el.querySelectorAll("button")) button.click();
            await new Promise((done) => setTimeout(done, 50));
            away?.();
            const before = model.get("frame");
            await new Promise((done) => setTimeout(done, 1500));
            return model.get("frame") !== before;
        }""",
        [cls()._esm, json.dumps(cls().state())],
    )
    page.close()
    assert not moved


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_javascript_can_be_read(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert not [i for i, line in enumerate(lines, 1) if len(line) > 100]
    if path.stem != "shared":
        assert any("compute" in line and line.startswith("export") for line in lines)


@pytest.mark.slow
def test_without_the_extra_the_error_says_what_to_install():
    for missing in ("anywidget", "traitlets"):
        code = f"import sys; sys.modules[{missing!r}] = None; import vqvae.explorers"
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "pip install 'vqvae[lab]'" in told.stderr


HEAVY = {"sklearn", "scipy", "pandas", "matplotlib", "PIL", "lightning_fabric"}
ROOMS = [path for room in ("data", "theory", "explorers")
         for path in sorted((Path(explorers.__file__).parent.parent / room).glob("*.py"))]


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_heavy_libraries_are_imported_where_they_are_used(path):
    at_the_top = [node for node in ast.parse(path.read_text(encoding="utf-8")).body
                  if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {alias.name for node in at_the_top if isinstance(node, ast.Import)
             for alias in node.names}
    names |= {node.module or "" for node in at_the_top if isinstance(node, ast.ImportFrom)}
    assert not {name.partition(".")[0] for name in names} & HEAVY


@pytest.mark.parametrize("cls", EXPLORERS, ids=lambda cls: cls.__name__)
def test_the_notebook_shows_the_present_module(cls):
    "The page holds JavaScript as it was when the notebook ran: it must be today's."
    shown = [output["data"]["text/markdown"] for path in NOTEBOOKS.glob("*.ipynb")
             for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
             for output in cell.get("outputs", []) if "text/markdown" in output.get("data", {})]
    assert any("".join(text) == cls().page() for text in shown), "run `make notebooks`"
