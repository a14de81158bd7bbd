// Elements by hand: making them, changing only what differs, and lists that keep their rows (and with them the focus).

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes (`on` and a name listens, null is left out) and children (text or nodes, null is left out). */
export function h(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function s(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

export const byId = (id) => document.getElementById(id);

export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function setAttribute(node, name, value) {
  if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

/**
 * Make the children of `parent` those of `items`, in their order. A row is made once by `make(item)`, which gives its
 * element and the function that shows an item in it, and is then only moved and updated.
 */
export function keyed(parent, items, keyOf, make) {
  const rows = (parent.keyedRows ??= new Map());
  const wanted = new Set(items.map(keyOf));
  for (const [key, row] of rows) {
    if (!wanted.has(key)) {
      row.element.remove();
      rows.delete(key);
    }
  }
  let at = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    let row = rows.get(key);
    if (row === undefined) {
      row = make(item);
      rows.set(key, row);
    }
    if (row.element === at) at = at.nextElementSibling;
    else parent.insertBefore(row.element, at);
    row.show(item);
  }
}

/** A cell's text as an updater: `const set = text(cell); set("12")`. */
export const text = (node) => (value) => setText(node, value);
