// What a view and its kernel have between them: messages in order, and what to do where one is late.

const LINK_SILENCE = 4000;
const LINK_WATCH = 15000;
const LINK_GREETING = 1500;

/**
 * Base of the views: it needs `node`, `growing` (what grows with an answer), `composer`, `status` and
 * `trouble` (the lines that `say` fills), `die` and an `on_...` for each type of message.
 */
class LinkedView {
  constructor(model) {
    this.model = model;
    this.id = Math.random().toString(36).slice(2);
    this.busy = null;
    this.dead = false;
    this.silent = false;
    this.silence = null;
    this.expected = null;
    this.powers = new Set();
    this.hear = (message) => this.handle(message);
    this.reconnect = () => this.hello();
    this.guarding = false;
    this.inSight = false;
  }

  /** Begin, once everything is built. */
  link() {
    this.model.on("msg:custom", this.hear);
    this.model.on("comm_live_update", this.reconnect);
    this.watch = setInterval(() => this.check(), LINK_WATCH);
    this.node.addEventListener("click", () => this.guardFocus(), { capture: true });
    this.sight = new IntersectionObserver(([seen]) => (this.inSight = seen.intersectionRatio > 0.9), {
      threshold: [0, 0.9, 0.95, 1],
    });
    this.sight.observe(this.composer.node);
    this.growth = new ResizeObserver(() => this.keepInSight());
    this.growth.observe(this.growing);
    this.hello();
  }

  /**
   * Move the focus to the composer when what holds it is about to go away: it would fall to the
   * page, and the notebook would take the next keys for commands.
   */
  guardFocus() {
    const held = document.activeElement;
    if (this.guarding || !this.node.contains(held)) return;
    this.guarding = true;
    const near = this.inSight;
    const look = () => {
      this.guarding = false;
      const lost = !held.isConnected || held.disabled || !held.checkVisibility();
      const now = document.activeElement;
      const nowhere = !now || now === held || now.contains(this.node);
      if (!lost || !nowhere || !this.node.isConnected) return;
      this.composer.field.focus({ preventScroll: true });
      if (near) this.composer.node.scrollIntoView({ block: "nearest" });
    };
    requestAnimationFrame(() => requestAnimationFrame(look)); // what came is drawn in the first
  }

  /** Scroll the page along while the answer grows, for a reader whose composer was in sight. */
  keepInSight() {
    if (!this.inSight || !this.node.contains(document.activeElement)) return;
    this.composer.node.scrollIntoView({ block: "nearest" });
  }

  unlink() {
    clearInterval(this.watch);
    clearTimeout(this.greeting);
    clearTimeout(this.silence);
    this.sight?.disconnect();
    this.growth?.disconnect();
    this.model.off("msg:custom", this.hear);
    this.model.off("comm_live_update", this.reconnect);
  }

  /** Send one message; a closed connection is said, not thrown. */
  send(message) {
    try {
      this.model.send(message);
      this.waitFor();
      return true;
    } catch {
      this.die();
      return false;
    }
  }

  hello() {
    this.expected = null;
    this.greet(LINK_GREETING);
  }

  /** Ask for the state until it comes: a first message waits behind the cells that run. */
  greet(delay) {
    clearTimeout(this.greeting);
    this.send({ type: "hello", view: this.id });
    this.greeting = setTimeout(() => {
      if (this.expected === null && !this.dead) this.greet(Math.min(2 * delay, LINK_WATCH));
    }, delay);
  }

  /** Say so when the kernel stays silent: a cell may be running. */
  waitFor() {
    this.silence ??= setTimeout(() => {
      this.silent = true;
      this.say({ status: "The kernel has not answered yet: it may be running a cell." });
    }, LINK_SILENCE);
  }

  /** Show a status line, or a trouble that stays until it is dismissed. */
  say({ status, message, hint }) {
    if (status !== undefined) {
      this.status.textContent = status;
      show(this.status, Boolean(status));
      return;
    }
    const close = iconButton("close", "Dismiss", () => show(this.trouble, false));
    const words = make("span", null, make("strong", null, message), hint ? ` ${hint}` : null);
    this.trouble.replaceChildren(icon("warning"), words, close);
    show(this.trouble, true);
  }

  /** The kernel speaks again after a silence. */
  answered() {}

  check() {
    if (this.busy !== null && Date.now() - this.heard > LINK_WATCH) this.hello();
  }

  stop() {
    if (this.busy !== null) this.send({ type: "stop" });
  }

  handle(message) {
    clearTimeout(this.silence);
    this.silence = null;
    this.heard = Date.now();
    if (this.silent) this.answered();
    this.silent = false;
    if (!message || typeof message.type !== "string") return;
    this.guardFocus();
    if (message.type === "state") this.expected = message.seq + 1;
    else if (this.expected === null) return;
    else if (message.seq !== this.expected) return this.hello();
    else this.expected += 1;
    const action = this[`on_${message.type}`];
    if (action) action.call(this, message);
  }
}
