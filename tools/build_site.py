"""The documentation site in _docs/: `python tools/build_site.py`, or one page, given its notebook.

Quarto renders the site where `quarto` is on the PATH, else pandoc does; pandoc renders a page.
"""
import argparse
import ast
import inspect
import json
import os
import posixpath
import re
import shutil
import subprocess
import tempfile
import textwrap
from concurrent.futures import ThreadPoolExecutor
from html import escape
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Self

import pypandoc
import traitlets.traitlets
import yaml
from nbdev import serve_drv
from nbdev.config import get_config
from nbdev.processors import FilterDefaults
from nbdev.serve import proc_nbs
from pagefind.service import get_executable
from readme import notebook_markdown

from vqvae._modidx import d as symbols

ROOT = Path(__file__).resolve().parent.parent
THEME = Path(__file__).resolve().parent / "site"
PANDOC = "markdown-implicit_figures+autolink_bare_uris"


class Page(NamedTuple):
    source: str  # notebook, relative to _proc
    target: str  # HTML file, relative to _docs
    title: str
    description: str
    markdown: str  # what a reader sees
    figures: dict[str, bytes]  # name -> content


def read_page(path: Path, folder: Path) -> Page:
    "A notebook that nbdev has processed: its first cell holds title, description and file name."
    notebook = json.loads(path.read_text(encoding="utf-8"))
    source = path.relative_to(folder).as_posix()
    head = next(("".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "raw"),
                "---\n---")
    meta = yaml.safe_load(head.strip().strip("-")) or {}
    target = posixpath.join(posixpath.dirname(source),
                            meta.get("output-file", path.with_suffix(".html").name))
    figures = f"{posixpath.basename(target).removesuffix('.html')}_files"
    return Page(source, target, meta.get("title", path.stem), meta.get("description", ""),
                *notebook_markdown(notebook, figures))


def relative(target: str, page: str) -> str:
    "A path in the site as seen from a page."
    return posixpath.relpath(target, posixpath.dirname(page) or ".")


# What nbdev wrote, made fit for this site

NAME_LINK = r"\[(`[^`\n]+`)\]\([^()\s]*\)"  # what it makes of a name in backticks
NO_SIGNATURE = (r"(\[source\]\([^\s)]*/(vqvae/[\w/]+)\.py#.*?^```python\n)def (\w+)\(\n"
                r"    \*args(?::object)?, \*\*kwargs(?::object)?\n\)(?:->None)?:\n")
# sections of a docstring that tools/docstrings.py made of what the signature above it says
SECTIONS = r"(?:\n+(?:Args|Attributes|Returns):(?:\n+ {4}.*)+)+"


def fields(module: str, name: str) -> str:
    """The head of a class that writes no constructor, and its public fields, as they stand in the
    source."""
    source = inspect.getsource(getattr(import_module(module), name))
    lines, body = source.splitlines(keepends=True), ast.parse(source).body[0].body
    named = {node: ast.unparse(node.target if isinstance(node, ast.AnnAssign) else node.targets[0])
             for node in body if isinstance(node, ast.AnnAssign | ast.Assign)}
    shown = "".join("".join(lines[node.lineno - 1 : node.end_lineno])
                    for node, target in named.items() if not target.startswith("_"))
    return lines[0] + (shown.replace(".tag(sync=True)", "") or "    ...\n")


def several(name: str) -> bool:
    "Whether more than one module defines it, as every study defines `measure`."
    return sum(f"{module}.{name}" in names for module, names in symbols["syms"].items()) > 1


def tidy(markdown: str) -> str:
    """Fields for a signature that says nothing; a number beside its ±, → and %; no link where
    none can be: in a signature, inside of
    a link that the author wrote, for a name that several modules define."""
    markdown = re.sub(NO_SIGNATURE, lambda doc: doc[1] + fields(doc[2].replace("/", "."), doc[3]),
                      markdown, flags=re.DOTALL | re.MULTILINE)
    if "[source](" in markdown: markdown = re.sub(SECTIONS, "\n", markdown)
    markdown = re.sub(r"(?<=\d) %(?! ?\d)", "\xa0%",
                      re.sub(r"(?<=\d) → (?=\d)", "\xa0→\xa0",
                             markdown.replace(" ± ", "\xa0±\xa0")))
    markdown = re.sub(r"^```python$.*?^```$", lambda block: re.sub(NAME_LINK, r"\1", block[0]),
                      markdown, flags=re.DOTALL | re.MULTILINE)
    markdown = re.sub(NAME_LINK, lambda link: link[1] if several(link[1].strip("`()")) else link[0],
                      markdown)
    return re.sub(rf"\[([^][\n]*){NAME_LINK}([^][\n]*)\]\(", r"[\1\2\3](", markdown)


def say_where_from(cells: list[dict]) -> None:
    "Put the import of all that a page defines before the first definition."
    found = {at: re.search(r"show_doc\((\w+)\).*/(vqvae/[\w/]+)\.py#",
                           "".join(cell["source"]) + json.dumps(cell.get("outputs")), re.DOTALL)
             for at, cell in enumerate(cells) if cell["cell_type"] == "code"}
    found = {at: match for at, match in found.items() if match}
    if not found: return
    first, names = min(found), ", ".join(match[1] for match in found.values())
    line = f"from {found[first][2].replace('/', '.')} import "
    line += (
        names
        if len(line + names) < 80
        else "(\n"
        + textwrap.fill(names, 79, initial_indent=" " * 4, subsequent_indent=" " * 4)
        + ")"
    )
    cells.insert(first,
                 {"cell_type": "markdown", "id": "imports", "metadata": {},
                  "source": f"```python\n{line}\n```"})


def localize(source: Path, host: str) -> None:
    """Let nbdev's links to the published site lead into this one; a method leads to its class, a
    private name to its page."""
    for path in source.rglob("*.ipynb"):
        def inside(found: re.Match) -> str:
            anchor = found[2].partition(".")[0]
            return relative(found[1], path.relative_to(source).as_posix()) + (
                "" if anchor.startswith("_") else f"#{anchor}"
            )
        def local(lines: list[str] | str) -> list[str]:
            return tidy(re.sub(re.escape(host) + r"/([\w/]+\.html)#([\w.]+)", inside,
                               "".join(lines))).splitlines(keepends=True)
        notebook = json.loads(path.read_text(encoding="utf-8"))
        say_where_from(notebook["cells"])
        for cell in notebook["cells"]:
            if cell["cell_type"] != "code": cell["source"] = local(cell["source"])
            for output in cell.get("outputs", []):
                if "text/markdown" in output.get("data", {}):
                    output["data"]["text/markdown"] = local(output["data"]["text/markdown"])
        path.write_text(json.dumps(notebook), encoding="utf-8")


# Links between pages

def resolve(link: str, page: Page, targets: dict[str, str]) -> str:
    "Where a link of a page leads in the site: notebooks have become pages."
    path, mark, anchor = link.partition("#")
    if not path or re.match(r"[a-z]+:|/", path): return link
    inside = posixpath.normpath(posixpath.join(posixpath.dirname(page.source), path))
    return relative(targets[inside], page.target) + mark + anchor if inside in targets else link


def relink(node: Any, page: Page, targets: dict[str, str]) -> None:
    "Resolve every link in a pandoc tree."
    if isinstance(node, dict):
        if node.get("t") == "Link": node["c"][2][0] = resolve(node["c"][2][0], page, targets)
        node = list(node.values())
    if isinstance(node, list):
        for child in node: relink(child, page, targets)


# Navigation from the sidebar of _quarto.yml

def navigation(node: Any, page: Page, pages: dict[str, Page]) -> str:
    "The sidebar as seen from a page: the sections on the way to it are open."
    if isinstance(node, str):
        here = ' aria-current="page"' if node == page.source else ""
        target = relative(pages[node].target, page.target)
        return f'<li><a href="{target}"{here}>{escape(pages[node].title)}</a></li>'
    inner = "".join(navigation(child, page, pages) for child in node["contents"])
    if "href" in node:
        start = navigation(node["href"], page, pages)
        inner = re.sub(r">[^<]*</a>", ">Overview</a>", start) + inner
    state = " open" if "aria-current" in inner else ""
    title = escape(node["section"])
    return f"<li><details{state}><summary>{title}</summary><ul>{inner}</ul></details></li>"


def reading_order(node: Any) -> list[str]:
    "The notebooks of the sidebar in order."
    if isinstance(node, str): return [node]
    children = node if isinstance(node, list) else [*([node["href"]] if "href" in node else []),
                                                    *node["contents"]]
    return [name for child in children for name in reading_order(child)]


# One page

def finish(html: str, figures: dict[str, bytes]) -> str:
    """The mark after a formula stays on its line, the search does not read TeX, and figures of
    several panels are known as wide."""
    for name, content in figures.items():
        svg = re.match(rb'<svg[^>]* width="([\d.]+)pt"', content[content.find(b"<svg"):])
        width = (
            float(svg[1])
            if svg
            else int.from_bytes(content[16:20]) / 2
            if content.startswith(b"\x89PNG")
            else 0
        )
        if width > 520: html = html.replace(f'<img src="{name}"', f'<img class="wide" src="{name}"')
    html = html.replace("<annotation ", "<annotation data-pagefind-ignore ")
    return re.sub(r'(<math display="inline"(?:(?!</math>).)*</math>)([.,:;?!)]+)',
                  r'<span class="together">\1\2</span>', html, flags=re.DOTALL)


def render(page: Page, config: dict, pages: dict[str, Page], order: list[str], source: Path,
           out: Path) -> None:
    "Write a page and its figures."
    site, here = config["website"], order.index(page.source)
    targets = {name: p.target for name, p in pages.items()}
    bibliography = [f"--bibliography={source / config['bibliography']}", "--citeproc"]
    summary = f"::: {{.summary}}\n{page.description}\n:::\n\n" if page.description else ""
    tree = json.loads(pypandoc.convert_text(summary + page.markdown, "json", PANDOC,
                                            extra_args=bibliography))
    relink(tree, page, targets)
    variables = {
        "page-title": page.title,
        "description": re.sub(r"[`$*]", "", page.description),
        "site-title": site["title"],
        "lang": config["lang"],
        "root": relative(".", page.target),
        "repo": site["repo-url"],
        "notebook": f"{site['repo-url']}/blob/{site['repo-branch']}/nbs/{page.source}",
        "nav": "".join(navigation(child, page, pages) for child in site["sidebar"]["contents"]),
    }
    for name, at in (("prev", here - 1), ("next", here + 1)):
        if 0 <= at < len(order):
            variables |= {f"{name}-href": relative(targets[order[at]], page.target),
                          f"{name}-title": pages[order[at]].title}
    options = [f"--variable={name}:{value}" for name, value in variables.items()]
    html = pypandoc.convert_text(json.dumps(tree), "html5", "json",
                                 extra_args=["--standalone", f"--template={THEME / 'page.html'}",
                                             f"--metadata=pagetitle:{page.title}", "--mathml",
                                             "--toc",
                                             f"--toc-depth={config['format']['html']['toc-depth']}",
                                             "--wrap=none", *options])
    file = out / page.target
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(finish(html, page.figures), encoding="utf-8")
    for name, content in page.figures.items():
        (file.parent / name).parent.mkdir(exist_ok=True)
        (file.parent / name).write_bytes(content)


def with_pandoc(source: Path, out: Path) -> None:
    "Render the processed notebooks with pandoc, and index them for the search."
    config = yaml.safe_load((source / "_quarto.yml").read_text(encoding="utf-8"))
    order = reading_order(config["website"]["sidebar"]["contents"])
    pages = {name: read_page(source / name, source) for name in order}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda page: render(page, config, pages, order, source, out), pages.values()))
    for name in ("site.css", "site.js"): shutil.copy(THEME / name, out / name)
    subprocess.run([get_executable(), "--site", out, "--quiet"], check=True)


# The site, or one page of it

def outline(path: Path) -> Page:
    "A notebook as other pages name it: where it goes and what it is called."
    first = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
    title = re.search(r"^# (.+)", first, re.MULTILINE)
    name = path.relative_to(ROOT / "nbs")
    target = name.with_name(re.sub(r"^\d+[a-zA-Z0-9]*_", "", name.name)).with_suffix(".html")
    return Page(name.as_posix(), target.as_posix(), title[1] if title else name.stem, "", "", {})


def one_page(notebook: Path, settings: Any, out: Path) -> Path:
    "Render one notebook into the site; the other pages are only named."
    nbs = ROOT / "nbs"
    config = yaml.safe_load((nbs / "_quarto.yml").read_text(encoding="utf-8"))
    order = reading_order(config["website"]["sidebar"]["contents"])
    pages = {name: outline(nbs / name) for name in order}
    name = notebook.relative_to(nbs).as_posix()
    with tempfile.TemporaryDirectory() as folder:
        source, processed = Path(folder), Path(folder) / name
        processed.parent.mkdir(parents=True, exist_ok=True)
        serve_drv.main((notebook, processed, FilterDefaults))
        shutil.copy(nbs / config["bibliography"], source)
        localize(source, f"{settings.doc_host}{settings.doc_baseurl}")
        pages[name] = read_page(processed, source)
        render(pages[name], config, pages, order, source, out)
    for file in ("site.css", "site.js"): shutil.copy(THEME / file, out / file)
    return out / pages[name].target


def whole_site(settings: Any, out: Path) -> Path:
    "Render every notebook."
    source = ROOT / "_proc"
    proc_nbs(n_workers=0, force=True)
    localize(source, f"{settings.doc_host}{settings.doc_baseurl}")
    shutil.rmtree(out, ignore_errors=True)
    if shutil.which("quarto"):
        subprocess.run(["quarto", "render", source], check=True)
        shutil.move(source / "_docs", out)
    else: with_pandoc(source, out)
    return out / "index.html"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebook", nargs="?", type=Path, help="one page, for example nbs/x.ipynb")
    notebook, settings = parser.parse_args().notebook, get_config()
    out = ROOT / settings.doc_path.name
    traitlets.traitlets.Self = Self  # a widget's signature names it, and Python 3.11.2 looks it up
    if notebook: print(f"the page is {one_page(notebook.absolute(), settings, out)}")
    else:
        print(f"the site is in {out}: open {whole_site(settings, out)}, or with the search: python "
              f"-m http.server -d {out}")


if __name__ == "__main__": main()
