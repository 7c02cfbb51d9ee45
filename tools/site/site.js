// Theme, menu, anchors, copy buttons, search. Every page reads without this file.
const $ = (selector) => document.querySelector(selector);

$("#theme").addEventListener("click", () => {
  const root = document.documentElement;
  root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
  try { localStorage.theme = root.dataset.theme; } catch { /* a page without storage forgets the choice */ }
});

$("#menu").addEventListener("click", (event) => {
  const open = $("#sidebar").classList.toggle("open");
  event.currentTarget.setAttribute("aria-expanded", open);
});

$("#sidebar [aria-current]")?.scrollIntoView({ block: "nearest" });

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
const results = $("#results");
let pagefind;

async function search(words) {
  results.hidden = !words;
  if (!words) return;
  if (location.protocol === "file:") {
    results.textContent = "A page opened from disk may not read the search index. Run “python -m http.server -d _docs” and open http://localhost:8000.";
    return;
  }
  pagefind ??= await import(new URL(`${results.dataset.root}/pagefind/pagefind.js`, location.href).href);
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
$("[role=search]").addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !/INPUT|TEXTAREA|SELECT/.test(document.activeElement.tagName)) { event.preventDefault(); $("#query").focus(); }
  if (event.key === "Escape" && document.activeElement === $("#query")) { $("#query").value = ""; search(""); }
});
