"What the export adds to nbdev's: docments and readable citations in docstrings."
import ast
import inspect
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
pytest.importorskip("pypandoc")

from docstrings import cite, with_docstrings  # noqa: E402

from vqvae.quantizers import VectorQuantizer, nearest_codes  # noqa: E402
from vqvae.training import Trainer  # noqa: E402


@pytest.mark.parametrize("documented, text", [
    (VectorQuantizer.__init__, "codebook_size: number of codewords, n"),
    (VectorQuantizer.forward, r"z: latents, \(B, \*grid, dim\)"),
    (VectorQuantizer.forward, r"Returns:\n    z_q \(B, \*grid, dim\), indices \(B, \*grid\), info"),
    (Trainer.fit, "batch_size: samples per step"),
    (nearest_codes, r"codebook: codewords, \(codebook_size, dim\)"),
])
def test_help_shows_what_arguments_are(documented, text):
    assert re.search(text, inspect.getdoc(documented))


def test_docments_become_google_sections():
    source = '''def half(
    x: float,  # in bits
    # what to divide by,
    # at least 1
    by: int = 2,
) -> float:  # in bits
    "Divide [@wallace1991jpeg, section 2]."
    return x / by'''
    compiled = {}
    exec(with_docstrings(source), compiled)
    assert compiled["half"](3) == 1.5
    assert inspect.getdoc(compiled["half"]) == (
        "Divide.\n\nSource: Wallace 1991, section 2.\n\nArgs:\n    x: in bits\n"
        "    by: what to divide by, at least 1\n\nReturns:\n    in bits")


def test_tex_survives_and_fields_are_attributes():
    source = r'''class Point(NamedTuple):
    """A $\sigma$."""
    x: float  # in $\mu$'''.replace("\\s", "\\\\s")
    text = ast.get_docstring(ast.parse(with_docstrings(source)).body[0])
    assert text == "A $\\sigma$.\n\nAttributes:\n    x: in $\\mu$"


@pytest.mark.parametrize("source", [
    "def f(x: int): return x",
    "def _f(\n    x: int,  # private\n): return x",
    "def f(\n    x: int,  # body behind the colon\n): ...",
])
def test_what_has_no_room_for_a_docstring_stays(source): assert with_docstrings(source) == source


def test_unknown_key_is_named():
    with pytest.raises(ValueError, match="cites nobody2000, which references.bib lacks"):
        cite("[@nobody2000]")


def test_citation_of_several():
    assert cite("[@jang2016categorical; @maddison2016concrete]") == (
        "(Jang et al. 2017; Maddison et al. 2017)")


def test_package_holds_no_citation_key_and_no_long_docstring_line():
    for path in sorted((ROOT / "vqvae").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef | ast.ClassDef): continue
            text = ast.get_docstring(node, clean=False) or ""
            assert "[@" not in text, f"{path}: {node.name}"
            assert all(len(line) <= 100 for line in text.splitlines()), f"{path}: {node.name}"


def test_site_shows_each_argument_once():
    "`show_doc` of an exported object: the signature has the docments, the docstring has them, too."
    pytest.importorskip("pagefind")
    from build_site import tidy
    from nbdev.showdoc import show_doc

    shown = show_doc(VectorQuantizer.forward)._repr_markdown_()
    assert shown.count("latents, (B, *grid, dim)") == 2
    tidied = tidy(shown)
    assert tidied.count("latents, (B, *grid, dim)") == 1 and "Returns:" not in tidied
    assert "Quantize; in training" in tidied


def test_top_of_the_package_is_what_the_export_writes():
    from export import PACKAGE, package_init
    from nbdev.config import get_config

    written = (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    assert written == package_init(get_config().version)
