"use strict";
// A graph to walk through: modules fold, nodes tell their details, a search finds them.

const STATUS = {
  added: { sign: "+", words: "added" },
  removed: { sign: "−", words: "removed" },
  changed: { sign: "~", words: "changed" },
};

/** The section of the graph: search, picture and details. */
function graphSection(graph) {
  const view = new GraphView(graph.nodes);
  return section("graph", "Graph", ...view.parts());
}

const HEAD = 14;

class GraphView {
  constructor(nodes) {
    this.nodes = nodes;
    this.root = foldedTree(nodes);
    this.items = new Map([...itemsOf(this.root)].map((item) => [item.id, item]));
    this.byIndex = nodes.map((_, index) => this.items.get(`#${index}`));
    this.readers = readersOf(nodes);
    this.open = firstOpen(this.root);
    this.selected = null;
    this.fitted = false;
  }

  parts() {
    this.picture = el("div", { class: "picture" });
    this.details = el("div", { class: "details", role: "region", "aria-label": "Details", "aria-live": "polite" });
    this.results = el("ul", { class: "results" });
    this.found = el("p", { class: "muted", role: "status" });
    const search = filterField("Search nodes by name, operator or tensor", (words) => this.search(words));
    const controls = el(
      "div",
      { class: "controls" },
      search,
      el(
        "div",
        { class: "buttons", role: "group", "aria-label": "View" },
        this.button("Fold all", () => this.fold()),
        this.button("Zoom in", () => this.zoomBy(1.4)),
        this.button("Zoom out", () => this.zoomBy(1 / 1.4)),
        this.button("Fit", () => this.fit()),
      ),
    );
    const help = el(
      "p",
      { class: "muted" },
      "Click or press Enter on a module to unfold it. Arrow keys walk along the graph; drag moves it; Ctrl with the wheel, or two fingers, zoom.",
    );
    const isDiff = this.nodes.some((node) => node.status);
    const key = isDiff
      ? legend(["added", "+ added"], ["removed", "− removed"], ["changed", "~ changed"], ["module", "▸ folded module"])
      : legend(["module", "▸ folded module"], ["node", "node"]);
    this.prepare();
    this.tell();
    new ResizeObserver(() => {
      if (!this.fitted && this.picture.clientWidth) this.fit();
    }).observe(this.picture);
    return [controls, this.found, this.results, key, help, el("div", { class: "graph" }, this.picture, this.details)];
  }

  button(words, act) {
    return el("button", { type: "button", onclick: act }, words);
  }

  // the picture

  prepare() {
    this.svg = d3.select(this.picture).append("svg").attr("role", "group").attr("aria-label", "Graph of the model");
    const marker = this.svg.append("defs").append("marker");
    marker.attr("id", "arrow").attr("viewBox", "0 0 8 8").attr("refX", 7).attr("refY", 4);
    marker.attr("markerWidth", 7).attr("markerHeight", 7).attr("orient", "auto");
    marker.append("path").attr("d", "M0,0L8,4L0,8z").attr("fill", "var(--before-line)");
    this.layer = this.svg.append("g");
    // a plain wheel scrolls the page
    this.zoom = d3
      .zoom()
      .scaleExtent([0.05, 4])
      .filter((event) => (event.type === "wheel" ? event.ctrlKey || event.metaKey : !event.button))
      .on("zoom", (event) => this.layer.attr("transform", event.transform));
    this.svg.call(this.zoom).on("dblclick.zoom", null);
    this.draw();
  }

  /** Lays out what is seen, and draws it. */
  draw() {
    const { leaves, around } = visibleItems(this.root, this.open);
    const edges = visibleEdges(this.nodes, this.byIndex, leaves);
    this.leaves = leaves;
    this.edges = edges;
    const layout = new dagre.graphlib.Graph({ compound: true });
    layout.setGraph({ nodesep: 18, ranksep: 34, edgesep: 10, marginx: 8, marginy: 8 });
    layout.setDefaultEdgeLabel(() => ({}));
    for (const item of around) layout.setNode(item.id, { label: item.name });
    for (const item of leaves) layout.setNode(item.id, this.sizeOf(item));
    for (const item of [...around, ...leaves]) {
      if (item.parent && item.parent !== this.root) layout.setParent(item.id, item.parent.id);
    }
    for (const edge of edges) layout.setEdge(edge.from.id, edge.to.id, { weight: 1 });
    dagre.layout(layout);
    this.size = layout.graph();
    this.layout = layout;
    this.layer.selectAll("*").remove();
    this.drawGroups(around);
    this.drawEdges();
    this.drawLeaves();
  }

  sizeOf(item) {
    const [first, second] = this.words(item);
    const letters = Math.max(first.length, second.length * 0.92);
    return { width: Math.max(letters * 7.1 + 22, 64), height: second ? 40 : 26 };
  }

  /** Two lines of an item: operator and name, or module and what is in it. */
  words(item) {
    if (item.isGroup) {
      return [`▸ ${shortened(item.name, 32)}`, `${item.nodes} nodes${this.changeWords(item)}`];
    }
    const status = STATUS[item.node.status];
    const op = item.node.op.split(".").pop();
    return [`${status ? `${status.sign} ` : ""}${op}`, shortened(item.node.name.split("/").pop(), 28)];
  }

  changeWords(item) {
    const parts = Object.entries(STATUS).filter(([key]) => item.statuses[key]);
    return parts.map(([key, { sign }]) => `, ${sign}${item.statuses[key]}`).join("");
  }

  statusOf(item) {
    const kinds = Object.keys(STATUS).filter((key) => item.statuses[key]);
    if (!kinds.length) return "same";
    return kinds.length === 1 && item.statuses[kinds[0]] === item.nodes ? kinds[0] : "changed";
  }

  drawGroups(around) {
    const sorted = d3.sort(around, (item) => item.id.length);
    for (const item of sorted) {
      const { x, y, width, height } = this.layout.node(item.id);
      const group = this.layer.append("g").attr("class", "around");
      // the name stands above what is inside
      const top = y - height / 2 - HEAD;
      group.append("rect").attr("x", x - width / 2).attr("y", top).attr("width", width).attr("height", height + HEAD).attr("rx", 8);
      const head = this.focusable(group.append("g"), item, `Module ${item.name}, open`);
      head.attr("aria-expanded", "true");
      const text = head.append("text").attr("x", x - width / 2 + 8).attr("y", top + 13);
      text.text(`▾ ${shortened(item.name, Math.max(Math.floor(width / 8), 6))}`);
    }
  }

  drawEdges() {
    const line = d3.line((p) => p.x, (p) => p.y).curve(d3.curveBasis);
    for (const edge of this.edges) {
      const { points } = this.layout.edge(edge.from.id, edge.to.id);
      const path = this.layer.append("path").attr("class", "edge").attr("d", line(points)).attr("marker-end", "url(#arrow)");
      const words = edge.count > 1 ? `${edge.count} tensors` : edge.type;
      path.append("title").text(words);
    }
  }

  drawLeaves() {
    for (const item of this.leaves) {
      const { x, y, width, height } = this.layout.node(item.id);
      const [first, second] = this.words(item);
      const kind = item.isGroup ? "module" : "node";
      const said = item.isGroup ? `Module ${item.name}, ${item.nodes} nodes, folded` : `${first} ${item.node.name}`;
      const group = this.focusable(this.layer.append("g"), item, said);
      group.classed(`${kind} ${this.statusOf(item)}`, true);
      group.attr("transform", `translate(${x - width / 2},${y - height / 2})`);
      if (item.isGroup) group.attr("aria-expanded", "false");
      group.append("rect").attr("width", width).attr("height", height).attr("rx", item.isGroup ? 8 : 4);
      group.append("text").attr("x", width / 2).attr("y", 17).attr("class", "first").text(first);
      if (second) group.append("text").attr("x", width / 2).attr("y", 32).attr("class", "second").text(second);
      group.append("title").text(item.isGroup ? item.name : `${item.node.op} ${item.node.name}`);
    }
    this.mark();
  }

  /** Makes an element answer to pointer and keyboard as its item does. */
  focusable(group, item, label) {
    group.attr("role", "button").attr("aria-label", label).attr("data-id", item.id).attr("tabindex", "-1");
    group.on("click", () => this.act(item));
    group.on("keydown", (event) => this.key(event, item));
    return group;
  }

  key(event, item) {
    const moves = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 };
    if (event.key === "Enter" || event.key === " ") this.act(item);
    else if (event.key in moves) this.walk(item, moves[event.key], event.key);
    else return;
    event.preventDefault();
  }

  /** Down and up along edges; right and left through what is seen, in the order of the graph. */
  walk(item, step, key) {
    let next = null;
    if (key === "ArrowDown") next = this.edges.find((edge) => edge.from === item)?.to;
    if (key === "ArrowUp") next = this.edges.find((edge) => edge.to === item)?.from;
    if (!next) next = this.leaves[this.leaves.indexOf(item) + step];
    if (next) this.focus(next);
  }

  element(item) {
    return this.layer.selectAll("[data-id]").filter(function () {
      return this.dataset.id === item.id;
    }).node();
  }

  focus(item) {
    const element = this.element(item);
    if (!element) return;
    this.layer.selectAll('[tabindex="0"]').attr("tabindex", "-1");
    element.setAttribute("tabindex", "0");
    element.focus({ preventScroll: true });
    this.center(item);
  }

  act(item) {
    if (!item.isGroup) {
      this.select(item);
      return;
    }
    const before = this.layout.node(item.id);
    if (this.open.has(item.id)) this.open.delete(item.id);
    else this.open.add(item.id);
    this.draw();
    this.selected = item;
    this.tell();
    // what was clicked stays where it was
    const after = this.layout.node(item.id);
    const { k } = d3.zoomTransform(this.svg.node());
    if (before && after) this.svg.call(this.zoom.translateBy, before.x - after.x, before.y - after.y);
    if (this.size.width * k > 20 * this.picture.clientWidth) this.fit();
    this.mark();
    const element = this.element(item);
    if (element) element.focus({ preventScroll: true });
  }

  select(item) {
    this.selected = item;
    this.mark();
    this.tell();
  }

  mark() {
    const chosen = this.selected?.id ?? this.leaves[0]?.id;
    const isSelected = this.selected?.id;
    let hasStop = false;
    this.layer.selectAll("[data-id]").each(function () {
      const isChosen = this.dataset.id === chosen;
      hasStop ||= isChosen;
      this.setAttribute("tabindex", isChosen ? "0" : "-1");
      this.classList.toggle("selected", this.dataset.id === isSelected);
    });
    if (!hasStop) this.layer.select("[data-id]").attr("tabindex", "0");
  }

  /** Opens all modules around an item, selects it and brings it to the middle. */
  show(item) {
    let isNew = false;
    for (let each = item.parent; each; each = each.parent) {
      if (!this.open.has(each.id)) isNew = true;
      this.open.add(each.id);
    }
    if (isNew) this.draw();
    this.select(item);
    this.center(item, 1);
  }

  center(item, scale) {
    const place = this.layout.node(item.id);
    if (!place) return;
    const now = d3.zoomTransform(this.svg.node());
    const k = Math.max(now.k, scale ?? now.k);
    const { clientWidth: width, clientHeight: height } = this.picture;
    this.svg.call(this.zoom.transform, d3.zoomIdentity.translate(width / 2 - k * place.x, height / 2 - k * place.y).scale(k));
  }

  fold() {
    this.open = new Set([this.root.id]);
    this.selected = null;
    this.draw();
    this.tell();
    this.fit();
  }

  zoomBy(factor) {
    this.svg.call(this.zoom.scaleBy, factor);
  }

  /** The whole graph, or its first part where the whole would be too small to read. */
  fit() {
    const { clientWidth: width, clientHeight: height } = this.picture;
    if (!width) return;
    this.fitted = true;
    const whole = Math.min(width / this.size.width, height / this.size.height, 1.2);
    const k = Math.max(whole, Math.min(0.55, width / this.size.width));
    const scale = Math.max(k, 0.3);
    const top = scale > whole ? 8 : (height - scale * this.size.height) / 2;
    this.svg.call(this.zoom.transform, d3.zoomIdentity.translate((width - scale * this.size.width) / 2, top).scale(scale));
  }

  // search

  search(words) {
    const matches = words
      ? this.byIndex.filter(({ node }) => searchText(node).includes(words))
      : [];
    const shown = matches.slice(0, 20);
    this.found.textContent = words ? `${matches.length} of ${this.nodes.length} nodes match${shown.length < matches.length ? "; the first 20:" : ""}` : "";
    this.results.replaceChildren(...shown.map((item) => el("li", {}, this.link(item))));
  }

  link(item) {
    const { node } = item;
    const sign = STATUS[node.status]?.sign ?? "";
    return el("button", { type: "button", class: "link", onclick: () => this.show(item) }, `${sign} ${node.op} ${shortened(node.name, 60)}`.trim());
  }

  // details

  tell() {
    const item = this.selected;
    if (!item) this.details.replaceChildren(el("p", { class: "muted" }, "Choose a node to see its details."));
    else if (item.isGroup) this.details.replaceChildren(...this.groupDetails(item));
    else this.details.replaceChildren(...this.nodeDetails(item));
  }

  groupDetails(item) {
    const inner = [...itemsOf(item)].filter((each) => !each.isGroup).map((each) => each.node);
    const ops = d3.rollups(inner, (each) => each.length, (node) => node.op);
    const words = d3.sort(ops, ([, number]) => -number).map(([op, number]) => `${op} ×${number}`);
    return [
      el("h3", {}, item.name),
      factList([
        ["Nodes", countText(item.nodes)],
        ["Operators", words.join(", ")],
        ["Constants", bytesText(d3.sum(inner, (node) => node.bytes))],
        ["MACs", shortText(d3.sum(inner, (node) => node.macs ?? 0))],
        ...Object.entries(STATUS).map(([key, { words: said }]) => [said, item.statuses[key] ? countText(item.statuses[key]) : null]),
      ]),
      this.button(this.open.has(item.id) ? "Fold" : "Unfold", () => this.act(item)),
    ];
  }

  nodeDetails(item) {
    const { node, index } = item;
    const status = STATUS[node.status];
    const attributes = Object.entries(node.attributes);
    const readers = this.readers[index];
    return [
      el("h3", {}, node.op),
      el("p", { class: "name" }, node.name),
      status ? el("p", {}, `${status.sign} ${status.words}`) : null,
      node.changes?.length ? el("ul", {}, ...node.changes.map((change) => el("li", {}, change))) : null,
      factList([
        ["Module", node.path.join(" / ")],
        ["Constants", node.bytes ? bytesText(node.bytes) : null],
        ["MACs", isKnown(node.macs) ? shortText(node.macs) : null],
        ...attributes,
      ]),
      node.inputs.length ? el("h4", {}, "Reads") : null,
      el("ul", { class: "ports" }, ...node.inputs.map((input) => this.port(input, input.from))),
      node.outputs.length ? el("h4", {}, "Gives") : null,
      el("ul", { class: "ports" }, ...node.outputs.map((output) => this.port(output))),
      readers.length ? el("h4", {}, "Read by") : null,
      el("ul", { class: "ports" }, ...readers.slice(0, 20).map((reader) => el("li", {}, this.link(this.byIndex[reader])))),
    ].filter(Boolean);
  }

  port(value, from) {
    return el(
      "li",
      {},
      el("span", { class: "name" }, value.name ?? ""),
      el("span", { class: "muted" }, ` ${value.type}`),
      from === undefined ? null : el("span", {}, " ", this.link(this.byIndex[from])),
    );
  }
}

/** For each node the numbers of those that read it. */
function readersOf(nodes) {
  const readers = nodes.map(() => []);
  nodes.forEach((node, index) => {
    const sources = new Set(node.inputs.map((input) => input.from).filter(isKnown));
    sources.forEach((source) => readers[source].push(index));
  });
  return readers;
}

function searchText(node) {
  const tensors = [...node.inputs, ...node.outputs].map((value) => value.name ?? "");
  return [node.op, node.name, ...node.path, ...tensors].join("\n").toLowerCase();
}
