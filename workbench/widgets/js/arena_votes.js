// The win rates of an arena: one row a contestant, its interval as a bar.

class ArenaVotes {
  constructor() {
    this.rows = make("div.wb-rates");
    this.summary = make("p.wb-hint");
    this.node = make("section.wb-standing", { "aria-label": "Votes", hidden: true }, this.rows, this.summary);
  }

  update({ rows, count, summary }) {
    show(this.node, count > 0);
    this.summary.textContent = summary || "";
    this.rows.replaceChildren(...(rows || []).map((row) => this.row(row)));
  }

  row({ contestant, votes, wins, ties, losses, win_rate: rate, low, high }) {
    const decided = rate != null;
    const range = make("i.wb-interval");
    const point = make("i.wb-rate-point");
    if (decided) {
      range.style.left = `${100 * low}%`;
      range.style.width = `${100 * (high - low)}%`;
      point.style.left = `${100 * rate}%`;
    }
    const share = (value) => `${Math.round(100 * value)} %`;
    const between = decided && `${Math.round(100 * low)}–${share(high)}`;
    const said = decided ? `${share(rate)} (${between})` : "–";
    const counts = votes ? `${wins} won · ${ties} tied · ${losses} lost` : "no vote";
    return make(
      "div.wb-rate",
      null,
      make("span.wb-rate-name", { title: contestant }, contestant),
      make("span.wb-rate-track", { role: "img", "aria-label": `win rate ${said}` }, decided ? [range, point] : null),
      make("span.wb-rate-said", null, said),
      make("span.wb-hint", null, counts),
    );
  }
}
