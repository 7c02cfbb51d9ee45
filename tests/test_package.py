"The package as it is imported: what the top names are, what an import brings along."
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vqvae

ROOMS = ("data", "decoders", "encoders", "initialization", "models", "quantizers", "training")


def in_new_process(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True,
                          text=True).stdout.strip()


@pytest.mark.parametrize("room", ROOMS)
def test_every_name_of_a_room_is_one_of_the_package(room):
    module = importlib.import_module(f"vqvae.{room}")
    for name in module.__all__:
        assert getattr(vqvae, name) is getattr(module, name)
        assert name in dir(vqvae) and name in vqvae.__all__


def test_the_top_imports_nothing_before_it_is_asked():
    code = "import sys, vqvae; vqvae.__version__; print('torch' in sys.modules)"
    assert in_new_process(code) == "False"
    assert in_new_process("import vqvae; print(vqvae.VQVAE.__name__)") == "VQVAE"
    assert in_new_process("import vqvae; print(vqvae.theory.water_filling.__name__)") == (
        "water_filling")


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'vqvae' has no attribute 'VQVAF'"):
        vqvae.VQVAF  # noqa: B018


def test_type_checkers_see_every_name():
    "Each name of `__all__` stands in an import that only type checkers read."
    source = Path(vqvae.__file__).read_text(encoding="utf-8")
    checked = source.partition("if TYPE_CHECKING:")[2].partition("_MODULES")[0]
    for name in set(vqvae.__all__) - {"__version__"}: assert f" {name}," in checked


def test_reference_lists_every_public_name():
    "The stored output of the reference page is that of today's package: `make page NB=…`."
    from vqvae._modidx import d as index
    page = Path(vqvae.__file__).parent.parent / "nbs" / "02_reference.ipynb"
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
    text = "".join("".join(output["data"]["text/markdown"]) for cell in cells
                   for output in cell.get("outputs", []) if "text/markdown" in output["data"])
    listed = {module: set(re.findall(r"<code>(\w+)</code>", part)) for module, part in
              re.findall(r"^## (vqvae\.[\w.]+)$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)}
    public = {module: {short for name in names if (short := name.removeprefix(f"{module}."))
                       and not short.startswith("_") and "." not in short}
              for module, names in index["syms"].items()}
    assert listed == {module: names for module, names in public.items() if names}
