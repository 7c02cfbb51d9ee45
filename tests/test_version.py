"""The version of a study's code: what changes it, what does not, and that every Python agrees."""
import importlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import pytest

from vqvae.studies import version as page
from vqvae.studies.study import find_study, study_names
from vqvae.studies.version import code_sources, code_version

ROOT = Path(__file__).resolve().parents[1]
BASE = {
    "helpers": """
        import numpy as np, torch
        def scale(x, by=2): return by * x
        TABLE = {"double": scale, "limits": [1, (2, "a")]}
        class Base:
            power = 1
            def run(self, x): return self.step(x)
            def step(self, x): return x ** self.power
        class Child(Base):
            def step(self, x): return super().step(x) + 1
    """,
    "inner_helpers": """
        FACTOR = 2.0
    """,
    "mine": """
        import functools
        import json, os
        import matplotlib.pyplot as plt
        import helpers
        from helpers import Child, TABLE
        OFFSET = 3
        RULES = {}
        RULES["one"] = 1
        def register(f):
            RULES[f.__name__] = f
            return f
        def twice(f):
            @functools.wraps(f)
            def wrapper(*args, **kwargs): return 2 * f(*args, **kwargs)
            return wrapper
        @functools.cache
        def data(n): return n + 1
        @twice
        def inner(x): return x + OFFSET
        shifted = functools.partial(inner, 1)
        @register
        def rule(x): return x
        def untouched(x): return x
        def measure(n, seed):
            "One row."
            from inner_helpers import FACTOR
            f = lambda x: x + 1
            y = Child().run(n) + f(data(n)) + shifted() + TABLE["double"](seed)
            return {"y": y + FACTOR * RULES["rule"](n), "text": f"{y:>{n}}"}
        def plot(rows): return plt.plot(rows, label="what came out")
        if __name__ == "__main__": print(measure(1, 0))
    """,
}
KEEP = {
    "comment": ("mine", "return x + OFFSET", "return (x+OFFSET)  # shifted"),
    "docstring": ("mine", '"One row."', '"One row, as a dict."'),
    "docstring added": ("helpers", "def step(self, x): return x",
                        'def step(self, x):\n                "Power."\n                return x'),
    "quotes, digits": ("mine", 'RULES["one"] = 1', "RULES['one'] = 0x1"),
    "lines moved": ("mine", "OFFSET = 3", "\n\n        OFFSET = 3"),
    "import moved": ("mine", "import json, os", "import os\n        import json"),
    "plot": ("mine", 'label="what came out"', 'label="results"'),
    "unrelated function": ("mine", "def untouched(x): return x", "def untouched(x): return -x"),
    "what runs as a script": ("mine", "print(measure(1, 0))", "print(measure(2, 0))"),
}
CHANGE = {
    "measure": ("mine", "y + FACTOR", "y - FACTOR"),
    "lambda": ("mine", "lambda x: x + 1", "lambda x: x + 2"),
    "f-string": ("mine", 'f"{y:>{n}}"', 'f"{y:<{n}}"'),
    "type of a number": ("mine", "OFFSET = 3", "OFFSET = 3.0"),
    "constant": ("mine", "OFFSET = 3", "OFFSET = 4"),
    "item of a dict": ("mine", 'RULES["one"] = 1', 'RULES["one"] = 2'),
    "registered function": ("mine", "def rule(x): return x", "def rule(x): return -x"),
    "cached function": ("mine", "return n + 1", "return n + 2"),
    "decorator": ("mine", "return 2 * f(", "return 3 * f("),
    "decorated function": ("mine", "return x + OFFSET", "return x - OFFSET"),
    "argument of partial": ("mine", "partial(inner, 1)", "partial(inner, 2)"),
    "function in a dict": ("helpers", "return by * x", "return by * x + 1"),
    "default": ("helpers", "by=2", "by=4"),
    "constant in a container": ("helpers", '(2, "a")', '(2, "b")'),
    "method": ("helpers", "super().step(x) + 1", "super().step(x) + 2"),
    "method of a base class": ("helpers", "return x ** self.power", "return x * self.power"),
    "class attribute": ("helpers", "power = 1", "power = 2"),
    "base class": ("helpers", "class Child(Base)", "class Child(Base, Exception)"),
    "module imported inside": ("inner_helpers", "2.0", "2.5"),
    "exception handling": ("mine", "f = lambda x: x + 1", "f = lambda x: x + 1\n"
                           "            try: n + 1\n            except ValueError: pass"),
}


@pytest.fixture(autouse=True)
def no_bytecode_files(monkeypatch): monkeypatch.setattr(sys, "dont_write_bytecode", True)


def version_after(folder, edit=None, of=lambda module: module.measure):
    "Version of `mine.measure` after one edit, imported afresh from files in `folder`."
    folder.mkdir(exist_ok=True)
    for name, source in BASE.items():
        module, old, new = edit or (None, "", "")
        assert name != module or source.count(old) == 1
        source = source.replace(old, new) if name == module else source
        (folder / f"{name}.py").write_text(textwrap.dedent(source))
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try: return code_version(of(importlib.import_module("mine")))
    finally:
        sys.path.remove(str(folder))
        for name in BASE: sys.modules.pop(name, None)


@pytest.mark.parametrize("edit", KEEP.values(), ids=KEEP)
def test_version_stays(edit, tmp_path):
    assert version_after(tmp_path / "a", edit) == version_after(tmp_path / "b")


@pytest.mark.parametrize("edit", CHANGE.values(), ids=CHANGE)
def test_version_changes(edit, tmp_path):
    assert version_after(tmp_path / "a", edit) != version_after(tmp_path / "b")


def copied_package(folder):
    "A copy of this package's sources."
    shutil.copytree(ROOT / "vqvae", folder / "vqvae", ignore=shutil.ignore_patterns("__pycache__"))
    return folder / "vqvae"


VERSIONS = """
import importlib.util, json, sys, types
spec = importlib.util.spec_from_file_location("version", "vqvae/studies/version.py")
version = importlib.util.module_from_spec(spec)
spec.loader.exec_module(version)
versions = {}
for name in sys.argv[1:]:  # without importing the studies, which need PyTorch
    path = version.Path("vqvae/studies", name + ".py").absolute()
    module = "vqvae.studies." + name
    sys.modules[module] = types.ModuleType(module)
    sys.modules[module].__package__ = "vqvae.studies"
    scope = {"__name__": module}
    exec(compile("def measure(): pass", str(path), "exec"), scope)
    versions[name] = version.code_version(scope["measure"])
print(json.dumps(versions))
"""
MODULES = [name.replace("-", "_") for name in study_names()]


def versions_in(folder, python=sys.executable):
    "Versions of all studies of the package in a folder, by a Python that may lack PyTorch."
    command = [python, "-c", VERSIONS, *MODULES]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_broken_search_changes_every_study_that_uses_it(tmp_path):
    package = copied_package(tmp_path)
    before = versions_in(tmp_path)
    assert before == {name: find_study(name.replace("_", "-")).code for name in MODULES}
    search = package / "quantizers" / "search.py"
    source = search.read_text("utf-8")
    at = source.index("def _nearest_in_tiles(")
    body = source.index("\n", source.index(":\n", at) + 1)
    search.write_text(source[:body] + "\n    return torch.zeros(len(z), dtype=torch.int64)"
                      + source[body:], "utf-8")
    after = versions_in(tmp_path)
    studies = {name: find_study(name.replace("_", "-")) for name in MODULES}
    using = {name for name, study in studies.items()
             if "vqvae.quantizers.search" in code_sources(study.measure)}
    assert {"first_look", "quantizers", "scaling"} <= using
    assert {name for name in MODULES if before[name] != after[name]} == using


def test_figures_of_the_package_and_of_a_study_change_no_version(tmp_path):
    package = copied_package(tmp_path)
    before = versions_in(tmp_path)
    with open(package / "evaluation" / "figures.py", "a") as file: file.write("\nCOLOUR = 'red'\n")
    for name in MODULES:
        path = package / "studies" / f"{name}.py"
        source = path.read_text("utf-8")
        assert "\ndef plot(\n" in source and "\ndef summarize(\n" in source
        for function in ("plot", "summarize"):
            at = source.index(f"\ndef {function}(\n")
            body = source.index("\n    ", source.index(") -> ", at)) + 1
            source = source[:body] + "    print('changed')\n" + source[body:]
        path.write_text(source, "utf-8")
    assert versions_in(tmp_path) == before


def other_pythons():
    "Interpreters of other supported versions on this machine."
    found = [shutil.which(f"python3.{minor}") for minor in (11, 12, 13, 14)]
    found += map(str, Path("/root/.pyenv/versions").glob("3.1[1-9]*/bin/python"))
    return sorted({python for python in found if python and "shims" not in python})


@pytest.mark.parametrize("python", other_pythons())
def test_every_python_gives_the_same_version(python, tmp_path):
    copied_package(tmp_path)
    assert versions_in(tmp_path, python) == versions_in(tmp_path)


SYNTAX = r'''
x = f"a{b!r:>{w}}c" "d" f"{x=}" f"{x:}" f"{{}}" f"{x:%Y-%m}" rf"\d{x}"
async def f(a, /, b: int = 1, *c, d=1.0, **e) -> int:
    async with a as q, b: yield [i async for i in a if i]
match x:
    case {"a": 1, **r} | [1, *_]: pass
    case A(b=2) if x: pass
try: pass
except* ValueError as e: raise
@decorated(1)
class A(B, metaclass=M): v: int = 1
f = lambda x, *y, z=1: (x := 1e-3 + 1_000 + 2j - 1.5, u"s", b"\xff", ..., -0.0, "é\u2028\U0001fae8")
'''


def test_every_syntax_has_one_text_on_every_python():
    program = ("import ast, importlib.util, sys\n"
               "spec = importlib.util.spec_from_file_location('version', sys.argv[1])\n"
               "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
               "print(module.canonical_text(ast.parse(sys.argv[2])))")
    texts = {subprocess.run([python, "-c", program, page.__file__, SYNTAX], text=True, check=True,
                            capture_output=True).stdout
             for python in [sys.executable, *other_pythons()]}
    assert len(texts) == 1 and "Constant(value=-" not in texts.pop()


class Callable:
    "An object that can be called, with a setting."
    def __init__(self, steps): self.steps = steps
    def __call__(self, seed): return {"steps": self.steps}
    def method(self, seed): return {"steps": self.steps}
    @classmethod
    def of_class(cls, seed): return {}


def with_steps(steps, seed): return {"steps": steps}


def closing(value):
    def measure(seed): return {"value": value}
    return measure


@pytest.mark.parametrize("make", [Callable, lambda n: Callable(n).method, closing,
                                  lambda n: partial(with_steps, n),
                                  lambda n: partial(with_steps, steps=n)],
                         ids=["object", "method", "closure", "partial", "partial, by name"])
def test_values_that_come_with_measure_count(make):
    assert code_version(make(1)) == code_version(make(1)) != code_version(make(2))


def test_measure_that_has_no_version_is_refused(tmp_path):
    assert code_version(Callable.of_class)
    for measure, message in ((lambda seed: {}, "use def, not lambda"),
                             (len, "must be a Python function"),
                             (partial(with_steps, object()), "whose value has no version"),
                             (closing(object()), "whose value has no version")):
        with pytest.raises((TypeError, ValueError), match=message): code_version(measure)
    scope = {"__name__": "nowhere"}
    exec("def measure(seed): return {}", scope)
    with pytest.raises(ValueError, match="has no source"): code_version(scope["measure"])
    scope = {"__name__": "mine"}
    (tmp_path / "mine.py").write_text("other = 1")
    exec(compile("def measure(seed): pass", str(tmp_path / "mine.py"), "exec"), scope)
    with pytest.raises(ValueError, match="there is no measure at the top of"):
        code_version(scope["measure"])


def test_package_that_imports_from_itself_relatively(tmp_path, monkeypatch):
    (tmp_path / "pack" / "parts").mkdir(parents=True)
    files = {"__init__": "", "parts/__init__": "from .deep import depth", "parts/deep": "depth = 1",
             "beside": "from . import study  # a circle", "study": """
        from . import beside
        from .parts import depth
        def measure(seed): return {"y": depth, "z": beside}"""}
    for name, text in files.items():
        (tmp_path / "pack" / f"{name}.py").write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(tmp_path)
    measure = importlib.import_module("pack.study").measure
    assert {*code_sources(measure)} - {""} == {"pack", "pack.beside", "pack.parts",
                                               "pack.parts.deep", "pack.study"}
    before = code_version(measure)
    (tmp_path / "pack" / "parts" / "deep.py").write_text("depth = 22")
    assert code_version(measure) != before
    for name in [*sys.modules]:
        if name.partition(".")[0] == "pack": del sys.modules[name]


def test_this_package_counts_also_where_it_is_installed(tmp_path):
    "In a folder called site-packages, as after pip install."
    folder = tmp_path / "site-packages"
    copied_package(folder)
    copied_package(tmp_path)
    assert versions_in(folder) == versions_in(tmp_path)


def test_names_at_the_top_of_the_package_are_followed_to_where_they_are(tmp_path):
    "`vqvae.VQVAE` resolves lazily; its import for type checkers says where it is."
    if "VQVAE" not in (ROOT / "vqvae" / "__init__.py").read_text("utf-8"):
        pytest.skip("the package has no names at its top")
    source = "from vqvae import VQVAE\ndef measure(seed): return {'y': VQVAE}"
    (tmp_path / "top.py").write_text(source)
    scope = {"__name__": "top"}
    exec(compile("def measure(seed): pass", str(tmp_path / "top.py"), "exec"), scope)
    reached = {*code_sources(scope["measure"])}
    assert {"vqvae", "vqvae.models.vqvae", "vqvae.quantizers.search"} <= reached
