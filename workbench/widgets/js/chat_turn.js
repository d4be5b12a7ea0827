// One turn of the conversation: its words, what belongs under them, and what can be done with it.

const SPEAKERS = { user: "You", assistant: "Answer", tool: "Tool result", system: "System" };
const FINISHED = {
  stop: "complete",
  length: "cut off at the token limit",
  tool_calls: "asked for a tool",
  cancelled: "stopped",
  error: "failed",
  interrupted: "cut off when its process ended",
};

/** Shows one turn; `act(message)` speaks to the kernel, `chat` answers what the whole chat knows. */
class TurnView {
  constructor(turn, chat) {
    this.chat = chat;
    this.id = turn.id;
    this.role = turn.role;
    this.body = make("div.wb-markdown.wb-body", { dir: "auto" });
    this.thought = make("div.wb-markdown", { dir: "auto" });
    this.thoughtTitle = make("span.wb-thinking-title", null, "Thinking");
    this.thinking = make(
      "details.wb-thinking",
      null,
      make("summary", null, icon("next"), this.thoughtTitle),
      this.thought,
    );
    this.pictures = make("div.wb-pictures");
    this.tools = make("div.wb-tools");
    this.error = make("div.wb-error", { role: "alert" });
    this.blank = make("p.wb-hint", { hidden: true });
    this.figures = make("span.wb-figures");
    this.branches = make("span.wb-branches", { role: "group", "aria-label": "Versions of this turn" });
    this.actions = make("span.wb-actions", { role: "group", "aria-label": "What to do with this turn" });
    this.foot = make("div.wb-foot", null, this.branches, this.figures, this.actions);
    this.below = make("div.wb-below");
    this.bubble = make("div.wb-bubble", null, this.thinking, this.pictures, this.body, this.tools);
    this.node = make(
      `article.wb-turn.wb-${turn.role}`,
      { "data-turn": turn.id },
      this.bubble,
      this.blank,
      this.error,
      this.foot,
      this.below,
    );
    this.update(turn);
  }

  /** Show `turn`; the parts that did not change keep their nodes. */
  update(turn) {
    if (this.inspecting && this.turn.text !== turn.text) this.closeInspection();
    this.turn = turn;
    this.streaming = this.chat.busy === turn.id;
    const many = (turn.siblings || []).length;
    const place = (turn.siblings || []).indexOf(turn.id) + 1;
    const version = many > 1 ? `, version ${place} of ${many}` : "";
    this.node.setAttribute("aria-label", (SPEAKERS[turn.role] || turn.role) + version);
    this.writeBody(turn);
    this.writeThinking(turn);
    this.writePictures(turn);
    this.writeTools(turn);
    const failure = turn.meta && turn.meta.error;
    this.error.replaceChildren(...(failure ? [icon("warning"), make("span", null, failure)] : []));
    show(this.error, Boolean(failure));
    this.mark();
    this.footing = null;
    this.writeFoot();
  }

  /** The same words again, after busy or the powers changed. */
  refresh() {
    if (this.streaming || this.chat.busy === this.id) this.mark();
    this.writeFoot();
  }

  mark() {
    this.streaming = this.chat.busy === this.id;
    this.node.classList.toggle("wb-streaming", this.streaming);
    this.node.classList.toggle("wb-waiting", this.streaming && !this.body.childElementCount);
    this.node.setAttribute("aria-busy", String(this.streaming));
    show(this.body, this.streaming || this.body.childElementCount > 0);
    this.nameThinking();
    this.nameBlank();
  }

  /** An answer without a word is said to be one. */
  nameBlank() {
    const said = [this.body, this.thought, this.tools, this.error].some((part) => part.childNodes.length);
    const stopped = this.turn.meta?.finish === "cancelled";
    this.blank.textContent = stopped ? "Stopped before the first word." : "The answer is empty.";
    show(this.blank, this.role === "assistant" && !this.streaming && !said);
  }

  writeBody(turn) {
    const pretty = turn.role !== "user" && !this.streaming && this.asJson(turn);
    if (pretty) reconcile(this.body, [pretty]);
    else if (turn.role === "user") reconcile(this.body, [make("div.wb-said", { dir: "auto" }, turn.text)]);
    else reconcile(this.body, blocksOf(turn.blocks));
  }

  /** JSON is shown indented; the exact text is one click away. */
  asJson(turn) {
    const text = (turn.text || "").trim();
    if (!/^[{[]/.test(text)) return null;
    const indented = indentJson(text);
    return indented === null ? null : jsonBlock(indented, turn.text, "JSON");
  }

  writeThinking(turn) {
    const there = turn.thinking && turn.thinking.length > 0;
    if (there) reconcile(this.thought, blocksOf(turn.thinking));
    else this.thought.replaceChildren();
  }

  nameThinking() {
    const there = this.thought.childElementCount > 0;
    const going = there && this.streaming && !this.body.childElementCount;
    show(this.thinking, there);
    this.thinking.classList.toggle("wb-going", going);
    this.thoughtTitle.textContent = going ? "Thinking …" : "Thinking";
  }

  writePictures(turn) {
    const images = turn.images || [];
    reconcile(this.pictures, images.map((image) => picture(image)));
    show(this.pictures, images.length > 0);
  }

  writeTools(turn) {
    const calls = turn.tools || [];
    reconcile(this.tools, calls.map(toolCall));
    show(this.tools, calls.length > 0);
  }

  /** A long conversation has many of them: they are made anew only where something else stands. */
  writeFoot() {
    const footing = [this.streaming, this.inspecting, this.chat.label, ...this.chat.powers].join(" ");
    if (this.footing !== footing) this.makeFoot();
    this.footing = footing;
    const dead = Boolean(this.chat.dead);
    const shut = dead ? "dead" : this.chat.busy === null ? "" : "busy";
    if (this.shut === shut) return;
    this.shut = shut;
    const all = (name) => this.foot.querySelectorAll(`[data-${name}]`);
    for (const button of all("idle")) button.disabled = Boolean(shut) || "end" in button.dataset;
    for (const button of all("alive")) button.disabled = dead;
  }

  makeFoot() {
    this.shut = null;
    const turn = this.turn;
    const many = (turn.siblings || []).length;
    const place = (turn.siblings || []).indexOf(turn.id) + 1;
    this.figures.replaceChildren(...this.streaming ? [] : figuresOf(turn.meta, this.chat.label));
    this.branches.replaceChildren();
    if (many > 1) {
      const to = (step) => () => this.chat.turnTo(turn.siblings[place - 1 + step], step);
      this.branches.append(
        iconButton("back", "Earlier version", to(-1), { "data-idle": true, "data-end": place <= 1 }),
        make("span", null, `${place} / ${many}`),
        iconButton("next", "Later version", to(1), { "data-idle": true, "data-end": place >= many }),
      );
    }
    show(this.branches, many > 1);
    const held = this.actions.contains(document.activeElement) && document.activeElement.title;
    this.actions.replaceChildren(...this.buttons(turn));
    for (const button of held ? this.actions.children : []) if (button.title === held) button.focus();
  }

  buttons(turn) {
    const send = (type) => () => this.chat.send({ type, id: turn.id });
    const idle = { "data-idle": true };
    const copy = copyButton("Copy the text", () => this.turn.text || "");
    if (turn.role === "user") {
      return [copy, iconButton("edit", "Edit and ask again", () => this.edit(), idle)];
    }
    if (turn.role !== "assistant" || this.streaming) return [];
    const powers = this.chat.powers;
    const cut = turn.meta && ["length", "cancelled", "error", "interrupted"].includes(turn.meta.finish);
    const odds = powers.has("logprobs") || powers.has("score");
    const onward = cut && turn.text && powers.has("complete") && powers.has("render");
    return [
      onward ? iconButton("onward", "Continue this answer", send("continue"), idle) : null,
      iconButton("again", "Answer again", send("regenerate"), idle),
      copy,
      powers.has("render") ? this.asking("prompt", "Exact prompt and token ids") : null,
      odds ? this.asking("odds", "Token probabilities") : null,
    ].filter(Boolean);
  }

  asking(picture, title) {
    const kind = picture === "odds" ? "probabilities" : "prompt";
    const open = { "aria-expanded": String(this.inspecting === kind), "data-alive": true };
    return iconButton(picture, title, () => this.ask(kind), open);
  }

  /** Apply one patch of a streaming part; called once per drawn frame. */
  patch(part, patch) {
    const target = part === "thinking" ? this.thought : this.body;
    applyPatch(target, patch);
    this.mark();
  }

  addTool(call) {
    this.turn = { ...this.turn, tools: [...(this.turn.tools || []), call] };
    this.writeTools(this.turn);
  }

  /** Open or close the prompt or the probabilities under this turn. */
  ask(kind) {
    if (this.inspecting === kind) return this.closeInspection();
    this.inspecting = kind;
    this.inspect(make("p.wb-hint", { role: "status" }, "Asking the kernel …"), kind);
    this.chat.send({ type: kind, id: this.id });
  }

  inspect(content, kind) {
    const title = kind === "prompt" ? "Exact prompt" : "Token probabilities";
    const close = iconButton("close", "Close", () => this.closeInspection());
    const panel = make(
      "section.wb-panel",
      { "aria-label": title, onkeydown: (event) => event.key === "Escape" && this.closeInspection(event) },
      make("div.wb-panel-head", null, make("strong", null, title), close),
      content,
    );
    this.inspecting = kind;
    this.below.replaceChildren(panel);
    this.writeFoot();
    panel.scrollIntoView({ block: "nearest" });
  }

  closeInspection(event) {
    if (event) event.stopPropagation();
    const kind = this.inspecting;
    this.inspecting = null;
    this.below.replaceChildren();
    this.writeFoot();
    const title = kind === "prompt" ? "Exact prompt and token ids" : "Token probabilities";
    for (const button of this.actions.children) if (button.title === title) button.focus();
  }

  /** Turn the user's words into a field; sending makes a branch, the old words stay. */
  edit() {
    const field = make("textarea.wb-field", { "aria-label": "Edit this turn", rows: 1, dir: "auto" });
    field.value = this.turn.text;
    const close = () => {
      form.replaceWith(this.bubble);
      this.actions.querySelector("[title^=Edit]")?.focus();
    };
    const submit = () => {
      if (!field.value.trim()) return;
      close();
      this.chat.send({ type: "edit", id: this.id, text: field.value });
      this.chat.composer.field.focus({ preventScroll: true });
    };
    const form = make(
      "form.wb-bubble.wb-editing",
      { onsubmit: (event) => (event.preventDefault(), submit()) },
      field,
      make(
        "div.wb-editing-foot",
        null,
        make("span.wb-hint", null, "The first version stays as a branch."),
        make("button.wb-word", { type: "button", onclick: close }, "Cancel"),
        make("button.wb-word.wb-primary", { type: "submit" }, "Ask again"),
      ),
    );
    writingKeys(field, { enter: submit, escape: close });
    this.bubble.replaceWith(form);
    fitField(field);
    field.focus();
  }
}

function blocksOf(nodes) {
  return (nodes || []).map((node) => buildNode(node));
}

/** What was measured, as short texts with a full name each. */
function figuresOf(meta, label) {
  if (!meta) return [];
  const out = [];
  const add = (text, title) => out.push(make("span.wb-figure", { title }, text));
  if (meta.ttft != null) add(`TTFT ${seconds(meta.ttft)}`, "Time to first token");
  if (meta.rate != null) add(`${decimal(meta.rate, 1)} tokens/s`, "Decode speed");
  if (meta.prompt_tokens != null || meta.completion_tokens != null) {
    const count = (value) => (value == null ? "?" : decimal(value));
    add(
      `${count(meta.prompt_tokens)} → ${count(meta.completion_tokens)} tokens`,
      "Tokens of the prompt and of the answer",
    );
  }
  if (meta.finish) add(FINISHED[meta.finish] || meta.finish, `Finish reason: ${meta.finish}`);
  if (meta.model && meta.model !== label) add(meta.model, "Model");
  return out;
}

/** A picture of ours (a data: address) is shown; any other address waits for a click. */
function picture(image) {
  if (/^data:image\/(png|jpeg|gif|webp|bmp|avif);/i.test(image.url || "")) {
    return make("img.wb-picture", { src: image.url, alt: image.name || "Attached image" });
  }
  return make("span.wb-hint", null, `Image ${image.name || ""} (not kept here)`);
}

function jsonBlock(indented, exact, label) {
  return make(
    "div.wb-json",
    null,
    make("div.wb-json-head", null, make("span", null, label), copyButton("Copy the exact text", () => exact)),
    make("pre", { tabindex: "0" }, make("code", null, indented)),
  );
}

function toolCall(call) {
  const given = typeof call.arguments === "string" ? call.arguments : JSON.stringify(call.arguments ?? {});
  const indented = indentJson(given);
  const about = make("span.wb-call-name", null, icon("tool"), "Calls ", make("code", null, call.name));
  return make("div.wb-call", null, about, jsonBlock(indented ?? given, given, "Arguments"));
}
