// The chat in a cell: what the kernel says becomes nodes, what the reader does becomes messages.

const PROMPTS = ["What can you do?", "Explain what a KV cache is in three sentences."];

class ChatView extends LinkedView {
  constructor(model, root) {
    super(model);
    this.log = new ChatLog(this);
    this.growing = this.log.node;
    this.composer = new Composer(this);
    this.settings = new SettingsPanel(this);
    this.head = new ChatHead(this);
    this.hiding = make("style");
    this.status = make("div.wb-status", { role: "status" });
    this.trouble = make("div.wb-trouble", { role: "alert", hidden: true });
    this.spoken = make("div.wb-spoken", { role: "status", "aria-live": "polite" });
    this.node = make(
      "section.wb-chat",
      { "aria-label": "Chat", "aria-busy": "true" },
      this.hiding,
      this.head.node,
      this.settings.node,
      this.log.frameNode,
      this.trouble,
      this.status,
      this.composer.node,
      this.spoken,
    );
    keepKeys(this.node, () => this.escape());
    root.append(this.node);
    this.link();
  }

  answered() {
    this.say({ status: this.note || "" });
  }

  ask(text, images) {
    this.asked = { text, images };
    show(this.trouble, false);
    this.log.setPending(text);
    this.send({ type: "send", text, images });
  }

  /** Stop what is running; else go to the field, past the buttons of all turns. */
  escape() {
    if (this.busy !== null) this.stop();
    else this.composer.field.focus();
  }

  on_state(message) {
    this.busy = message.busy ?? null;
    this.powers = new Set(message.powers || []);
    this.label = message.label;
    this.kept = message.kept;
    this.earlier = message.earlier ?? null;
    this.hide(message.live);
    this.asked = null;
    this.log.pending = null;
    this.fillEmpty();
    this.log.setTurns(message.turns || []);
    this.head.update(message);
    this.settings.update(message);
    this.node.setAttribute("aria-label", `Chat with ${message.label || "a model"}`);
    this.node.setAttribute("aria-busy", "false");
    this.on_busy({ ...message, id: this.busy });
  }

  on_turn({ turn }) {
    if (turn.role === "user") this.heardOf();
    this.log.put(turn);
  }

  on_path({ ids }) {
    if (!ids.length && this.log.path.length) this.earlier = this.log.path[0];
    this.fillEmpty();
    if (this.log.setPath(ids)) return this.leafOn();
    clearTimeout(this.missing);
    const complete = () => this.log.path.every((id) => this.log.views.has(id));
    this.missing = setTimeout(() => complete() || this.hello(), 500);
  }

  on_delta({ id, part, patch }) {
    this.log.delta(id, part, patch);
  }

  on_tool({ id, call }) {
    this.log.flush();
    this.log.views.get(id)?.addTool(call);
  }

  on_end({ id, turn }) {
    if (this.busy === id) this.busy = null;
    this.log.put(turn);
    const count = turn.meta?.completion_tokens;
    const how = FINISHED[turn.meta?.finish] || "ended";
    this.spoken.textContent = `Answer ${how}${count == null ? "" : `, ${decimal(count)} tokens`}.`;
    this.on_busy({ id: this.busy });
  }

  on_busy({ id, blocking, subshell, note }) {
    this.busy = id ?? null;
    if (note !== undefined) this.note = note;
    const cannotStop = this.busy !== null && blocking && !subshell;
    const how = "A cell waits for this answer: to stop it, press ■ in the notebook's toolbar.";
    this.say({ status: cannotStop ? how : this.note || "" });
    this.node.classList.toggle("wb-busy", this.busy !== null);
    this.log.refresh();
    this.composer.refresh();
    this.head.refresh();
  }

  on_meter(message) {
    this.head.updateMeter(message.meter || message);
  }

  on_settings(message) {
    this.settings.update(message);
  }

  on_system({ text }) {
    this.settings.update({ system: text });
  }

  on_prompt(message) {
    this.inspected(message, "prompt", promptView);
  }

  on_probabilities(message) {
    this.inspected(message, "probabilities", probabilityView);
  }

  /** Another view of the same chat may have asked. */
  inspected(message, kind, draw) {
    const view = this.log.views.get(message.id);
    if (view && view.inspecting === kind) view.inspect(draw(message), kind);
  }

  on_saved({ path }) {
    this.say({ status: `Saved as ${path}` });
  }

  on_note({ note }) {
    this.note = note;
    this.say({ status: note || "" });
  }

  on_error(message) {
    if (this.asked) this.composer.restore(this.asked.text, this.asked.images);
    this.heardOf();
    this.say(message);
  }

  heardOf() {
    this.asked = null;
    if (this.log.pending) this.log.setPending(null);
  }

  /** Show another version of a turn; the focus goes along, so that one can leaf through them. */
  turnTo(id, step) {
    this.leafing = { id, step };
    this.send({ type: "show", id });
  }

  leafOn() {
    const view = this.leafing && this.log.path.includes(this.leafing.id) && this.log.views.get(this.leafing.id);
    if (!view) return;
    const [back, next] = view.branches.querySelectorAll("button");
    const wanted = this.leafing.step < 0 ? [back, next] : [next, back];
    this.leafing = null;
    wanted.find((button) => button && !button.disabled)?.focus({ preventScroll: true });
  }

  toggleSettings(open) {
    show(this.settings.node, open);
    this.head.settings.setAttribute("aria-expanded", String(open));
    if (open) fitField(this.settings.system);
    else this.head.settings.focus();
  }

  fillEmpty() {
    const sees = this.powers.has("images");
    const word = (text, onclick) => make("button.wb-word", { type: "button", onclick }, text);
    const back = () => this.send({ type: "show", id: this.earlier });
    this.log.empty.replaceChildren(
      make("strong", null, this.label || "A model"),
      make("span", null, sees ? "Ask something, or drop an image here." : "Ask something."),
      make("span.wb-offers", null, PROMPTS.map((text) => word(text, () => this.offer(text)))),
      this.earlier === null ? "" : word("Back to the earlier conversation", back),
    );
  }

  offer(text) {
    this.composer.field.value = text;
    this.composer.refresh();
    this.composer.field.focus();
  }

  /** The static transcript below stays out of sight while this view is there. */
  hide(live) {
    const mark = live && /^[\w-]+$/.test(live) ? `[data-chat="${live}"]` : null;
    const rule = mark ? `${mark}, .jp-OutputArea-child:has(${mark}) { display: none !important; }` : "";
    if (this.hiding.textContent !== rule) this.hiding.textContent = rule;
  }

  /** The kernel is gone: the conversation stays readable, nothing can be sent. */
  die() {
    if (this.dead) return;
    this.dead = true;
    this.busy = null;
    clearTimeout(this.silence);
    this.node.classList.add("wb-dead");
    const kept = this.kept && this.log.path.length > 0;
    const next = kept ? "Running the cell begins anew;" : "Run the cell again to go on.";
    this.on_busy({ id: null, note: `The kernel is gone. ${next}` });
    if (!kept) return;
    const line = `wb.chat(model, dialogue=${JSON.stringify(this.kept)})`;
    const copy = copyButton("Copy this line", () => line);
    this.status.append(" this conversation is kept and goes on with ", make("code", null, line), copy);
  }

  dispose() {
    this.unlink();
    clearTimeout(this.missing);
    this.log.dispose();
    this.node.remove();
  }
}

function render({ model, el }) {
  const view = new ChatView(model, el);
  return () => view.dispose();
}

export default { render };
