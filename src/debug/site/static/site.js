// Data files, the address, and the list of studies. An address is #/ and the name of a page's data file.
"use strict";

window.debugSite = (() => {
  const { el, field, render, wide, dark } = debugBlocks;
  const content = document.getElementById("content");
  const waiting = new Map(), there = new Map();

  // --- data: a script that hands over a JSON text by its name; a page opened from a disk may fetch nothing else ---------

  function script(source) {
    return new Promise((resolve, reject) => {
      const made = el("script", { src: source });
      made.onload = () => { made.remove(); resolve(); };
      made.onerror = () => reject(new Error(`This site has no ${source}.`));
      document.head.append(made);
    });
  }

  function put(name, text) {
    if (name === "index") begin(JSON.parse(text));
    else there.set(name, JSON.parse(text));
  }

  function load(name) {
    if (!/^[A-Za-z0-9_/-]+$/.test(name)) return Promise.reject(new Error("There is no such page."));
    if (!waiting.has(name)) {
      waiting.set(name, script(`data/${name}.js`).then(() => there.get(name), error => {
        waiting.delete(name);
        throw error;
      }));
    }
    return waiting.get(name);
  }

  // A page: {title, blocks}. Small ones share a file, whose name begins with bundles/.
  async function page(name) {
    if (!name.startsWith("bundles/")) return load(name);
    const slash = name.lastIndexOf("/"), found = (await load(name.slice(0, slash)))[name.slice(slash + 1)];
    if (!found) throw new Error("There is no such page.");
    return found;
  }

  // --- the address -------------------------------------------------------------------------------------------------------

  const address = () => location.hash.replace(/^#\/?/, "").split("?");
  const parameters = () => new URLSearchParams(address()[1] ?? "");

  // What a reader chose, in the address: a copied link shows the same.
  function remember(values) {
    const now = parameters();
    for (const [name, value] of Object.entries(values)) value ? now.set(name, value) : now.delete(name);
    const query = now.toString();
    history.replaceState(null, "", `#/${address()[0]}${query ? `?${query}` : ""}`);
  }

  let index = null, latest = 0;

  async function show() {
    if (location.hash && !location.hash.startsWith("#/")) return; // the link that skips to the content
    const mine = ++latest, [name] = address();
    for (const link of document.querySelectorAll("header nav a")) {
      const own = link.getAttribute("href").slice(2);
      const here = own === name.split("/")[0] || (!own && /^(runs\/|$)/.test(name));
      here ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current");
    }
    const title = el("h1", { tabindex: "-1" });
    if (!name) {
      title.textContent = "Studies";
      content.replaceChildren(title, ...studies());
    } else {
      let found;
      try {
        found = await page(name);
      } catch (error) {
        found = { title: "Not found", blocks: [{ text: error.message }] };
      }
      if (mine !== latest) return;
      title.textContent = found.title;
      content.replaceChildren(...views(name, found.views), title, ...render(found.blocks, name));
    }
    document.title = name ? `${title.textContent} · ${index.title}` : index.title;
    if (mine > 1) {
      title.focus({ preventScroll: true });
      scrollTo(0, 0);
    }
  }

  // Links between the pages of one thing: the views of a training run.
  function views(name, links) {
    if (!links) return [];
    const own = links.map(([to, text]) => el("a", { href: `#/${to}`, "aria-current": to === name ? "page" : null }, text));
    return [el("nav", { class: "views", "aria-label": "Views of this training run" }, ...own)];
  }

  function begin(given) {
    index = given;
    document.getElementById("title").textContent = index.title;
    addEventListener("hashchange", show);
    dark.addEventListener("change", show); // charts have their colours from when they were drawn
    show();
  }

  // --- the list of studies -----------------------------------------------------------------------------------------------

  const ROWS = 50;

  function studies() {
    const { id: ids = [], ...columns } = index.studies, asked = parameters();
    const told = el("p", { class: "soft", role: "status" });
    if (!ids.length) return [el("p", {}, "This store had no runs when the site was written.")];
    const texts = ids.map((_, row) => Object.values(columns).map(of => of[row]).join(" ").toLowerCase());
    const words = el("input", { type: "search", value: asked.get("q"), size: 32 });
    const kinds = el("select", {}, el("option", { value: "" }, "all"), ...[...new Set(columns.kind)].sort().map(kind => el("option", {}, kind)));
    kinds.value = asked.get("kind") ?? "";
    const body = el("tbody"), more = el("button", {}, "Show more");
    let rows = [], shown = 0;
    const row = at => el("tr", {},
      el("td", {}, el("a", { href: `#/runs/${ids[at]}` }, columns.name[at]), el("span", { class: "finding" }, columns.finding[at])),
      ...["kind", "model", "hops", "lines"].map(name => el("td", {}, columns[name][at])),
      el("td", { class: "number" }, columns.cells[at]),
      el("td", { class: "short" }, columns.started[at], el("span", { class: "finding" }, columns.status[at].toLowerCase())));
    const showMore = () => {
      body.append(...rows.slice(shown, shown + ROWS).map(row));
      shown += ROWS;
      more.hidden = shown >= rows.length;
    };
    const filter = () => {
      const sought = words.value.toLowerCase().split(/\s+/).filter(Boolean), kind = kinds.value;
      rows = ids.map((_, at) => at).filter(at => (!kind || columns.kind[at] === kind) && sought.every(word => texts[at].includes(word)));
      told.textContent = `${rows.length.toLocaleString("en")} of ${ids.length.toLocaleString("en")} studies, ${index.runs.toLocaleString("en")} runs, as of ${index.made}.`;
      body.replaceChildren();
      shown = 0;
      showMore();
    };
    for (const box of [words, kinds]) box.addEventListener("input", () => { filter(); remember({ q: words.value, kind: kinds.value }); });
    more.addEventListener("click", showMore);
    filter();
    const heads = ["study", "kind", "model", "hops", "lines", "cells", "started (UTC)"].map(name => el("th", { scope: "col" }, name));
    return [
      el("div", { class: "controls" }, field("Find (name, model, finding)", words), field("Kind", kinds)), told,
      wide("Studies", el("table", { class: "studies" }, el("thead", {}, el("tr", {}, ...heads)), body)), more,
    ];
  }

  return { put, load, page, script, parameters, remember };
})();
