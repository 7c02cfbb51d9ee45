"""Export the notebooks to the package, as nbdev_export does, with docments written into docstrings.

`python tools/export.py` exports every notebook, `python tools/export.py nbs/x.ipynb …` only these.
"""
import os
import sys
from pathlib import Path

os.environ.pop("IN_TEST", None)

from docstrings import with_docstrings  # noqa: E402
from nbdev.config import add_init, get_config  # noqa: E402
from nbdev.doclinks import _build_modidx, nbglob  # noqa: E402
from nbdev.export import nb_export  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


def google_docstrings(cell) -> None:
    "nbdev's processor of a cell: an exported definition gets its docstrings."
    if cell.cell_type == "code" and {"export", "exports", "exporti"} & set(cell.directives_):
        cell.set_source(with_docstrings(cell.source))


def main() -> None:
    os.chdir(ROOT)
    paths = [Path(name) for name in sys.argv[1:]] or nbglob(as_path=True).sorted("name")
    for path in paths: nb_export(path, procs=[google_docstrings])
    add_init(get_config().lib_path)
    _build_modidx()


if __name__ == "__main__": main()
