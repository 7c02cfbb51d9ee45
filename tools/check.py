"What `make check` asks after cleaning and exporting: prints every problem, fails if there is one."
import json
import re
import subprocess
from collections import defaultdict
from pathlib import Path

import yaml
from readme import differences

ROOT = Path(__file__).resolve().parent.parent
NBS, PACKAGE = ROOT / "nbs", ROOT / "vqvae"
BY_HAND = {PACKAGE / "__init__.py", PACKAGE / "_modidx.py"}  # the version line, and nbdev's index


def git(*args: str) -> list[str]:
    return subprocess.run(["git", *args], cwd=ROOT, check=True, capture_output=True,
                          text=True).stdout.splitlines()


def notebooks() -> list[Path]:
    "The notebooks that nbdev sees."
    paths = (path.relative_to(NBS) for path in NBS.rglob("*.ipynb"))
    return sorted(path for path in paths if not any(part[0] in "._" for part in path.parts))


def default_exp(path: Path) -> str | None:
    "The module that a notebook exports, or None."
    for cell in json.loads((NBS / path).read_text("utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            if found := re.search(r"^#\s*\|\s*default_exp\s+(\S+)", "".join(cell["source"]),
                                  re.MULTILINE):
                return found[1]


def page(path: Path) -> str:
    "The page that a notebook becomes: without its number."
    return path.with_name(re.sub(r"^\d+[a-zA-Z0-9]*_", "",
                                 path.name)).with_suffix(".html").as_posix()


def crowded_heads() -> list[Path]:
    """Notebooks whose first cell holds more than title and description: nbdev would drop the rest
    from the page."""
    first = {path: "".join(json.loads((NBS / path).read_text("utf-8"))["cells"][0]["source"])
             for path in notebooks()}
    return [path
            for path, text in first.items()
            if any(line and line[:2] not in ("# ", "> ") for line in text.splitlines())]


def widget_states() -> list[Path]:
    "Notebooks that store the state of widgets, with model ids that change at every run."
    return [path
            for path in notebooks()
            if "widgets" in json.loads((NBS / path).read_text("utf-8"))["metadata"]]


def repeated(names: dict[Path, str]) -> list[tuple[str, str]]:
    "Names that several notebooks share, with those notebooks."
    users = defaultdict(list)
    for path, name in names.items(): users[name].append(path.as_posix())
    return [(name, ", ".join(paths)) for name, paths in users.items() if len(paths) > 1]


def sidebar_pages(node) -> set[str]:
    "Every notebook named in the navigation of _quarto.yml."
    if isinstance(node, str): return {node} if node.endswith(".ipynb") else set()
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return set().union(*map(sidebar_pages, children))


def missing_references() -> list[tuple[str, Path]]:
    "Citations of keys that the bibliography lacks, with the notebook that cites."
    bibliography = (NBS / "references.bib").read_text("utf-8")
    known = set(re.findall(r"^@\w+\{([^,]+),", bibliography, re.MULTILINE))
    cells = ((path, cell) for path in notebooks() for cell in
             json.loads((NBS / path).read_text("utf-8"))["cells"])
    cited = {(key, path) for path, cell in cells if cell["cell_type"] == "markdown"
             for key in re.findall(r"(?<![\w.`])@([a-z]+\d{4}\w*)", "".join(cell["source"]))}
    return sorted((key, path) for key, path in cited if key not in known)


def code_notes() -> list[str]:
    "Which committed rows of studies were measured with today's code; no problem, but to be seen."
    from vqvae.studies.store import code_note, load_rows
    from vqvae.studies.study import find_study, study_names

    notes = []
    for path in sorted((NBS / "studies" / "results").glob("*.csv")):
        # a study's tuning lies beside its rows: quantizers-tuning
        name = max((name for name in study_names() if path.stem.startswith(name)), key=len)
        notes.append(f"{path.relative_to(ROOT)}: {code_note(load_rows(path), find_study(name))}")
    return notes


def problems() -> list[str]:
    paths = notebooks()
    modules = {path: name for path in paths if (name := default_exp(path))}
    pages = {path.as_posix() for path in paths}
    exported = {PACKAGE / (name.replace(".", "/") + ".py") for name in modules.values()}
    written = {file for file in PACKAGE.rglob("*.py") if file.read_text("utf-8").strip()} - BY_HAND
    listed = sidebar_pages(yaml.safe_load((ROOT / "_quarto.yml").read_text("utf-8")))
    return [
        *(
            f"{file} differs from what git has: review it and `git add` it"
            for file in git("diff", "--name-only")
        ),
        *(
            f"{file} is untracked: add, ignore or remove it"
            for file in git("ls-files", "--others", "--exclude-standard")
        ),
        *(
            f"{file.relative_to(ROOT)} is stale: no notebook exports it"
            for file in sorted(written - exported)
        ),
        *(
            f"default_exp {name} stands in several notebooks: {users}"
            for name, users in repeated(modules)
        ),
        *(
            f"the page {name} comes from several notebooks: {users}"
            for name, users in repeated({path: page(path) for path in paths})
        ),
        *(f"_quarto.yml does not list the page {name}" for name in sorted(pages - listed)),
        *(f"_quarto.yml lists {name}, which has no notebook" for name in sorted(listed - pages)),
        *(f"{path} stores the state of widgets: run `make notebooks`" for path in widget_states()),
        *(
            f"{path} begins with a cell that holds more than title and description: move the rest "
            "to the next cell"
            for path in crowded_heads()
        ),
        *(f"{path} cites {key}, which references.bib lacks" for key, path in missing_references()),
        *differences(NBS / "index.ipynb", ROOT),
    ]


if __name__ == "__main__":
    print(*code_notes(), sep="\n")
    raise SystemExit("\n".join(problems()) or None)
