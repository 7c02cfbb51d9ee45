"""Render nbs/index.ipynb to README.md with pandoc.

`python tools/readme.py [--check] [notebook] [folder of the README]`
"""
import argparse
import base64
import json
import posixpath
import re
from pathlib import Path

import pypandoc

HEADER = "<!-- Rendered from {notebook} by `make readme`: edit the notebook. -->\n\n"
HIDDEN = r"hide|default_exp|export|include:\s*false"  # neither source nor outputs are shown
NO_SOURCE = HIDDEN + r"|hide_input|echo:\s*false"
NO_OUTPUT = HIDDEN + r"|hide_output|output:\s*false"


def flagged(source: str, flags: str) -> bool:
    return re.search(rf"^#\s*\|\s*({flags})\b", source, re.MULTILINE) is not None


def fenced(text: str, language: str = "") -> str:
    text = text.lstrip("\n").rstrip()  # a first line may be indented
    return f"```{language}\n{text}\n```"


def output_markdown(output: dict, caption: str, figures: dict[str, bytes], folder: str) -> str:
    "One output as Markdown; a picture is added to `figures` and linked."
    if output["output_type"] == "stream":
        return fenced("".join(output["text"])) if output["name"] == "stdout" else ""
    data = {mime: "".join(text)
            for mime, text in output.get("data", {}).items() if isinstance(text, str | list)}
    if "text/markdown" in data: return data["text/markdown"]
    for mime, suffix in {"image/svg+xml": "svg", "image/png": "png"}.items():
        if mime in data:
            name = f"{folder}/figure-{len(figures) + 1}.{suffix}"
            figures[name] = data[mime].encode() if suffix == "svg" else base64.b64decode(data[mime])
            return f"![{caption}]({name})"
    return fenced(data["text/plain"]) if "text/plain" in data else ""


def notebook_markdown(notebook: dict, folder: str = "index_files") -> tuple[str, dict[str, bytes]]:
    "What a reader sees of a notebook, and the pictures in it, which go to `folder`: name -> bytes."
    parts, figures = [], {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown": parts.append(source)
        if cell["cell_type"] != "code": continue
        code = re.sub(r"^#\s*\|.*\n?", "", source, flags=re.MULTILINE).strip()
        if code and not flagged(source, NO_SOURCE): parts.append(fenced(code, "python"))
        caption = re.search(r"^#\s*\|\s*fig-(?:cap|alt):\s*(.*)", source, re.MULTILINE)
        if not flagged(source, NO_OUTPUT):
            parts += [output_markdown(o, caption[1].strip("\"' ") if caption else "", figures,
                                      folder) for o in cell["outputs"]]
    return "\n\n".join(filter(None, parts)), figures


def relink(node, folder: str) -> None:
    "Let the relative links and pictures of a pandoc tree start at the folder above `folder`."
    if isinstance(node, list):
        for child in node: relink(child, folder)
    elif isinstance(node, dict):
        if node.get("t") in ("Link", "Image"):
            target = node["c"][2]
            if not re.match(r"[a-z]+:|#|/", target[0]):
                target[0] = posixpath.normpath(f"{folder}/{target[0]}")
        for child in node.values(): relink(child, folder)


def render(path: Path, root: Path) -> dict[Path, bytes]:
    "Every file that the README consists of: path -> content."
    markdown, figures = notebook_markdown(json.loads(path.read_text(encoding="utf-8")))
    citations = [f"--bibliography={bib}" for bib in sorted(path.parent.glob("*.bib"))]
    tree = json.loads(pypandoc.convert_text(markdown, "json", "markdown-implicit_figures",
                                            extra_args=["--citeproc", *citations]))
    # explorers need a page
    tree["blocks"] = [block for block in tree["blocks"] if block["t"] != "RawBlock"]
    relink(tree, path.parent.relative_to(root).as_posix())
    text = pypandoc.convert_text(json.dumps(tree), "gfm", "json", extra_args=["--wrap=none"])
    readme = HEADER.format(notebook=path.relative_to(root).as_posix()) + text
    return {root / "README.md": readme.encode(),
            **{path.parent / name: data for name, data in figures.items()}}


def differences(path: Path, root: Path) -> list[str]:
    "The rendered files that are missing or differ, and figures that nothing shows."
    files = render(path, root)
    stale = [file for file, content in files.items() if not file.exists()
             or file.read_bytes() != content]
    stale += [file for file in (path.parent / "index_files").glob("*") if file not in files]
    return [
        f"{file.relative_to(root)} is not what {path.relative_to(root)} renders to: run `make "
        "readme`"
        for file in stale
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true",
                        help="write nothing; fail if a file differs")
    parser.add_argument("notebook", nargs="?", type=Path, default=Path("nbs/index.ipynb"))
    parser.add_argument("root", nargs="?", type=Path, default=Path())
    args = parser.parse_args()
    path, root = args.notebook.absolute(), args.root.absolute()
    if args.check: raise SystemExit("\n".join(differences(path, root)) or None)
    files = render(path, root)
    for file in (path.parent / "index_files").glob("*"): file.unlink()
    for file, content in files.items():
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)


if __name__ == "__main__": main()
