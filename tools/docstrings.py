"Docments as Google-style docstrings, which `help()`, editors and the command line read."
import ast
import io
import json
import re
import textwrap
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pypandoc

WIDTH = 100
BIBLIOGRAPHY = Path(__file__).resolve().parent.parent / "nbs" / "references.bib"
Function = ast.FunctionDef | ast.AsyncFunctionDef


# Citations

@cache
def references() -> dict[str, str]:
    "What stands for every key of the bibliography: 'van den Oord et al. 2017'."
    entries = json.loads(pypandoc.convert_file(str(BIBLIOGRAPHY), "csljson", "biblatex"))
    return {entry["id"]: _authors_and_year(entry) for entry in entries}


def _authors_and_year(entry: dict) -> str:
    people = entry.get("author") or entry.get("editor") or [{"literal": entry["id"]}]
    names = [" ".join(filter(None, (person.get("non-dropping-particle"),
                                    person.get("dropping-particle"),
                                    person.get("family") or person.get("literal"))))
             for person in people]
    who = " and ".join(names) if len(names) < 3 else f"{names[0]} et al."
    year = entry.get("issued", {}).get("date-parts", [[""]])[0][0]
    return f"{who} {year}".strip()


KEYS = r"\[(@[^\]]*)\]"
# at the end of a phrase, which is whole without it
AT_END = rf"(?<! as in)(?<! by)(?<! from)(?<! in)(?<! of)(?<! see)\s+{KEYS}(?=[.,;:)]|\s*$)"


def named(keys: str) -> str:
    "What stands for '@key, section 2; @other'; raises `ValueError` for an unknown key."
    def text(key: re.Match) -> str:
        if key[1] in references(): return references()[key[1]]
        raise ValueError(f"a docstring cites {key[1]}, which {BIBLIOGRAPHY.name} lacks")
    return " ".join(re.sub(r"@([\w:-]+)", text, keys).split())


def cite(text: str) -> str:
    "Readable text for citation keys: `[@key, section 2]` becomes `(Author 2017, section 2)`."
    return re.sub(KEYS, lambda found: f"({named(found[1])})", text)


def sources_last(text: str) -> str:
    "A docstring whose first paragraph, which many tools show alone, cites in a line of its own."
    first, gap, rest = text.partition("\n\n")
    cited = [named(found[1]) for found in re.finditer(AT_END, first)]
    if not cited: return text
    first = textwrap.fill(" ".join(re.sub(AT_END, "", first).split()), WIDTH - 8)
    return f"{first}{gap}{rest}\n\nSource: {'; '.join(cited)}."


# Docments

def comments(source: str) -> dict[int, str]:
    "The comments of a source by line."
    return {token.start[0]: token.string.lstrip("#").strip()
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT}


def documented(lines: dict[int, str], notes: dict[int, str]) -> dict[str, str]:
    "Comments by name, given each name's line: behind the name, else on the lines above it."
    found = {}
    for line, name in lines.items():
        if line in notes:
            found[name] = notes[line]
            continue
        above = []
        while (line := line - 1) in notes and line not in lines: above.insert(0, notes[line])
        if above: found[name] = " ".join(above)
    return found


def argument_lines(node: Function) -> dict[int, str]:
    "The line of every argument and, as 'return', of the result's type."
    spec = node.args
    arguments = [*spec.posonlyargs, *spec.args, *filter(None, [spec.vararg]), *spec.kwonlyargs,
                 *filter(None, [spec.kwarg])]
    lines = {argument.lineno: argument.arg for argument in arguments}
    return lines | ({node.returns.lineno: "return"} if node.returns else {})


def field_lines(node: ast.ClassDef) -> dict[int, str]:
    "The line of every annotated field of a class."
    return {field.lineno: field.target.id for field in node.body
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            and not field.target.id.startswith("_")}


# Docstrings

def _section(title: str, items: dict[str, str]) -> str:
    wrap = textwrap.TextWrapper(WIDTH - 8, initial_indent=" " * 4, subsequent_indent=" " * 8,
                                break_long_words=False, break_on_hyphens=False)
    lines = [wrap.fill(f"{name}: {text}" if name else text) for name, text in items.items()]
    return f"\n\n{title}:\n" + "\n".join(lines) if lines else ""


def compose(text: str, title: str, notes: dict[str, str]) -> str:
    "A docstring with readable citations and a section per kind of docment."
    text = "\n".join(textwrap.fill(line, WIDTH - 8) if len(line) > WIDTH - 8 else line
                     for line in cite(sources_last(text)).splitlines())
    notes = {name: cite(note) for name, note in notes.items()}
    returns = {"": notes.pop("return")} if "return" in notes else {}
    return (text + _section(title, notes) + _section("Returns", returns)).strip()


def literal(text: str, indent: int) -> str:
    "A docstring as source: raw where it holds TeX."
    end = "\n" if "\n" in text or text.endswith('"') else ""
    source = f'{"r" if chr(92) in text else ""}"""{text}{end}"""'
    if ast.literal_eval(source) != text + end: source = repr(text)
    return textwrap.indent(source, " " * indent)


def rewritten(node: Function | ast.ClassDef, notes: dict[int, str],
              summary: str = "") -> str | None:
    "The new docstring of a definition, or None where the old one stays."
    old = ast.get_docstring(node)
    if isinstance(node, ast.ClassDef):
        fields = documented(field_lines(node), notes) if _is_record(node) else {}
        new = compose(old or "", "Attributes", fields)
    else:
        documents = documented(argument_lines(node), notes)
        new = compose(old or (summary if documents else ""), "Args", documents)
    return new if new and new != old else None


def _is_record(node: ast.ClassDef) -> bool:
    "Whether a class's fields are its constructor's arguments."
    names = [ast.unparse(part) for part in [*node.bases, *node.decorator_list]]
    return any(name.startswith(("NamedTuple", "dataclass")) for name in names)


def definitions(body: list[ast.stmt], summary: str = "") -> Iterator[tuple]:
    "Public functions, classes and their public methods, each with the summary of its class."
    for node in body:
        if not isinstance(node, Function | ast.ClassDef): continue
        if node.name.startswith("_") and node.name not in ("__init__", "__call__"): continue
        yield node, summary
        if isinstance(node, ast.ClassDef):
            first = sources_last(ast.get_docstring(node) or "").partition("\n\n")[0]
            yield from definitions(node.body, textwrap.fill(first, WIDTH - 12))


def with_docstrings(source: str) -> str:
    "The source of definitions with docments and citations written into their docstrings."
    lines, notes = source.splitlines(), comments(source)
    for node, summary in reversed([*definitions(ast.parse(source).body)]):
        first, new = node.body[0], rewritten(node, notes, summary)
        if new is None or lines[first.lineno - 1][:first.col_offset].strip(): continue
        at = min([first, *getattr(first, "decorator_list", [])], key=lambda n: n.lineno).lineno - 1
        end = at if ast.get_docstring(node) is None else first.end_lineno
        lines[at:end] = [literal(new, first.col_offset)]
    return "\n".join(lines)
