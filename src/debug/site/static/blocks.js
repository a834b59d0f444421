// From blocks (see debug/site/blocks.py) to elements. Everything that came from a store becomes a text node, or data of
// a chart; none of it is read as HTML.
"use strict";

window.debugBlocks = (() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");

  function el(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (value === true) made.setAttribute(name, "");
      else if (value !== false && value != null) made.setAttribute(name, value);
    }
    made.append(...children.filter(child => child != null).map(child => child instanceof Node ? child : String(child)));
    return made;
  }

  // --- charts --------------------------------------------------------------------------------------------------------

  let vega = null;

  function theme() {
    const [ink, soft, line] = dark.matches ? ["#e8e8ee", "#b0b0bc", "#3b3b46"] : ["#22222a", "#5b5b66", "#d5d5de"];
    const text = { labelColor: ink, titleColor: ink };
    return {
      background: null, font: "system-ui, sans-serif", view: { stroke: line },
      axis: { ...text, gridColor: line, domainColor: soft, tickColor: soft }, legend: text, header: text,
      title: { color: ink, subtitleColor: soft },
    };
  }

  let fields = 0;

  // A box of a form with its label.
  function field(label, box) {
    box.id = `field-${++fields}`;
    return el("div", { class: "field" }, el("label", { for: box.id }, label), box);
  }

  // A part that may be wider than the page: it scrolls by itself, by keyboard too.
  function wide(label, ...children) {
    return el("div", { class: "wide", tabindex: "0", role: "group", "aria-label": label }, ...children);
  }

  async function draw(box, spec, caption, onclick) {
    vega ??= debugSite.script("assets/vega.js");
    await vega;
    const described = { description: caption, ...spec };
    const options = { actions: false, renderer: "svg", config: theme(), tooltip: { theme: dark.matches ? "dark" : "light" } };
    const { view } = await window.vegaEmbed(box, described, options);
    if (onclick) view.addEventListener("click", (_, item) => item?.datum && onclick(item.datum));
    return view;
  }

  function chart({ chart: spec, caption, click }, index, place) {
    const box = el("div", { class: "chart" }), tools = el("div", { class: "tools" });
    const figure = el("figure", {}, wide(`Chart: ${caption}`, box), el("figcaption", {}, caption), tools);
    const onclick = click && (datum => {
      const select = figure.nextElementSibling?.querySelector("select");
      const number = click.options.indexOf(datum[click.field]);
      if (!select || number < 0) return;
      select.selectedIndex = number;
      select.dispatchEvent(new Event("change"));
      select.scrollIntoView({ block: "start" });
    });
    draw(box, spec, caption, onclick).then(view => {
      for (const kind of ["png", "svg"]) {
        const save = async () => {
          const name = `${place.replaceAll("/", "-")}-${index + 1}.${kind}`;
          el("a", { href: await view.toImageURL(kind, 2), download: name }).click();
        };
        tools.append(el("button", { onclick: save, "aria-label": `Save the chart as ${kind.toUpperCase()}` }, kind.toUpperCase()));
      }
    }, error => box.replaceChildren(el("p", {}, `This chart cannot be drawn: ${error.message}`)));
    return figure;
  }

  // --- tables, programs ----------------------------------------------------------------------------------------------

  const MOST_ROWS = 200;

  function table({ table: { columns, rows, links }, caption }) {
    const body = el("tbody"), more = el("button", {}, "Show more");
    let shown = 0;
    const show = () => {
      rows.slice(shown, shown + MOST_ROWS).forEach((row, number) => {
        const link = links[shown + number];
        body.append(el("tr", {}, ...row.map((cell, column) => {
          const text = cell === null ? "" : typeof cell === "number" ? cell.toLocaleString("en", { maximumSignificantDigits: 6 }) : cell;
          return el("td", { class: typeof cell === "number" ? "number" : null }, link && !column ? el("a", { href: `#/${link}` }, text) : text);
        })));
      });
      shown += MOST_ROWS;
      more.hidden = shown >= rows.length;
    };
    more.addEventListener("click", show);
    show();
    const head = el("tr", {}, ...columns.map(name => name ? el("th", { scope: "col" }, name) : el("td")));
    return el("div", {}, caption ? el("p", { class: "soft" }, caption) : null,
      wide(caption || "Table", el("table", {}, el("thead", {}, head), body)), more);
  }

  function stateTable({ names, rows }) {
    let before = [];
    const body = rows.map(([line, text, ...values]) => {
      const cells = values.map((value, at) => el("td", { class: value !== (before[at] ?? "") ? "changed" : null }, value));
      before = values;
      return el("tr", {}, el("td", {}, line), el("td", {}, text), ...cells);
    });
    const head = el("tr", {}, ...["line", "", ...names].map(name => name ? el("th", { scope: "col" }, name) : el("td")));
    return wide("States of the program",
      el("div", { class: "soft" }, "Variables after each line; what a line changed is marked."),
      el("table", { class: "states" }, el("thead", {}, head), el("tbody", {}, ...body)));
  }

  function listing(text, parsed) {
    const chain = parsed ? new Set([...parsed.chain, parsed.assignments.length]) : new Set();
    return el("pre", {}, ...text.split("\n").map((line, number) => el("div", { class: chain.has(number) ? "chain" : null }, line || " ")));
  }

  async function drawGraph(box, parsed) {
    const template = await debugSite.load("graph");
    await draw(box, debugProgram.graph(template, parsed), "Program graph: lines by referential depth, the queried chain in orange");
  }

  function program({ program: text, states, caption }) {
    let parsed = null;
    try { parsed = debugProgram.parse(text); } catch { /* another family's text: it has no graph */ }
    const parts = [el("div", {}, el("div", { class: "soft" }, caption), listing(text, parsed))];
    if (parsed) {
      const box = el("div", { class: "chart" });
      drawGraph(box, parsed);
      parts.push(wide("Program graph", box));
    }
    if (states && states.names.length) parts.push(stateTable(states));
    return el("div", { class: "abreast" }, ...parts);
  }

  function typed({ typed: example }) {
    const area = el("textarea", { rows: 8, spellcheck: "false", autocomplete: "off" }), said = el("p", { role: "status" });
    const box = el("div", { class: "chart" });
    const update = () => {
      try {
        const parsed = debugProgram.parse(area.value), hops = parsed.chain.length;
        said.textContent = `The query is ${hops} ${hops === 1 ? "hop" : "hops"} deep; its answer is ${parsed.answer}.`;
        drawGraph(box, parsed);
      } catch (error) {
        said.textContent = `No graph: ${error.message}.`;
        box.replaceChildren();
      }
    };
    area.value = example;
    area.addEventListener("input", update);
    update();
    return el("div", { class: "abreast" }, el("div", {}, field("Assignments, then the query", area), said), wide("Graph of your program", box));
  }

  // --- a choice, whose page is loaded when it is chosen ----------------------------------------------------------------

  function choose({ choose: { label, second, source, options, at } }) {
    const select = (text, number) => {
      const made = el("select", {}, ...options.map(([key, name]) => el("option", { value: key }, name)));
      made.selectedIndex = number;
      return [made, field(text, made)];
    };
    const asked = debugSite.parameters(), place = el("div", { class: "chosen" });
    const index = (name, otherwise) => {
      const found = options.findIndex(([key]) => key === asked.get(`${source}.${name}`));
      return found < 0 ? otherwise : found;
    };
    const [first, firstLabel] = select(label, index("a", at));
    const [other, otherLabel] = second ? select(second, index("b", options.length - 1)) : [null, null];
    const step = by => () => { first.selectedIndex += by; update(true); };
    const previous = el("button", { onclick: step(-1) }, "Previous"), next = el("button", { onclick: step(1) }, "Next");
    let latest = 0;
    async function update(byReader) {
      const mine = ++latest, chosen = [first, other].filter(Boolean).map(box => box.selectedIndex);
      previous.disabled = chosen[0] <= 0;
      next.disabled = chosen[0] >= options.length - 1;
      if (byReader) debugSite.remember({ [`${source}.a`]: first.value, ...(other ? { [`${source}.b`]: other.value } : {}) });
      const keys = [...chosen].sort((one, two) => one - two).map(number => options[number][0]);
      if (other && keys[0] === keys[1]) {
        place.replaceChildren(el("p", {}, "Choose two that differ."));
        return;
      }
      place.setAttribute("aria-busy", "true");
      const page = await debugSite.page(`${source}/${keys.join("-")}`).catch(error => ({ blocks: [{ text: error.message }] }));
      if (mine !== latest) return;
      place.replaceChildren(...render(page.blocks, `${source}/${keys.join("-")}`));
      place.removeAttribute("aria-busy");
    }
    first.addEventListener("change", () => update(true));
    other?.addEventListener("change", () => update(true));
    update(false);
    const steps = options.length > 1 && !other ? [previous, next] : [];
    return el("div", {}, el("div", { class: "controls" }, firstLabel, otherLabel, ...steps), place);
  }

  // --- all ---------------------------------------------------------------------------------------------------------------

  function block(given, index, place) {
    if (given.details) {
      return el("details", {}, el("summary", {}, given.details), table(given));
    }
    if (given.text) return el("p", {}, given.text);
    if (given.heading) return el("h2", {}, given.heading);
    if (given.table) return table(given);
    if (given.chart) return chart(given, index, place);
    if (given.program) return program(given);
    if (given.typed) return typed(given);
    if (given.choose) return choose(given);
    if (given.missing) return el("div", { class: "missing" }, el("p", {}, given.missing), el("pre", {}, given.command));
    if (given.links) return el("ul", {}, ...given.links.map(([name, text]) => el("li", {}, el("a", { href: `#/${name}` }, text))));
    return el("div", {}, el("div", { class: "soft" }, given.caption ?? ""), el("pre", {}, given.pre ?? ""));
  }

  const render = (blocks, place) => blocks.map((given, index) => block(given, index, place));

  return { el, field, render, wide, dark };
})();
