// Small pieces of the page: nodes, icons, buttons, copying, numbers. Text only ever becomes text nodes.

const SVG = "http://www.w3.org/2000/svg";

/** Outlines on a 16 by 16 field. */
const ICONS = {
  send: "M8 13V3.5M3.8 7.5 8 3.3l4.2 4.2",
  stop: "M4.5 4.5h7v7h-7z",
  copy: "M5.5 5.5v-3h8v8h-3M2.5 5.5h8v8h-8z",
  done: "M3 8.5 6.5 12 13 4.5",
  again: "M13 8a5 5 0 1 1-1.6-3.7M13.2 2v3h-3",
  edit: "M3 13l.7-3L10.5 3.2l2.3 2.3L6 12.3zM9 4.7 11.3 7",
  onward: "M3 4l4 4-4 4M8.5 4l4 4-4 4",
  back: "M9.8 3.5 5.3 8l4.5 4.5",
  next: "M6.2 3.5 10.7 8l-4.5 4.5",
  sliders: "M2 4.5h6.5M12 4.5h2M2 11.5h2M7.5 11.5H14M8.5 2.8h3.3v3.4H8.5zM4 9.8h3.4v3.4H4z",
  clear: "M8 3v10M3 8h10",
  save: "M8 2.5v7M4.8 6.6 8 9.8l3.2-3.2M3 13h10",
  image: "M2.5 3.5h11v9h-11zM3 11l3-3.4 2.4 2.6 2-1.9 2.9 2.9M10.3 6.1h.01",
  prompt: "M3 4h10M3 8h10M3 12h6",
  odds: "M3 13V8.5M8 13V3M13 13v-7",
  close: "M4 4l8 8M12 4l-8 8",
  down: "M8 3v9.5M3.8 8.5 8 12.7l4.2-4.2",
  tool: "M9.5 6.5 3 13M10 2.7a3.3 3.3 0 1 0 3.3 4L11.2 6.5 9.5 6.5 9.5 4.8z",
  warning: "M8 2.5 14 13H2zM8 6.5v3M8 11.3v.01",
};

/**
 * Make a node.
 *
 * Args: tag with classes ("div.one.two"); attributes (on... are listeners, null and false are left
 * out, true is an empty attribute); children (nodes, or anything else as text; null is left out).
 */
function make(spec, attributes, ...children) {
  const [tag, ...classes] = spec.split(".");
  const node = document.createElement(tag);
  if (classes.length) node.className = classes.join(" ");
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat()) {
    if (child !== null && child !== undefined) node.append(child instanceof Node ? child : String(child));
  }
  return node;
}

function icon(name) {
  const drawing = document.createElementNS(SVG, "svg");
  const line = document.createElementNS(SVG, "path");
  drawing.setAttribute("viewBox", "0 0 16 16");
  drawing.setAttribute("class", "wb-icon");
  drawing.setAttribute("aria-hidden", "true");
  line.setAttribute("d", ICONS[name]);
  drawing.append(line);
  return drawing;
}

/** A button with a picture; its label is read out and shown as a tooltip. */
function iconButton(picture, label, onclick, attributes) {
  return make(
    "button.wb-button",
    { type: "button", title: label, "aria-label": label, onclick, ...attributes },
    icon(picture),
  );
}

/** Show or hide without leaving the node in the tab order. */
function show(node, visible) {
  node.hidden = !visible;
  return node;
}

/** Copy text; where the page may not use the clipboard, by a selection of its own. */
async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const held = document.activeElement;
    const field = make("textarea", { "aria-hidden": "true", tabindex: "-1" });
    field.value = text;
    field.style.cssText = "position:fixed;top:0;left:-9999px";
    document.body.append(field);
    field.select();
    const worked = document.execCommand("copy");
    field.remove();
    if (held) held.focus({ preventScroll: true });
    return worked;
  }
}

/** A button that copies what `read` returns and says whether that worked. */
function copyButton(label, read) {
  const button = iconButton("copy", label, async () => {
    const worked = await copyText(read());
    button.replaceChildren(icon(worked ? "done" : "warning"));
    button.title = worked ? "Copied" : "The browser refused to copy";
    button.setAttribute("aria-label", button.title);
    setTimeout(() => {
      button.replaceChildren(icon("copy"));
      button.title = label;
      button.setAttribute("aria-label", label);
    }, 1500);
  });
  return button;
}

const DECIMALS = [0, 1, 2].map((digits) => new Intl.NumberFormat("en-US", { maximumFractionDigits: digits }));

/** 1234.5 as "1,234.5": at most `digits` decimals. */
function decimal(value, digits = 0) {
  return DECIMALS[digits].format(Number(value));
}

/** Seconds, short. */
function seconds(value) {
  return value < 1 ? `${decimal(value * 1000)} ms` : `${decimal(value, 2)} s`;
}

/** A probability as a percentage that never rounds to 0 or 100 falsely. */
function percent(probability) {
  const value = 100 * probability;
  if (value > 0 && value < 0.1) return "<0.1 %";
  if (value < 100 && value > 99.9) return ">99.9 %";
  return `${value.toFixed(value < 10 ? 1 : 0)} %`;
}

/** Indent JSON without touching a number, a key or a string of it; null when it is not JSON. */
function indentJson(text) {
  try {
    JSON.parse(text);
  } catch {
    return null;
  }
  const parts = text.match(/"(?:\\.|[^"\\])*"|[{}[\],:]|[^\s{}[\],:"]+/g) || [];
  let depth = 0;
  let out = "";
  const line = () => "\n" + "  ".repeat(depth);
  parts.forEach((part, index) => {
    const empty = "{[".includes(parts[index - 1]) && "}]".includes(part);
    if ("}]".includes(part)) {
      depth -= 1;
      out += empty ? part : line() + part;
    } else if ("{[".includes(part)) {
      depth += 1;
      out += "}]".includes(parts[index + 1]) ? part : part + line();
    } else if (part === ",") out += "," + line();
    else if (part === ":") out += ": ";
    else out += part;
  });
  return out;
}

/** Replace only the children that differ, so that selections and open parts in the rest stay. */
function reconcile(parent, wanted) {
  wanted.forEach((node, index) => {
    const there = parent.childNodes[index];
    if (!there) parent.append(node);
    else if (!there.isEqualNode(node)) there.replaceWith(node);
  });
  while (parent.childNodes.length > wanted.length) parent.lastChild.remove();
}
