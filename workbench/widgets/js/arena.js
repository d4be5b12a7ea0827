// The arena in a cell: one composer, rounds of columns, votes.

class ArenaView extends LinkedView {
  constructor(model, root) {
    super(model);
    this.rounds = new Map();
    this.queue = [];
    this.frame = null;
    this.pinned = null;
    this.build();
    keepKeys(this.node, () => this.stop());
    root.append(this.node);
    this.link();
  }

  build() {
    this.hiding = make("style");
    this.title = make("span.wb-label");
    this.names = make("div.wb-contestants");
    this.empty = make("div.wb-empty");
    this.list = make("div.wb-rounds");
    const live = { role: "log", "aria-live": "polite", "aria-relevant": "additions" };
    this.log = make("div.wb-log.wb-arena-log", { ...live, "aria-label": "Rounds", tabindex: "0" }, this.empty, this.list);
    for (const moved of ["wheel", "touchmove", "pointerdown", "keydown"]) {
      this.log.addEventListener(moved, () => (this.pinned = null), { passive: true });
    }
    this.votes = new ArenaVotes();
    this.trouble = make("div.wb-trouble", { role: "alert", hidden: true });
    this.status = make("div.wb-status", { role: "status", hidden: true });
    this.spoken = make("div.wb-spoken", { role: "status", "aria-live": "polite" });
    this.composer = new Composer(this);
    this.composer.field.placeholder = "Ask all of them";
    this.follow = make("input", { type: "checkbox" });
    this.following = make("label.wb-follow", { title: "Go on with the talk of the last round" }, this.follow, "Follow-up");
    this.next = make("button.wb-word", { type: "button", onclick: () => this.askNext() }, "Next prompt");
    this.composer.hint.before(this.following, this.next);
    const names = make("span.wb-names", null, this.title);
    this.node = make(
      "section.wb-chat.wb-arena",
      { "aria-label": "Arena", "aria-busy": "true" },
      this.hiding,
      make("header.wb-head", null, make("div.wb-head-row", null, names, this.names)),
      this.log,
      this.votes.node,
      this.trouble,
      this.status,
      this.composer.node,
      this.spoken,
    );
    this.growing = this.node;
  }

  ask(text, images) {
    this.asked = { text, images };
    show(this.trouble, false);
    this.send({ type: "ask", text, follow: this.follow.checked });
  }

  askNext() {
    show(this.trouble, false);
    this.send({ type: "next" });
  }

  isLast(round) {
    return round.number === this.rounds.size;
  }

  on_state(message) {
    this.queue = [];
    this.hide(message.live);
    this.title.textContent = message.title || "Arena";
    this.names.replaceChildren(...(message.contestants || []).map((each) => make("span.wb-contestant", { title: each.settings || each.name }, each.name)));
    this.empty.replaceChildren(
      make("strong", null, message.title || "Arena"),
      make("span", null, message.blind ? "Ask something: names are shown after your vote." : "Ask something: all answer side by side."),
    );
    const known = new Set((message.rounds || []).map((round) => round.number));
    for (const [number, view] of this.rounds) {
      if (known.has(number)) continue;
      view.node.remove();
      this.rounds.delete(number);
    }
    for (const round of message.rounds || []) this.put(round);
    this.on_votes(message);
    this.on_prompts(message);
    this.node.setAttribute("aria-busy", "false");
    this.on_busy(message);
  }

  on_round({ round }) {
    const fresh = !this.rounds.has(round.number);
    this.flush();
    this.put(round);
    if (fresh) {
      this.asked = null;
      for (const view of this.rounds.values()) if (view.number !== round.number) view.drawVote();
      this.pinned = this.rounds.get(round.number);
    } else if (!round.running) this.spoken.textContent = `Round ${round.number} is over.`;
    this.hold();
  }

  put(round) {
    show(this.empty, false);
    const view = this.rounds.get(round.number);
    if (view) return view.update(round);
    const made = new ArenaRound(this, round);
    this.rounds.set(round.number, made);
    this.list.append(made.node);
    return made;
  }

  /** Keep the beginning of a new round at the top while it grows, until the reader moves. */
  hold() {
    const view = this.pinned;
    if (!view) return;
    const top = view.node.getBoundingClientRect().top - this.log.getBoundingClientRect().top;
    if (Math.abs(top - 12) > 1) this.log.scrollTop += top - 12;
    if (!view.round.running) this.pinned = null;
  }

  on_column({ round, place, column }) {
    this.flush();
    this.rounds.get(round)?.putColumn(column, place);
    this.hold();
  }

  on_delta({ round, place, part, patch }) {
    this.queue.push([round, place, part, patch]);
    if (this.frame === null) this.frame = requestAnimationFrame(() => this.flush());
  }

  /** Draw all patches that came since the last frame. */
  flush() {
    if (this.frame !== null) cancelAnimationFrame(this.frame);
    this.frame = null;
    const waiting = this.queue;
    this.queue = [];
    for (const [round, place, part, patch] of waiting) this.rounds.get(round)?.columns[place]?.patch(part, patch);
    if (waiting.length) this.hold();
  }

  on_tool({ round, place, call }) {
    this.flush();
    this.rounds.get(round)?.columns[place]?.addTool(call);
  }

  on_differences(message) {
    this.rounds.get(message.round)?.mark(message);
  }

  on_votes({ votes }) {
    this.votes.update(votes || { rows: [], count: 0 });
  }

  on_prompts({ prompts }) {
    const left = prompts?.left || 0;
    this.left = left;
    this.next.textContent = `Next prompt (${left} left)`;
    this.next.title = prompts?.next || "";
    this.refresh();
  }

  on_busy({ busy, blocking, subshell }) {
    this.busy = busy ?? null;
    const cannotStop = this.busy !== null && blocking && !subshell;
    const how = "A cell waits for these answers. To stop them, press ■ (interrupt) in the notebook's toolbar.";
    this.say({ status: cannotStop ? how : "" });
    this.refresh();
  }

  on_error(message) {
    if (this.asked) this.composer.restore(this.asked.text, this.asked.images);
    this.asked = null;
    this.say(message);
  }

  refresh() {
    const idle = this.busy === null && !this.dead;
    show(this.next, this.left > 0);
    show(this.following, this.rounds.size > 0);
    this.next.disabled = !idle;
    this.follow.disabled = this.dead;
    show(this.composer.hint, !this.left);
    this.node.classList.toggle("wb-busy", this.busy !== null);
    this.composer.refresh();
  }

  /** The static copy below stays out of sight while this view is there. */
  hide(live) {
    const mark = live && /^[\w-]+$/.test(live) ? `[data-chat="${live}"]` : null;
    const rule = mark ? `${mark}, .jp-OutputArea-child:has(${mark}) { display: none !important; }` : "";
    if (this.hiding.textContent !== rule) this.hiding.textContent = rule;
  }

  /** The kernel is gone: what was said stays readable, nothing can be sent. */
  die() {
    if (this.dead) return;
    this.dead = true;
    clearTimeout(this.silence);
    this.node.classList.add("wb-dead");
    this.on_busy({ busy: null });
    this.say({ status: "The kernel is gone. Run the cell again to go on." });
  }

  dispose() {
    this.unlink();
    if (this.frame !== null) cancelAnimationFrame(this.frame);
    this.node.remove();
  }
}

function render({ model, el }) {
  const view = new ArenaView(model, el);
  return () => view.dispose();
}

export default { render };
