"""Extras hold what they promise: `lab` starts every notebook, and each extra works alone in a new
environment (marked network: `make test-install`)."""
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ONLY_CLUSTER = {"distributed", "cloudpickle"}  # imported where a study runs on a cluster
COMPANIONS = {"cycler", "matplotlib_inline"}  # parts of Matplotlib and of IPython
# rooms whose tests run with the lowest versions: what dtypes, files and torch.compile depend on
LOWEST = ("core", "encoders", "fsq_gumbel", "models", "quantizers", "quantizer_edges", "training")
INSTALL = ("-m", "pip", "install", "--quiet", "--no-compile", "--constraint",
           str(ROOT / "constraints.txt"))


def distribution(requirement: str) -> str:
    "The normalized name of what a requirement asks for."
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def closure(requirements: list[str]) -> set[str]:
    "The distributions that an installation of the requirements brings, none of their extras."
    found, todo = set(), [distribution(requirement) for requirement in requirements]
    while todo:
        name = todo.pop()
        if name in found: continue
        found.add(name)
        try: needed = requires(name) or []
        except PackageNotFoundError: continue
        todo += [distribution(line) for line in needed if "extra ==" not in line]
    return found


def imported(source: str) -> set[str]:
    "The top names of all absolute imports of a source, those inside of functions included."
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import): names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module)
    return {name.partition(".")[0] for name in names} - {*sys.stdlib_module_names, "vqvae"}


def code(path: Path) -> str:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return "\n\n".join(source for source in sources if not source.lstrip().startswith(("%", "!")))


def declared(*extras: str) -> set[str]:
    lists = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][e] for e in extras)]
    return closure([requirement for group in lists for requirement in group])


NOTEBOOKS = sorted(path for path in (ROOT / "nbs").rglob("*.ipynb")
                   if not any(part[0] in "._" for part in path.relative_to(ROOT).parts))


@pytest.mark.parametrize("notebook", [path.relative_to(ROOT).as_posix() for path in NOTEBOOKS])
def test_lab_brings_what_the_notebook_imports(notebook):
    allowed, known = declared("lab"), packages_distributions()
    for name in imported(code(ROOT / notebook)) - ONLY_CLUSTER:
        assert {distribution(d) for d in known.get(name, [name])} & allowed, (
            f"{name} is in no distribution of the extra lab")


def test_the_package_imports_what_is_required_by_name():
    "No module of the package lives on what another package happens to bring."
    named = {distribution(r) for group in ("lab", "cluster")
             for r in PROJECT["optional-dependencies"][group]}
    named |= {distribution(requirement) for requirement in PROJECT["dependencies"]}
    known = packages_distributions()
    for path in sorted((ROOT / "vqvae").rglob("*.py")):
        for name in imported(path.read_text(encoding="utf-8")) - ONLY_CLUSTER - COMPANIONS:
            assert {distribution(d) for d in known.get(name, [name])} & named, f"{path}: {name}"


# In new environments

USE_LAB = """import sys
from nbconvert.preprocessors import ExecutePreprocessor
import nbformat, jupyterlab
for name in sys.argv[1:]:
    notebook = nbformat.read(name, 4)
    ExecutePreprocessor(timeout=300).preprocess(notebook)
    print(name, "runs")"""
USE_CLUSTER = """from pathlib import Path
from distributed import LocalCluster
from vqvae.studies import find_study, run_study
if __name__ == "__main__":
    Path("dice.py").write_text('''
import random
from vqvae.studies import Study
def measure(faces, seed): return {"points": random.Random(seed).randint(1, faces)}
dice = Study("dice", "How many points?", measure, [{"faces": 6}], seeds=range(3))
''')
    with LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster:
        rows = run_study(find_study("dice.py"), "studies", scheduler=cluster.scheduler_address)
    assert len(rows) == 3 and rows.error.isna().all(), rows
    print("the cluster measured")"""


def run(folder: Path, *command: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(ROOT, sys.executable, "-m", "build", "--wheel", "--outdir", str(folder))
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def core(wheel, tmp_path_factory) -> Path:
    "A new environment that holds the wheel and its requirements."
    folder = tmp_path_factory.mktemp("core") / "environment"
    run(ROOT, sys.executable, "-m", "venv", str(folder))
    run(ROOT, str(folder / "bin" / "python"), *INSTALL, str(wheel))
    return folder


def with_extra(core: Path, wheel: Path, extra: str, folder: Path) -> str:
    "The Python of a copy of the environment with one extra more; unchanged files are shared."
    copy = folder / "environment"
    shutil.copytree(core, copy, symlinks=True, copy_function=os.link)
    python = str(copy / "bin" / "python")
    run(folder, python, *INSTALL, f"{wheel}[{extra}]")
    return python


@pytest.mark.network
@pytest.mark.slow
def test_core_alone(core, tmp_path):
    python = str(core / "bin" / "python")
    shutil.copy(ROOT / "tests" / "quickstart.py", tmp_path)
    assert "quick start: ok" in run(tmp_path, python, "quickstart.py")
    found = ("from importlib.util import find_spec\n"
             "print([name for name in ('fastcore', 'distributed', 'IPython') if find_spec(name)])")
    assert run(tmp_path, python, "-c", found) == "[]\n"
    assert "first-look" in run(tmp_path, str(core / "bin" / "vqvae"), "study", "list")


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.skipif("LOWEST_VERSIONS" not in os.environ,
                    reason="downloads another PyTorch, gigabytes: LOWEST_VERSIONS=1 runs it")
def test_lowest_versions_that_are_declared(wheel, tmp_path):
    folder = tmp_path / "environment"
    run(tmp_path, sys.executable, "-m", "venv", str(folder))
    lowest = [requirement.replace(">=", "==") for requirement in PROJECT["dependencies"]]
    python = str(folder / "bin" / "python")
    run(tmp_path, python, *INSTALL[:4], str(wheel), "pytest>=8.2", *lowest)
    shutil.copytree(ROOT / "tests", tmp_path / "tests")  # outside of the checkout
    files = [f"tests/test_{name}.py" for name in LOWEST]
    run(tmp_path, python, "-m", "pytest", "-q", "-c", str(ROOT / "pyproject.toml"), "--rootdir",
        str(tmp_path), *files)


@pytest.mark.network
@pytest.mark.slow
def test_lab_alone(core, wheel, tmp_path):
    python = with_extra(core, wheel, "lab", tmp_path)
    names = [str(ROOT / "nbs" / name) for name in ("quantizers/04_vq.ipynb",
                                                   "explorers/05_codebook.ipynb")]
    assert run(tmp_path, python, "-c", USE_LAB, *names).count("runs") == 2


@pytest.mark.network
@pytest.mark.slow
def test_cluster_alone(core, wheel, tmp_path):
    python = with_extra(core, wheel, "cluster", tmp_path)
    (tmp_path / "use.py").write_text(USE_CLUSTER)
    assert "measured" in run(tmp_path, python, "use.py")
