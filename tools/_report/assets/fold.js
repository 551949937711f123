"use strict";
// A graph as a tree of modules, of which closed ones stand for all that is in them.

const MOST_CHILDREN = 48;
const MOST_PARTS = 12;

/** A tree over the nodes of a graph: groups by module, long rows of nodes by range. */
function foldedTree(nodes) {
  const root = { id: "", name: "", children: [], parent: null, isGroup: true };
  const groups = new Map([["", root]]);
  nodes.forEach((node, index) => {
    let group = root;
    node.path.forEach((part) => {
      const id = `${group.id}/${part}`;
      if (!groups.has(id)) {
        const made = { id, name: part, children: [], parent: group, isGroup: true };
        groups.set(id, made);
        group.children.push(made);
      }
      group = groups.get(id);
    });
    group.children.push({ id: `#${index}`, index, node, name: node.name, parent: group });
  });
  simplify(root);
  split(root);
  count(root);
  return root;
}

/** Every item of a tree, outer ones first. */
function* itemsOf(root) {
  const waiting = [root];
  while (waiting.length) {
    const item = waiting.pop();
    yield item;
    if (item.isGroup) waiting.push(...item.children);
  }
}

/** A group with one child only is that child, with both names. */
function simplify(root) {
  const inner = [...itemsOf(root)].reverse();
  for (const group of inner) {
    if (!group.isGroup) continue;
    group.children = group.children.map((child) => {
      if (!child.isGroup || child.children.length !== 1) return child;
      const only = child.children[0];
      if (only.isGroup) only.name = `${child.name}/${only.name}`;
      only.parent = group;
      return only;
    });
  }
}

/** Groups of many children get groups of ranges, in the order of the graph. */
function split(root) {
  for (const group of itemsOf(root)) {
    if (!group.isGroup || group.children.length <= MOST_CHILDREN) continue;
    const parts = Math.min(Math.ceil(group.children.length / MOST_CHILDREN), MOST_PARTS);
    const each = Math.ceil(group.children.length / parts);
    const whole = group.children;
    group.children = [];
    for (let start = 0; start < whole.length; start += each) {
      const children = whole.slice(start, start + each);
      const name = rangeName(children, start);
      const part = { id: `${group.id}/~${start}`, name, children, parent: group, isGroup: true };
      children.forEach((child) => { child.parent = part; });
      group.children.push(part);
    }
  }
}

/** Name of a range: its first and last module, or numbers of nodes. */
function rangeName(children, start) {
  const last = children[children.length - 1];
  if (children.every((child) => child.isGroup)) return `${children[0].name} to ${last.name}`;
  return `${start + 1} to ${start + children.length}`;
}

/** Adds to each item the number of its nodes, its operators, and how many of its nodes differ. */
function count(root) {
  for (const item of [...itemsOf(root)].reverse()) {
    if (!item.isGroup) {
      item.nodes = 1;
      item.first = item.index;
      item.statuses = { [item.node.status ?? "same"]: 1 };
      continue;
    }
    item.nodes = d3.sum(item.children, (child) => child.nodes);
    item.first = d3.min(item.children, (child) => child.first) ?? 0;
    item.statuses = {};
    for (const child of item.children) {
      for (const [status, number] of Object.entries(child.statuses)) {
        item.statuses[status] = (item.statuses[status] ?? 0) + number;
      }
    }
  }
}

const MOST_AT_FIRST = 18;

/** Groups to open at first: whole levels, as long as what is seen can be read at a glance. */
function firstOpen(root) {
  const open = new Set([root.id]);
  let level = root.children;
  let shown = level.length;
  while (true) {
    const groups = level.filter((item) => item.isGroup);
    const grown = shown - groups.length + d3.sum(groups, (group) => group.children.length);
    if (!groups.length || grown > MOST_AT_FIRST) return open;
    groups.forEach((group) => open.add(group.id));
    shown = grown;
    level = groups.flatMap((group) => group.children);
  }
}

/** What is seen: closed groups and nodes in open ones, and the open groups around them. */
function visibleItems(root, open) {
  const leaves = [];
  const around = [];
  const waiting = [root];
  while (waiting.length) {
    const item = waiting.pop();
    if (!item.isGroup || !open.has(item.id)) {
      leaves.push(item);
      continue;
    }
    if (item !== root) around.push(item);
    waiting.push(...item.children);
  }
  leaves.sort((a, b) => a.first - b.first);
  return { leaves, around };
}

/** Edges between what is seen: number of tensors and the type of the first. */
function visibleEdges(nodes, byIndex, leaves) {
  const seen = new Set(leaves);
  const shown = byIndex.map((item) => {
    let each = item;
    while (each && !seen.has(each)) each = each.parent;
    return each;
  });
  const edges = new Map();
  nodes.forEach((node, index) => {
    for (const input of node.inputs) {
      if (input.from === undefined) continue;
      const [from, to] = [shown[input.from], shown[index]];
      if (!from || !to || from === to) continue;
      const key = `${from.id}\n${to.id}`;
      if (!edges.has(key)) edges.set(key, { from, to, count: 0, type: input.type });
      edges.get(key).count += 1;
    }
  });
  return [...edges.values()];
}
