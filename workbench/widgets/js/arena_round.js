// One prompt of an arena: the question, the columns, what they measured, the vote.

const MEASURES = [
  { key: "ttft", title: "First token", better: "ttft", value: (meta) => meta?.ttft, said: seconds },
  { key: "rate", title: "Tokens/s", better: "rate", value: (meta) => meta?.rate, said: (n) => decimal(n, 1) },
  { key: "length", title: "Characters", value: (meta, column) => column.characters, said: (n) => decimal(n) },
];

class ArenaRound {
  constructor(arena, round) {
    this.arena = arena;
    this.number = round.number;
    this.said = make("div.wb-said", { dir: "auto" });
    this.pictures = make("div.wb-pictures");
    this.about = make("span.wb-hint.wb-round-about");
    const bubble = make("div.wb-bubble", null, this.pictures, this.said);
    this.question = make("div.wb-turn.wb-user", { role: "heading", "aria-level": 3 }, bubble);
    this.grid = make("div.wb-columns");
    this.caption = make("p.wb-hint.wb-caption");
    this.measures = make("div.wb-measures");
    this.votes = make("div.wb-vote", { role: "group", "aria-label": "Vote" });
    this.foot = make("div.wb-round-foot", null, this.measures, this.caption);
    this.node = make("section.wb-round", { "data-round": round.number }, this.about, this.question, this.grid, this.foot, this.votes);
    this.columns = [];
    this.base = null;
    this.update(round);
  }

  update(round) {
    this.round = round;
    this.node.setAttribute("aria-label", `Round ${round.number}`);
    this.about.textContent = round.follows ? `Round ${round.number}, a follow-up` : `Round ${round.number}`;
    this.said.textContent = round.prompt;
    reconcile(this.pictures, (round.images || []).map((image) => picture(image)));
    show(this.pictures, (round.images || []).length > 0);
    round.columns.forEach((column, place) => this.putColumn(column, place, true));
    this.finish();
  }

  putColumn(column, place, whole = false) {
    if (this.columns[place]) this.columns[place].update(column);
    else {
      this.columns[place] = new ArenaColumn(this.arena, column, place);
      this.grid.append(this.columns[place].node);
    }
    this.round.columns[place] = column;
    if (!whole) this.finish();
  }

  /** What stands under the columns once all have answered. */
  finish() {
    const { running, caption } = this.round;
    show(this.foot, !running);
    show(this.votes, !running);
    if (running) return;
    this.caption.textContent = caption || "";
    this.drawMeasures();
    this.drawVote();
  }

  drawMeasures() {
    const blocks = MEASURES.map((measure) => this.measure(measure)).filter(Boolean);
    if (this.round.hidden) blocks.push(make("p.wb-hint", null, "Names and speeds are shown after the vote."));
    this.measures.replaceChildren(...blocks);
  }

  /** Bars of one measure, the best one marked; null where nobody has it. */
  measure({ key, title, better, value, said }) {
    const columns = this.round.columns;
    const values = columns.map((column) => (column.turn ? value(column.turn.meta, column) : null));
    const known = values.filter((each) => each != null);
    if (!known.length) return null;
    const most = Math.max(...known) || 1;
    const rows = columns.map((column, place) => {
      const best = better && (column.best || []).includes(better);
      const bar = make("i");
      const width = values[place] == null ? 0 : (100 * values[place]) / most;
      bar.style.width = `${width}%`;
      const star = best ? make("span.wb-star", { title: "Best", role: "img", "aria-label": "best" }, "★") : null;
      const text = values[place] == null ? "–" : said(values[place]);
      const cells = [make("span.wb-measure-letter", null, column.label), make("span.wb-bar", null, bar)];
      return make("div.wb-measure-row", null, ...cells, make("span.wb-measure-value", null, text, star));
    });
    return make(`div.wb-measure.wb-measure-${key}`, { role: "group", "aria-label": title }, make("strong", null, title), rows);
  }

  drawVote() {
    const { round } = this;
    const held = this.votes.contains(document.activeElement) && document.activeElement.textContent;
    const word = (text, onclick, attributes) => make("button.wb-word", { type: "button", onclick, ...attributes }, text);
    const parts = [];
    if (round.columns.filter((column) => column.candidate).length > 1) parts.push(...this.differenceButtons(word));
    const choices = this.choices();
    const fixed = round.vote && (round.vote.blind || !this.arena.isLast(this));
    if (fixed) parts.push(make("span.wb-voted", null, "Voted: ", make("strong", null, round.vote.said)));
    else if (round.votable) {
      parts.push(
        ...choices.map(([choice, text]) => {
          const pressed = round.vote ? round.vote.choice === choice : false;
          const vote = () => this.arena.send({ type: "vote", round: this.number, choice });
          return word(text, vote, { "aria-pressed": String(pressed), "data-vote": choice });
        }),
      );
      if (round.hidden) parts.push(word("Show the names", () => this.arena.send({ type: "reveal", round: this.number })));
    } else if (round.hidden) parts.push(word("Show the names", () => this.arena.send({ type: "reveal", round: this.number })));
    this.votes.replaceChildren(...parts);
    for (const button of held ? this.votes.querySelectorAll("button") : []) if (button.textContent === held) button.focus();
  }

  choices() {
    const shown = this.round.columns.map((column, place) => [place, column]).filter(([, column]) => column.candidate);
    const two = shown.length === 2;
    const best = shown.map(([place, column]) => [place, two ? `${column.label} is better` : `${column.label} is best`]);
    return [...best, ["tie", "Tie"], ["bad", two ? "Both bad" : "All bad"]];
  }

  differenceButtons(word) {
    const on = this.base !== null;
    const ask = (base) => this.arena.send({ type: "differences", round: this.number, base });
    const columns = this.round.columns;
    const toggle = word("Differences", () => (this.base === null ? ask(0) : this.unmark()), { "aria-pressed": String(on) });
    if (!on || columns.length === 2) return [toggle, make("span.wb-gap")];
    const options = columns.map((column, place) => make("option", { value: place }, `from ${column.label}`));
    const list = make("select.wb-choice", { "aria-label": "Compared with" }, options);
    list.value = String(this.base);
    list.addEventListener("change", () => ask(Number(list.value)));
    return [toggle, list, make("span.wb-gap")];
  }

  mark({ base, columns }) {
    this.base = base;
    for (const { place, spans } of columns) this.columns[place]?.mark(spans);
    this.drawVote();
  }

  unmark() {
    this.base = null;
    for (const column of this.columns) column.mark(null);
    this.drawVote();
  }
}
