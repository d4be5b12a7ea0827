// One contestant's column in a round: who, how far it is, the answer or what differs in it.

const ARENA_STATES = {
  waiting: "waits for its turn",
  loading: "is loading",
  answering: "is answering",
  done: "",
  stopped: "stopped",
  failed: "failed",
};

/** An answer in a column: a turn of the chat that can only be copied. */
class ArenaTurn extends TurnView {
  buttons() {
    return this.streaming ? [] : [copyButton("Copy the text", () => this.turn.text || "")];
  }
}

/** Shows one column; `arena.send` speaks to the kernel. */
class ArenaColumn {
  constructor(arena, column, place) {
    this.arena = arena;
    this.place = place;
    this.powers = new Set(); // what a turn asks of its chat
    this.letter = make("span.wb-letter", { "aria-hidden": "true" });
    this.name = make("span.wb-label");
    this.said = make("span.wb-hint.wb-column-state");
    this.halt = iconButton("stop", "Stop this answer", () => arena.send({ type: "stop", place }));
    this.bar = make("i");
    this.track = make("div.wb-load-track", { role: "progressbar", "aria-label": "Loading" }, this.bar);
    this.body = make("div.wb-column-body");
    this.marked = make("div.wb-differing", { dir: "auto", hidden: true });
    this.head = make("header.wb-column-head", null, this.letter, this.name, this.said, this.halt);
    this.node = make("article.wb-column", null, this.head, this.track, this.body, this.marked);
    this.update(column);
  }

  get busy() {
    return this.column.state === "answering" && this.column.turn ? this.column.turn.id : null;
  }

  get label() {
    return "";
  }

  send() {}

  update(column) {
    this.column = column;
    const open = ["waiting", "loading", "answering"].includes(column.state);
    this.letter.textContent = column.label;
    this.name.textContent = column.name || `Model ${column.label}`;
    this.name.title = column.name || "";
    this.node.setAttribute("aria-label", `Answer ${column.label}${column.name ? `, ${column.name}` : ""}`);
    this.node.setAttribute("aria-busy", String(open));
    const failed = column.state === "failed";
    this.said.textContent = (!failed && column.note) || ARENA_STATES[column.state] || "";
    show(this.halt, open);
    show(this.track, column.state === "loading");
    this.track.classList.toggle("wb-unknown", column.share == null);
    this.bar.style.width = column.share == null ? "" : `${100 * column.share}%`;
    if (column.share == null) this.track.removeAttribute("aria-valuenow");
    else this.track.setAttribute("aria-valuenow", Math.round(100 * column.share));
    this.draw(column);
  }

  draw(column) {
    const { turn, state, note } = column;
    if (turn) {
      if (this.turn) this.turn.update(turn);
      else this.body.replaceChildren((this.turn = new ArenaTurn(turn, this)).node);
      return;
    }
    this.turn = null;
    const failure = () => make("div.wb-error", { role: "alert" }, icon("warning"), make("span", null, note));
    const dots = () => make("div.wb-body.wb-markdown");
    const said = { failed: failure, stopped: () => make("p.wb-hint", null, "Stopped before it began.") };
    const waits = make("div.wb-streaming.wb-waiting", null, dots());
    this.body.replaceChildren(said[state] ? said[state]() : state === "done" ? "" : waits);
  }

  patch(part, patch) {
    this.turn?.patch(part, patch);
  }

  addTool(call) {
    this.turn?.addTool(call);
  }

  /** Show what differs in this answer instead of its Markdown; null shows the answer again. */
  mark(spans) {
    show(this.marked, Boolean(spans));
    show(this.body, !spans);
    this.marked.replaceChildren(...(spans || []).map(([kind, text]) => differing(kind, text, this.column)));
  }
}

/** A stretch of an answer: the same, only here, or the place where the answers part. */
function differing(kind, text, { parting }) {
  if (kind === "same") return document.createTextNode(text);
  if (kind !== "parting") return make("mark.wb-differs", null, text);
  return make("span.wb-parting", { title: parting?.sentence || "The answers part here", role: "img", "aria-label": "The answers part here" }, "◆");
}
