"""The built site in a browser: every page, every link, every explorer.

`make site` first; VQVAE_SITE names another folder, a Quarto build for example.
"""
import functools
import os
import re
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browser import missing
from bs4 import BeautifulSoup

SITE = Path(os.environ.get("VQVAE_SITE", Path(__file__).parent.parent / "_docs")).resolve()
PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))
OURS = (SITE / "site.js").exists()  # rendered by tools/build_site.py with pandoc, not by Quarto


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def built():
    if not PAGES: missing(f"there is no site in {SITE}: run `make site`")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_): pass


@pytest.fixture(scope="module")
def address():
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=SITE))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


class Watched:
    """A page in a fresh context that collects what must not happen: errors and requests to other
    hosts."""
    def __init__(self, browser, address: str, **options):
        self.context, self.problems, self.address = browser.new_context(**options), [], address
        self.context.route("**/*", self.refuse_other_hosts)
        self.page = self.context.new_page()
        self.page.on("console",
                     lambda message: message.type == "error" and self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("response",
                     lambda r: r.status >= 400 and self.problems.append(f"{r.status} {r.url}"))

    def refuse_other_hosts(self, route) -> None:
        if route.request.url.startswith((self.address, "data:", "blob:")): return route.continue_()
        self.problems.append(f"request to {route.request.url}")
        route.abort()

    def open(self, name: str):
        self.page.goto(f"{self.address}/{name}")
        self.page.wait_for_load_state("networkidle")
        return self.page

    def __enter__(self): return self
    def __exit__(self, *_): self.context.close()


@pytest.fixture(scope="module")
def watched(chromium, address):
    with Watched(chromium, address) as watched: yield watched


@pytest.mark.parametrize("name", PAGES)
def test_page(watched, name):
    "No error, no foreign request, a title and a heading, nothing wider than a phone."
    watched.problems.clear()
    page = watched.open(name)
    assert page.title() and page.locator("h1").count() == 1
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    broken = ("[...document.images].filter(image => image.complete && !image.naturalWidth)"
              ".map(image => image.src)")
    assert page.evaluate(broken) == []
    assert watched.problems == []


@functools.cache
def parsed(path: Path) -> BeautifulSoup: return BeautifulSoup(path.read_text(), "html.parser")


@pytest.mark.parametrize("name", PAGES)
def test_links(name):
    "Every link, script, style and picture inside the site leads somewhere, anchors included."
    broken = []
    for tag in parsed(SITE / name).find_all(True):
        link = tag.get("href") or tag.get("src")
        if not link or re.match(r"[a-z]+:|//", link): continue
        path, anchor = unquote(urlsplit(link).path), unquote(urlsplit(link).fragment)
        target = (SITE / name).parent / path if path else SITE / name
        if target.is_dir(): target /= "index.html"
        if not target.exists(): broken.append(link)
        elif anchor and target.suffix == ".html" and not parsed(target).find(id=anchor):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("name", PAGES)
def test_every_anchor_is_one_place(name):
    """No two elements of a page have the same id: a heading called like a part of the frame would
    take its place and its looks."""
    page = parsed(SITE / name)
    # Quarto's frame is Quarto's
    ids = [tag["id"] for tag in (page if OURS else page.select_one("main")).find_all(id=True)]
    assert sorted({i for i in ids if ids.count(i) > 1}) == []


@pytest.mark.parametrize("name", PAGES)
def test_figures_are_described(name):
    "Every figure says in words what it shows: `#| fig-alt:` in the cell that draws it."
    assert [tag["src"]
            for tag in parsed(SITE / name).select("main img")
            if not tag.get("alt", "").strip()] == []


LITERAL = {  # what a reader must not see: a pattern, by what it is a trace of
    "a Markdown link": r"\]\((?!\))[^()\s]*(\.html|\.ipynb|//|#)",
    "a citation": r"\[@\w|@\w+\d{4}",
    "code in backticks": r"`\w[^`\n]*`",
    "TeX": r"\$[^$\n]+\$|\\(mathrm|mathbb|frac|sum|log|hat|text|left|lVert|[a-z]*epsilon)\b",
    "a fenced block": r":::|```",
    "bold": r"\*\*\w[^*\n]*\*\*",
}


def literal(html: str) -> list[str]:
    """Markup that was not converted, in the text of a page that a reader sees; of code only links
    in comments count."""
    page, found = BeautifulSoup(html, "html.parser"), []
    found += [f"TeX that could not be converted: {tag.get_text()}"
              for tag in page.select("span.math") if not tag.find("math")]
    for pre in page.find_all("pre"):
        found += [f"a link in code: {m[0]}"
                  for m in re.finditer(r"\[`[^`\n]+`\]\([^()\s]*\)", pre.get_text())]
        found += [f"a signature that says nothing: {m[0]}"
                  for m in re.finditer(r"def \w+\(\s+\*args(:object)?, \*\*kwargs(:object)?\s+\)",
                                       pre.get_text())]
    for tag in page.find_all(["script", "style", "noscript", "pre", "code", "annotation"]):
        tag.replace_with("" if tag.name != "code" else "x")
    text = page.get_text()
    return found + [f"{what}: {m[0]}" for what, pattern in LITERAL.items()
                    for m in re.finditer(pattern, text)]


def test_what_counts_as_literal():
    for bad in ("<p>[<a href='b.html'><code>f</code></a>](b.html#f)</p>", "<p>a codeword $q$</p>",
                "<p>see [@lloyd1982least]</p>", "<pre># what [`f`](io.html#f) returned</pre>",
                "<p>`vqvae fit`</p>",
                "<pre>def Explorer(\n    *args:object, **kwargs:object\n)->None:</pre>",
                "<span class='math inline'>\\(x\\)</span>"):
        assert literal(bad), bad
    for good in ("<p>5 $ a bit</p>", "<pre>rows[name](x) # costs $x$</pre>", "<code>`a`</code>",
                 "<p>D(R)[1](b)</p>", "<math><mi>q</mi><annotation>\\hat q</annotation></math>"):
        assert literal(good) == [], good


@pytest.mark.parametrize("name", PAGES)
def test_no_markup_is_left_over(name):
    "No page shows a Markdown link, a citation key or TeX as they were written."
    assert literal((SITE / name).read_text()) == []


def test_nothing_external_is_loaded_from_any_page():
    """Not even what a browser would fetch later: no address of another host in a script, style or
    picture."""
    for name in PAGES:
        for tag in parsed(SITE / name).find_all(["script", "link", "img", "iframe", "source"]):
            link = tag.get("src") or (tag.name == "link" and tag.get("rel") != ["canonical"]
                                      and tag.get("href")) or ""
            assert not re.match(r"(https?:)?//", link), (name, link)


# Explorers: what to do, and the number that must change

def drag(page, handle, dx: float, dy: float) -> None:
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + dx, y + dy, steps=4)
    page.mouse.up()


def read(page, name: str) -> str:
    return page.locator(f'.vq-readout output[name="{name}"]').inner_text()


def slide(page, label: str, value: float) -> None:
    page.get_by_label(label, exact=True).fill(str(value))


EXPLORERS = {  # page: (slider, value, its number), (handle, number that a drag and a key change)
    "waterfilling": (("Rate", 12, "Distortion D"), ("Variance of component 1", "Distortion D")),
    "gradient": (None, ("z", "Angle between z and q")),
    "fsq": (("Levels of dimension 1", 9, "Codes"), ("Mean in the plane", "Perplexity")),
    "gumbel": (("Temperature τ", 1.5, "Mean ‖soft − hard‖²"), ("Logit of code 1", "KL to uniform")),
    "collapse": (
        ("Frame", 3, "Perplexity, left"),
        ("Frame in the curves", "Reconstruction loss, right"),
    ),
    "codebook": (("Codes", 40, "Rate log₂ n"), ("Codeword 3", "Distortion")),
}


CHANGED = ('([name, value]) => document.querySelector(`.vq-readout output[name="${name}"]`)'
           ".textContent !== value")


def operate(page, slider, handle) -> None:
    if slider:
        label, value, number = slider
        before = read(page, number)
        slide(page, label, value)
        page.wait_for_function(CHANGED, arg=[number, before])
    label, number = handle
    dot = page.get_by_role("slider", name=label, exact=True)
    for act in (lambda: drag(page, dot, 23, 31),
                lambda: (dot.focus(), page.keyboard.press("Shift+ArrowUp"))):
        before = read(page, number)
        act()
        page.wait_for_function(CHANGED, arg=[number, before])


@pytest.mark.parametrize("name", EXPLORERS)
@pytest.mark.parametrize("options", [
    {"viewport": {"width": 1280, "height": 900}},
    {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark", "reduced_motion": "reduce"},
], ids=["wide", "narrow and dark"])
def test_explorer(chromium, address, name, options):
    with Watched(chromium, address, **options) as watched:
        page = watched.open(f"explorers/{name}.html")
        operate(page, *EXPLORERS[name])
        assert page.evaluate("document.documentElement.scrollWidth") <= options["viewport"]["width"]
        assert watched.problems == []


def test_recording_plays(chromium, address):
    with Watched(chromium, address) as watched:
        page = watched.open("explorers/collapse.html")
        frame = page.get_by_label("Frame", exact=True)
        page.get_by_role("button", name="play").click()
        # it began at 10
        page.wait_for_function("document.querySelector('.vq-sticky input').value >= 13")
        page.get_by_role("button", name="pause").click()
        stopped = frame.input_value()
        page.wait_for_timeout(800)  # two frames long
        assert frame.input_value() == stopped


def test_nothing_moves_by_itself_with_reduced_motion(chromium, address):
    with Watched(chromium, address, reduced_motion="reduce") as watched:
        page = watched.open("explorers/collapse.html")
        page.get_by_role("button", name="next frame").click()
        page.wait_for_timeout(800)
        assert page.get_by_label("Frame", exact=True).input_value() == "11"


def test_explorer_by_touch(chromium, address):
    with Watched(chromium, address, viewport={"width": 390, "height": 844},
                 has_touch=True) as watched:
        page = watched.open("explorers/waterfilling.html")
        dot = page.get_by_role("slider", name="Variance of component 2", exact=True)
        before = read(page, "Distortion D")
        dot.scroll_into_view_if_needed()
        box, session = dot.bounding_box(), watched.context.new_cdp_session(page)
        at = lambda dy: {"touchPoints": [{"x": box["x"] + 7, "y": box["y"] + 7 + dy}]}
        session.send("Input.dispatchTouchEvent", {"type": "touchStart", **at(0)})
        scrolled = page.evaluate("scrollY")
        for dy in range(10, 61, 10):
            session.send("Input.dispatchTouchEvent", {"type": "touchMove", **at(dy)})
            page.wait_for_timeout(40)
        session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        page.wait_for_function(CHANGED, arg=["Distortion D", before])
        # the finger moved the handle and not the page, all the way
        assert page.evaluate("scrollY") == scrolled
        assert abs(dot.bounding_box()["y"] - box["y"] - 60) < 4


def test_from_disk(chromium):
    """The site opened from disk, without a server: pages and explorers work; the search says what
    to do."""
    with Watched(chromium, "file://") as watched:
        watched.page.goto((SITE / "index.html").as_uri())
        watched.page.goto((SITE / "explorers" / "codebook.html").as_uri())
        operate(watched.page, *EXPLORERS["codebook"])
        if OURS:
            watched.page.get_by_role("searchbox").fill("perplexity")
            assert "http.server" in watched.page.locator("#search-results").inner_text()
        assert watched.problems == []


@pytest.mark.skipif(PAGES != [] and not OURS, reason="Quarto has a search and a switch of its own")
def test_search_theme_and_menu(chromium, address):
    with Watched(chromium, address, viewport={"width": 390, "height": 844}) as watched:
        page = watched.open("theory/rate_distortion.html")
        page.get_by_role("searchbox").fill("water-filling")
        page.locator("#search-results a").first.wait_for()
        assert page.locator("#search-results a").count() >= 3
        seen = ("name => { const box = document.querySelector(name).getBoundingClientRect();"
                " return box.top < innerHeight && box.bottom > 0 }")
        page.evaluate("scrollTo(0, 2000)")
        assert page.evaluate(seen, "#search-results")  # wherever on the page one searches
        page.keyboard.press("Escape")
        assert not page.locator("#search-results").is_visible()
        colour = "getComputedStyle(document.body).backgroundColor"
        light = page.evaluate(colour)
        page.get_by_label("Switch between light and dark").click()
        assert page.evaluate(colour) != light
        page.reload()
        assert page.evaluate(colour) != light  # it is remembered
        assert not page.locator("#sidebar").is_visible()
        page.get_by_label("Menu").click()
        assert page.locator("#sidebar").is_visible() and page.evaluate(
            seen, "#sidebar [aria-current]"
        )
        page.keyboard.press("Escape")
        assert not page.locator("#sidebar").is_visible()
        page.locator(".contents summary").click()
        page.locator(".contents a").last.click()
        page.wait_for_function("document.querySelector('#see-also').getBoundingClientRect().top < "
                               "innerHeight")
        names = page.locator("[id]").evaluate_all("all => all.map(one => one.id)")
        assert len(names) == len(set(names))
        assert watched.problems == []
