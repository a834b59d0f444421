// Programs of variable binding: read, and put into the chart of a program's graph that debug drew as a template.
"use strict";

window.debugProgram = (() => {
  const NAME = "[A-Za-z_][A-Za-z_0-9]*";
  const ASSIGNMENT = new RegExp(`^(${NAME})[ \\t]*=[ \\t]*(0|-?[1-9][0-9]{0,17}|${NAME})[ \\t]*$`);
  const QUERY = new RegExp(`^#(${NAME}):[ \\t]*$`);

  // The assignments of a program, its query's chain (line numbers from 0) and answer. Throws an Error that says why not.
  function parse(given) {
    let text = given.replace(/^\ufeff/, "").replaceAll("\r\n", "\n");
    const stripped = text.replace(/\n+$/, "");
    if (QUERY.test(stripped.split("\n").at(-1))) text = stripped;
    const lines = text.split("\n"), last = new Map(), assignments = [];
    const query = lines.pop().match(QUERY);
    lines.forEach((line, number) => {
      const match = line.match(ASSIGNMENT);
      if (!match) throw new Error(`line ${number + 1} is no assignment such as a = 3 or b = a`);
      const [, lhs, rhs] = match, constant = /^[-0-9]/.test(rhs);
      if (!constant && !last.has(rhs)) throw new Error(`line ${number + 1} reads ${rhs}, which no line above it assigns`);
      const source = constant ? null : last.get(rhs);
      assignments.push({ lhs, rhs, source, depth: constant ? 1 : assignments[source].depth + 1 });
      last.set(lhs, number);
    });
    if (!query) throw new Error("the last line is no query such as #a:");
    if (!last.has(query[1])) throw new Error(`the query asks for ${query[1]}, which no line assigns`);
    const chain = [];
    for (let line = last.get(query[1]); line !== null; line = assignments[line].source) chain.unshift(line);
    return { assignments, chain, answer: assignments[chain[0]].rhs };
  }

  // The template with another program in it: its data, the ends of its axes, its size.
  function graph(template, program) {
    const spec = structuredClone(template), of = line => (program.chain.includes(line) ? "queried chain" : "other");
    const nodes = program.assignments.map(({ lhs, rhs, depth }, line) => {
      const text = `${lhs} = ${rhs}`;
      return { line: line + 1, depth, text: text.length > 24 ? `${text.slice(0, 23)}…` : text, of: of(line) };
    });
    const edges = program.assignments.flatMap(({ source, depth }, line) => source === null ? [] : [{
      line: source + 1, depth: program.assignments[source].depth, line2: line + 1, depth2: depth, of: of(line),
    }]);
    const [rules, points] = spec.layer, deepest = Math.max(1, ...nodes.map(node => node.depth));
    spec.datasets = { [rules.data.name]: edges, [points.data.name]: nodes };
    for (const { encoding: { x, y } } of spec.layer) {
      x.scale.domain = [0.8, deepest + 0.8];
      y.scale.domain = [nodes.length + 0.6, 0.4];
      x.axis.values = Array.from({ length: deepest }, (_, number) => number + 1);
      y.axis.values = nodes.map(node => node.line);
    }
    spec.width = Math.min(Math.max(260, 120 * deepest), 500);
    spec.height = 100 + 30 * nodes.length;
    return spec;
  }

  return { parse, graph };
})();
