// The conversation on view: turns by id, patches drawn once a frame, scrolling that never fights.

const NEAR_BOTTOM = 32;

class ChatLog {
  constructor(chat) {
    this.chat = chat;
    this.views = new Map();
    this.path = [];
    this.queue = [];
    this.frame = null;
    this.following = true;
    this.turns = make("div.wb-turns");
    this.empty = make("div.wb-empty");
    this.node = make(
      "div.wb-log",
      { role: "log", "aria-live": "polite", "aria-label": "Conversation", tabindex: "0" },
      this.empty,
      this.turns,
    );
    this.jump = iconButton("down", "Go to the newest text", () => this.follow());
    this.jump.classList.add("wb-jump");
    this.frameNode = make("div.wb-log-frame", null, this.node, this.jump);
    this.node.addEventListener("scroll", () => this.noteScroll(), { passive: true });
    this.node.addEventListener("wheel", (event) => event.deltaY < 0 && this.unfollow(), { passive: true });
    // Asking for sizes after each change would lay all turns out anew each time.
    this.sizes = new ResizeObserver(() => this.keepBottom());
    this.sizes.observe(this.turns);
    this.sizes.observe(this.node);
    show(this.jump, false);
  }

  /** Show a whole state; views of turns that did not change keep their nodes. */
  setTurns(turns) {
    this.queue = [];
    const wanted = new Set(turns.map((turn) => turn.id));
    for (const id of [...this.views.keys()]) if (!wanted.has(id)) this.views.delete(id);
    this.flush();
    for (const turn of turns) this.draw(turn);
    this.setPath(turns.map((turn) => turn.id));
  }

  /** Show one turn, new or replaced; a new one comes last unless the path knows its place. */
  put(turn) {
    this.flush();
    this.draw(turn);
    if (!this.path.includes(turn.id)) this.path.push(turn.id);
    this.arrange();
  }

  draw(turn) {
    const view = this.views.get(turn.id);
    if (view) view.update(turn);
    else this.views.set(turn.id, new TurnView(turn, this.chat));
  }

  /** Show another branch; false when a turn of it is not known here. */
  setPath(ids) {
    this.flush();
    this.path = [...ids];
    this.arrange();
    return ids.every((id) => this.views.has(id));
  }

  arrange() {
    const nodes = this.path.map((id) => this.views.get(id)?.node).filter(Boolean);
    if (this.pending) nodes.push(this.pending);
    nodes.forEach((node, index) => {
      const there = this.turns.children[index] || null;
      if (there !== node) this.turns.insertBefore(node, there);
    });
    while (this.turns.children.length > nodes.length) this.turns.lastElementChild.remove();
    for (const node of nodes) node.classList.toggle("wb-last", node === nodes.at(-1));
    show(this.empty, nodes.length === 0);
  }

  /** What was sent and not yet heard of. */
  setPending(text) {
    this.pending = null;
    if (text !== null) {
      const said = make("div.wb-bubble", null, make("div.wb-said", { dir: "auto" }, text));
      this.pending = make("article.wb-turn.wb-user.wb-pending", { "aria-label": "Sending" }, said);
    }
    this.arrange();
    if (text !== null) this.follow();
  }

  /** Queue one patch; all that arrived are drawn in the next frame. */
  delta(id, part, patch) {
    this.queue.push([id, part, patch]);
    if (this.frame === null) this.frame = requestAnimationFrame(() => this.flush());
  }

  flush() {
    if (this.frame !== null) cancelAnimationFrame(this.frame);
    this.frame = null;
    const waiting = this.queue;
    this.queue = [];
    for (const [id, part, patch] of waiting) this.views.get(id)?.patch(part, patch);
  }

  /** Every turn again, after busy or the powers changed. */
  refresh() {
    this.flush();
    for (const view of this.views.values()) view.refresh();
  }

  noteScroll() {
    const left = this.node.scrollHeight - this.node.scrollTop - this.node.clientHeight;
    this.following = left < NEAR_BOTTOM;
    show(this.jump, !this.following);
  }

  unfollow() {
    if (this.node.scrollHeight > this.node.clientHeight) this.following = false;
  }

  follow() {
    this.following = true;
    this.keepBottom();
    show(this.jump, false);
  }

  /** Stay at the end while new text comes, unless the reader went up or is selecting. */
  keepBottom() {
    const scrolls = this.node.scrollHeight > this.node.clientHeight + NEAR_BOTTOM;
    show(this.jump, !this.following && scrolls);
    if (!this.following) return;
    const selection = this.node.ownerDocument.getSelection();
    const selecting = selection && !selection.isCollapsed && this.node.contains(selection.anchorNode);
    if (!selecting) this.node.scrollTop = this.node.scrollHeight;
  }

  dispose() {
    if (this.frame !== null) cancelAnimationFrame(this.frame);
    this.sizes.disconnect();
  }
}
