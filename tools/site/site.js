// Theme, menu, anchors, copy buttons, search. Every page reads without this file.
const $ = (selector) => document.querySelector(selector);

$("#theme").addEventListener("click", () => {
  const root = document.documentElement;
  root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
  try { localStorage.theme = root.dataset.theme; } catch { /* a page without storage forgets the choice */ }
});

function menu(open) {
  $("#sidebar").classList.toggle("open", open);
  $("#menu").setAttribute("aria-expanded", open);
  if (open) showHere();
}
$("#menu").addEventListener("click", () => menu(!$("#sidebar").classList.contains("open")));

function showHere() { $("#sidebar [aria-current]")?.scrollIntoView({ block: "nearest" }); }
showHere();

// Names of modules break at their dots. Where the column of contents has no room, the contents fold up under the title.
for (const link of document.querySelectorAll("#toc a")) {
  if (/^[\w.]+$/.test(link.textContent)) link.innerHTML = link.textContent.replace(/[._]/g, "$&<wbr>");
}
if ($("#toc")) {
  const contents = document.createElement("details"), list = $("#toc ul").cloneNode(true);
  for (const link of list.querySelectorAll("[id]")) link.removeAttribute("id");
  contents.className = "contents";
  contents.innerHTML = "<summary>On this page</summary>";
  contents.append(list);
  ($("main .summary") ?? $("h1")).after(contents);
}

for (const heading of document.querySelectorAll("main :is(h2, h3, h4)[id]")) {
  const link = Object.assign(document.createElement("a"), { href: `#${heading.id}`, className: "anchor", textContent: "#" });
  link.setAttribute("aria-label", `Link to ${heading.textContent}`);
  heading.append(link);
}

for (const block of document.querySelectorAll("div.sourceCode")) {
  const button = Object.assign(document.createElement("button"), { className: "copy", textContent: "Copy" });
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(block.querySelector("code").textContent);
    button.textContent = "Copied";
  });
  block.append(button);
}

// Search: Pagefind's index is read with fetch, which browsers refuse on pages opened from disk.
const results = $("#search-results");
let pagefind;

async function search(words) {
  results.hidden = !words;
  if (!words) return;
  menu(false);
  if (location.protocol === "file:") {
    results.textContent = "A page opened from disk may not read the search index. Run “python -m http.server -d _docs” and open http://localhost:8000.";
    return;
  }
  try { pagefind ??= await import(new URL(`${results.dataset.root}/pagefind/pagefind.js`, location.href).href); }
  catch { results.textContent = "The search index cannot be read just now."; return; }
  const found = await pagefind.debouncedSearch(words);
  if (!found) return; // the words changed meanwhile
  const pages = await Promise.all(found.results.slice(0, 8).map((result) => result.data()));
  const list = document.createElement("ul");
  for (const page of pages) {
    const item = document.createElement("li"), link = document.createElement("a"), text = document.createElement("div");
    link.href = page.url;
    link.textContent = page.meta.title;
    text.innerHTML = page.excerpt; // Pagefind's own markup: escaped text and <mark>
    item.append(link, text);
    list.append(item);
  }
  results.replaceChildren(pages.length ? list : `Nothing found for “${words}”.`);
}

$("#query").addEventListener("input", (event) => search(event.target.value.trim()));
document.addEventListener("focusin", (event) => { results.hidden = !$("#query").value.trim() || !event.target.closest("[role=search], #search-results"); });
addEventListener("pageshow", (event) => { // a page that the browser kept
  if (!event.persisted) return;
  try { document.documentElement.dataset.theme = localStorage.theme ?? document.documentElement.dataset.theme; } catch { /* no storage */ }
  search("");
});
$("[role=search]").addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !/INPUT|TEXTAREA|SELECT/.test(document.activeElement.tagName)) { event.preventDefault(); $("#query").focus(); }
  if (event.key !== "Escape") return;
  if ($("#sidebar").classList.contains("open")) { menu(false); $("#menu").focus(); }
  if (!results.hidden) { $("#query").value = ""; search(""); $("#query").focus(); }
});
