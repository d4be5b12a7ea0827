// The Markdown tree as nodes of the page, formulas as MathML. Model text only ever becomes text
// nodes; a tag or an attribute that is not named here is not made, whatever the tree says.

const TREE_TAGS = new Set(
  ("p h1 h2 h3 h4 h5 h6 ul ol li blockquote pre code em strong s a img table thead tbody tr th td " +
    "hr br math").split(" "),
);
const TREE_DIRECTED = new Set("p h1 h2 h3 h4 h5 h6 li blockquote th td".split(" "));
const TREE_ALIGNED = new Set(["left", "right", "center"]);
const TREE_DEEPEST = 64;
const TREE_MATHML = "http://www.w3.org/1998/Math/MathML";
const TREE_MATH = new Set(
  ("mrow mi mn mo mtext mspace msup msub msubsup mfrac msqrt mroot mover munder munderover " +
    "mtable mtr mtd mstyle mpadded mphantom").split(" "),
);
const TREE_EM = /^-?\d{1,2}(\.\d{1,3})?em$/;
const TREE_FLAG = /^(true|false)$/;
const TREE_MATH_VALUES = {
  __proto__: null,
  ...Object.fromEntries(
    "accent displaystyle fence largeop movablelimits separator stretchy"
      .split(" ")
      .map((name) => [name, TREE_FLAG]),
  ),
  ...Object.fromEntries("lspace rspace width minsize maxsize".split(" ").map((n) => [n, TREE_EM])),
  mathvariant: /^normal$/,
  form: /^(prefix|infix|postfix)$/,
  scriptlevel: /^[0-2]$/,
  linethickness: /^0$/,
  columnalign: /^(left|center|right)$/,
  "data-line": /^(box|over|under|through|up|down|cross)$/,
};
const TREE_LONG_FORMULA = 48;

/** Element -> the element in it whose child nodes are the children of the tree's node, one for one. */
const treeInner = new WeakMap();

/** Return the page's node of a node of the tree: an element, or a text node for a string. */
function buildNode(node, depth = 0) {
  if (!Array.isArray(node)) return document.createTextNode(String(node ?? ""));
  const [tag, given, ...children] = node;
  const attributes = given && typeof given === "object" ? given : {};
  if (!TREE_TAGS.has(tag) || depth > TREE_DEEPEST) {
    return treeFill(document.createElement("span"), children, Math.min(depth, TREE_DEEPEST), true);
  }
  if (tag === "img") return treePicture(attributes);
  if (tag === "hr" || tag === "br") return document.createElement(tag);
  if (tag === "a") return treeFill(treeLink(attributes), children, depth);
  if (tag === "pre") return treeCode(attributes, children, depth);
  if (tag === "math") return treeFormula(attributes, children);
  const element = document.createElement(tag);
  if (TREE_DIRECTED.has(tag)) element.dir = "auto";
  if (tag === "ol" && Number.isSafeInteger(attributes.start)) element.start = attributes.start;
  if ((tag === "th" || tag === "td") && TREE_ALIGNED.has(attributes.align)) {
    element.style.textAlign = attributes.align;
  }
  treeFill(element, children, depth);
  return tag === "table" ? treeScroll(element) : element;
}

/**
 * Apply a patch of the kernel to the element that holds the blocks; only what changed is touched,
 * so a selection, a scroll position or a focus elsewhere stays.
 */
function applyPatch(container, patch) {
  if (patch.append !== undefined) {
    if (patch.append) treeAppend(container, String(patch.append));
    return;
  }
  if (!Array.isArray(patch.blocks)) return;
  let place = container;
  let depth = 0;
  for (; depth < (patch.depth || 0) && place.lastElementChild; depth += 1) {
    place = treeInside(place.lastElementChild);
  }
  while (place.childNodes.length > patch.keep) place.lastChild.remove();
  const added = document.createDocumentFragment();
  for (const node of patch.blocks) added.append(buildNode(node, depth));
  place.append(added);
}

function treeInside(element) {
  return treeInner.get(element) || element;
}

function treeAppend(container, text) {
  let last = container;
  while (last.nodeType === Node.ELEMENT_NODE) {
    const inside = treeInside(last);
    if (!inside.lastChild) return void inside.append(text);
    last = inside.lastChild;
  }
  last.appendData(text);
}

function treeFill(element, children, depth, flat = false) {
  if (!Array.isArray(children)) return element;
  const nested = flat && depth >= TREE_DEEPEST;
  for (const child of children) {
    element.append(nested ? treeText(child) : buildNode(child, depth + 1));
  }
  return element;
}

/** The text of what is nested too deeply, found without calling oneself. */
function treeText(node) {
  const waiting = [node];
  let text = "";
  while (waiting.length) {
    const next = waiting.pop();
    if (Array.isArray(next)) for (const child of next.slice(2).reverse()) waiting.push(child);
    else text += String(next ?? "");
  }
  return document.createTextNode(text);
}

/** Return the address as the browser reads it, or null where it is none of the web's. */
function treeAddress(value) {
  if (typeof value !== "string") return null;
  try {
    const address = new URL(value);
    return address.protocol === "https:" || address.protocol === "http:" ? address : null;
  } catch {
    return null;
  }
}

function treeLink({ href }) {
  const address = treeAddress(href);
  if (!address) return document.createElement("span");
  const link = document.createElement("a");
  link.href = address.href;
  link.title = address.href;
  link.target = "_blank";
  link.rel = "noopener noreferrer nofollow";
  return link;
}

/** A picture of the web is asked for by a click only, and without saying from where. */
function treePicture({ src, alt }) {
  const address = treeAddress(src);
  const holder = document.createElement("span");
  holder.className = "wb-remote-picture";
  const label = typeof alt === "string" ? alt : "";
  if (!address) {
    holder.textContent = label;
    return holder;
  }
  const button = document.createElement("button");
  button.type = "button";
  button.className = "wb-button wb-load-picture";
  button.textContent = `Load picture from ${address.host}${label ? `: ${label}` : ""}`;
  button.title = address.href;
  button.addEventListener("click", (event) => {
    event.preventDefault(); // it may stand in a link
    event.stopPropagation();
    const picture = document.createElement("img");
    picture.referrerPolicy = "no-referrer";
    picture.alt = label;
    picture.src = address.href;
    holder.replaceChildren(picture);
  });
  holder.append(button);
  return holder;
}

function treeCode({ lang }, children, depth) {
  const holder = document.createElement("div");
  const head = document.createElement("div");
  const label = document.createElement("span");
  const code = document.createElement("pre");
  holder.className = "wb-code";
  head.className = "wb-code-head";
  label.className = "wb-code-language";
  label.textContent = typeof lang === "string" ? lang.slice(0, 40) : "";
  const read = () => code.textContent.replace(/\n$/, "");
  head.append(label, treeCopy(read));
  code.dir = "ltr";
  code.tabIndex = 0; // it scrolls, also by keys
  treeFill(code, children, depth);
  holder.append(head, code);
  treeInner.set(holder, code);
  return holder;
}

/** A formula as MathML; what is selected and copied is its TeX, which is there but not seen. */
function treeFormula({ tex, display }, children) {
  const holder = document.createElement("span");
  const math = document.createElementNS(TREE_MATHML, "math");
  const source = document.createElement("span");
  holder.className = display === true ? "wb-formula wb-display" : "wb-formula";
  holder.dir = "ltr";
  source.className = "wb-formula-source";
  source.textContent = holder.title = typeof tex === "string" ? tex : "";
  source.setAttribute("aria-hidden", "true");
  if (display === true) math.setAttribute("display", "block");
  for (const child of children) math.append(treeMath(child, 0));
  if (display !== true && math.textContent.length > TREE_LONG_FORMULA) {
    holder.classList.add("wb-wide");
  }
  if (holder.classList.length > 1) holder.tabIndex = 0; // it scrolls, also by keys
  holder.append(math, source);
  return holder;
}

function treeMath(node, depth) {
  if (!Array.isArray(node)) return document.createTextNode(String(node ?? ""));
  if (depth > TREE_DEEPEST) return treeText(node);
  const [tag, given, ...children] = node;
  const element = document.createElementNS(TREE_MATHML, TREE_MATH.has(tag) ? tag : "mrow");
  for (const [name, value] of Object.entries(given && typeof given === "object" ? given : {})) {
    if (TREE_MATH_VALUES[name]?.test(String(value))) element.setAttribute(name, String(value));
  }
  for (const child of children) element.append(treeMath(child, depth + 1));
  return element;
}

function treeCopy(read) {
  if (typeof copyButton === "function") return copyButton("Copy code", read);
  const button = document.createElement("button");
  button.type = "button";
  button.className = "wb-button wb-copy";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    const worked = await navigator.clipboard.writeText(read()).then(
      () => true,
      () => false,
    );
    button.textContent = worked ? "Copied" : "Not copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  return button;
}

function treeScroll(table) {
  const holder = document.createElement("div");
  holder.className = "wb-table";
  holder.style.overflowX = "auto";
  holder.tabIndex = 0;
  holder.append(table);
  treeInner.set(holder, table);
  return holder;
}
