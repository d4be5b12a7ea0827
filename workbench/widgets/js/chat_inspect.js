// What a researcher looks at: the exact prompt as tokens, and how likely each token was.

const TOKENS_AT_ONCE = 1500;
// Control, zero-width and direction characters: never left to act, always named.
const UNSEEN = new RegExp(
  "[\\u0000-\\u0008\\u000b-\\u001f\\u007f-\\u009f\\u00ad\\u061c\\u200b-\\u200f" +
    "\\u2028-\\u202e\\u2060-\\u206f\\ufeff\\ufff9-\\ufffb]",
  "g",
);

/** A token's text with its white space and its invisible characters made visible. */
function visible(text) {
  return text
    .replace(UNSEEN, (sign) => `⟨U+${sign.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`)
    .replaceAll("\n", "⏎")
    .replaceAll("\t", "⇥")
    .replaceAll(" ", "·");
}

/** Add nodes in portions, so that a prompt of 100,000 tokens does not hold the page. */
function inPortions(parent, items, draw) {
  let drawn = 0;
  const more = make("button.wb-word", { type: "button", onclick: () => portion() });
  const portion = () => {
    const next = items.slice(drawn, drawn + TOKENS_AT_ONCE);
    const nodes = next.map((item, index) => draw(item, drawn + index));
    drawn += next.length;
    more.remove();
    parent.append(...nodes.flat());
    if (drawn < items.length) {
      more.textContent = `Show more (${decimal(items.length - drawn)} left)`;
      parent.append(more);
    }
  };
  portion();
  return parent;
}

/** The prompt as the model got it: as tokens with their ids, or as plain text. */
function promptView({ text, pieces, note }) {
  const tokens = pieces || [];
  const list = make("div.wb-tokens", { tabindex: "0", role: "group", "aria-label": "Tokens with their ids" });
  inPortions(list, tokens, ([id, said]) => {
    const token = make(
      "span.wb-token",
      { title: `id ${id}` },
      make("span.wb-token-text", { dir: "ltr" }, visible(said) || "∅"),
      make("span.wb-token-id", null, id),
    );
    return said.endsWith("\n") ? [token, make("br")] : [token];
  });
  const plain = make("pre.wb-plain", { tabindex: "0", dir: "auto" }, text.replace(UNSEEN, visible));
  const word = (name, onclick) => make("button.wb-word", { type: "button", onclick }, name);
  const [asTokens, asText] = [word("Tokens"), word("Text")];
  const choose = (showTokens) => {
    show(list, showTokens && tokens.length > 0);
    show(plain, !showTokens || !tokens.length);
    asTokens.setAttribute("aria-pressed", String(showTokens));
    asText.setAttribute("aria-pressed", String(!showTokens));
  };
  asTokens.addEventListener("click", () => choose(true));
  asText.addEventListener("click", () => choose(false));
  choose(tokens.length > 0);
  show(asTokens, tokens.length > 0);
  const count = tokens.length ? `${decimal(tokens.length)} tokens, ` : "";
  return make(
    "div",
    null,
    make(
      "div.wb-panel-bar",
      null,
      make("span.wb-choose", { role: "group", "aria-label": "Show as" }, asTokens, asText),
      make("span.wb-hint", null, `${count}${decimal(text.length)} characters`),
      copyButton("Copy the prompt", () => text),
      tokens.length ? word("Copy ids", () => copyText(JSON.stringify(tokens.map(([id]) => id)))) : null,
    ),
    note ? make("p.wb-hint", null, note) : null,
    list,
    plain,
  );
}

/** The answer's tokens, coloured by probability; one is chosen by click, arrows, Home and End. */
function probabilityView({ tokens: told, note }) {
  const number = (value) => (value === "-inf" ? -Infinity : Number(value));
  const finite = (token) => ({ ...token, logprob: number(token.logprob) });
  const tokens = (told || []).map((token) => ({ ...finite(token), top: (token.top || []).map(finite) }));
  if (!tokens.length) return make("p.wb-hint", null, "The engine told no probabilities for this answer.");
  const detail = make("div.wb-detail", { role: "status" });
  const list = make("div.wb-odds", {
    role: "listbox",
    "aria-label": "Tokens of the answer; choose one for its alternatives",
    "aria-orientation": "horizontal",
  });
  inPortions(list, tokens, (token, index) => oddsToken(token, index));
  let chosen = null;
  const choose = (node, focus = true) => {
    if (!node || !node.matches(".wb-odd")) return;
    if (chosen) {
      chosen.setAttribute("aria-selected", "false");
      chosen.tabIndex = -1;
    }
    chosen = node;
    node.setAttribute("aria-selected", "true");
    node.tabIndex = 0;
    if (focus) node.focus({ preventScroll: false });
    detail.replaceChildren(alternatives(tokens[Number(node.dataset.index)]));
  };
  const all = () => [...list.querySelectorAll(".wb-odd")];
  list.addEventListener("click", (event) => choose(event.target.closest(".wb-odd")));
  list.addEventListener("keydown", (event) => {
    const nodes = all();
    const at = nodes.indexOf(chosen);
    const [before, after] = [at - 1, at + 1];
    const moves = { ArrowRight: after, ArrowDown: after, ArrowLeft: before, ArrowUp: before };
    const to = { ...moves, Home: 0, End: nodes.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    choose(nodes[Math.max(0, Math.min(nodes.length - 1, to))]);
  });
  const rarer = (best, token, index) => (token.logprob < tokens[best].logprob ? index : best);
  const least = tokens.reduce(rarer, 0);
  choose(all()[Math.min(least, all().length - 1)], false);
  return make("div", null, oddsSummary(tokens), note ? make("p.wb-hint", null, note) : null, list, detail);
}

/** In words what the colours say: perplexity and the share of unlikely tokens. */
function oddsSummary(tokens) {
  const known = tokens.filter((token) => Number.isFinite(token.logprob));
  const mean = known.reduce((sum, token) => sum + token.logprob, 0) / (known.length || 1);
  const unlikely = known.filter((token) => token.logprob < Math.log(0.1)).length;
  const said = [
    `${decimal(tokens.length)} tokens`,
    `perplexity ${decimal(Math.exp(-mean), 2)}`,
    `${decimal(unlikely)} below 10 % (dotted)`,
  ];
  const scale = { role: "img", "aria-label": "Colour scale: unlikely to certain" };
  return make(
    "div.wb-panel-bar",
    null,
    make("span.wb-hint", null, said.join(" · ")),
    make("span.wb-scale", scale, "unlikely", make("i"), "certain"),
  );
}

function oddsToken(token, index) {
  const odds = Math.exp(token.logprob);
  const shade = make(
    "span.wb-odd",
    {
      role: "option",
      tabindex: "-1",
      "aria-selected": "false",
      "aria-label": `${visible(token.text)}, ${percent(odds)}`,
      title: `${percent(odds)}${token.id == null ? "" : ` · id ${token.id}`}`,
      "data-index": index,
    },
    visible(token.text).replaceAll("·", " ") || "∅",
  );
  shade.style.setProperty("--odds", String(Math.max(0, Math.min(1, odds))));
  shade.classList.toggle("wb-unlikely", odds < 0.1);
  return token.text.endsWith("\n") ? [shade, make("br")] : [shade];
}

function quoted(token) {
  return make("code", { dir: "ltr" }, visible(token.text) || "∅");
}

/** What the model might have said instead, most likely first. */
function alternatives(token) {
  const top = [...(token.top || [])].sort((a, b) => b.logprob - a.logprob);
  const known = (other) => other.id != null && token.id != null;
  const same = (other) => (known(other) ? other.id === token.id : other.text === token.text);
  const place = top.findIndex(same);
  if (place < 0) top.push({ ...token, beyond: top.length > 0 });
  const rows = top.map((other) => {
    const odds = Math.exp(other.logprob);
    const bar = make("i.wb-bar");
    bar.style.setProperty("--odds", String(odds));
    return make(
      same(other) ? "tr.wb-chosen" : "tr",
      null,
      make("td", null, quoted(other), same(other) ? make("span.wb-hint", null, " said") : null),
      make("td.wb-bar-cell", null, bar),
      make("td", null, percent(odds)),
      make("td", null, Number.isFinite(other.logprob) ? other.logprob.toFixed(3) : String(other.logprob)),
      make("td", null, other.id ?? ""),
    );
  });
  const beyond = top.length > 1 ? `not among the first ${top.length - 1}` : "";
  const rank = place >= 0 ? `rank ${place + 1}` : beyond;
  const odds = [percent(Math.exp(token.logprob)), rank].filter(Boolean).join(", ");
  const names = ["token", "", "probability", "log-probability", "id"];
  return make(
    "table.wb-alternatives",
    null,
    make("caption", null, "Token ", quoted(token), ` · ${odds}`),
    make("thead", null, make("tr", null, names.map((name) => make("th", { scope: "col" }, name)))),
    make("tbody", null, rows),
  );
}
