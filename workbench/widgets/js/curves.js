// Live curves: panels of SVG lines that grow by messages from the kernel; no library, no request.

const SVG = "http://www.w3.org/2000/svg";
const PANEL = { height: 190, left: 58, right: 14, top: 8, bottom: 8, foot: 36 };

function svgElement(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function htmlElement(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// Numbers as the static figure writes them: three digits, thousands in full.
function shortNumber(value) {
  if (value === null || value === undefined) return "none";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e6)) return value.toExponential(2);
  const digits = size === 0 ? 0 : Math.max(0, 2 - Math.floor(Math.log10(size)));
  return value.toLocaleString("en-US", { maximumFractionDigits: digits });
}

function told(value, unit) {
  const known = value !== null && value !== undefined;
  return known && unit ? `${shortNumber(value)} ${unit}` : shortNumber(value);
}

// Ticks at 1, 2 or 5 times a power of ten, about `count` of them between low and high.
function linearTicks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const ticks = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n += 1) {
    ticks.push(Number((n * step).toPrecision(12)));
  }
  return ticks;
}

function logTicks(low, high) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
    const factors = high / low < 100 ? [1, 2, 5] : [1];
    for (const factor of factors) {
      const tick = factor * 10 ** power;
      if (tick >= low * 0.999 && tick <= high * 1.001) ticks.push(tick);
    }
  }
  return ticks.length > 1 ? ticks : [low, high];
}

// One curve: flat points [x, y, x, y, ...], and the latest one that is not among them yet.
class Line {
  constructor(described) {
    this.name = described.name;
    this.label = described.label;
    this.color = described.color % 8;
    this.points = described.points;
    this.tip = described.tip;
    this.hidden = false;
  }

  add(news) {
    if (news.whole) this.points = news.points;
    else for (const value of news.points) this.points.push(value);
    this.tip = news.tip;
  }

  all() {
    return this.tip ? [...this.points, ...this.tip] : this.points;
  }

  last() {
    if (this.tip) return this.tip;
    return this.points.length ? this.points.slice(-2) : null;
  }

  // The known value nearest to x; none before the curve begins.
  nearest(x) {
    const points = this.all();
    if (x < points[0]) return null;
    let found = null;
    for (let i = 0; i < points.length; i += 2) {
      if (points[i + 1] === null) continue;
      if (found === null || Math.abs(points[i] - x) < Math.abs(found[0] - x)) {
        found = [points[i], points[i + 1]];
      }
    }
    return found;
  }
}

// Curves over one vertical axis, with a legend that tells the latest values.
class Panel {
  constructor(chart, described) {
    this.chart = chart;
    this.unit = described.unit;
    this.title = described.title;
    this.log = false;
    this.lines = described.curves.map((curve) => new Line(curve));
    this.id = `wbv-${Math.random().toString(36).slice(2)}`;
    this.build();
  }

  build() {
    this.legend = htmlElement("div", { class: "wbv-legend" });
    this.keys = this.lines.map((line) => this.key(line));
    this.legend.append(...this.keys.map((key) => key.button));
    this.scale = htmlElement(
      "button",
      { class: "wbv-scale", type: "button", "aria-pressed": "false" },
      "log",
    );
    this.scale.title = "Logarithmic scale";
    this.scale.setAttribute("aria-label", `Logarithmic scale of ${this.title}`);
    this.scale.addEventListener("click", () => {
      this.log = !this.log;
      this.scale.setAttribute("aria-pressed", String(this.log));
      this.chart.draw();
    });
    this.svg = svgElement("svg", { class: "wbv-plot", "aria-hidden": "true" });
    this.grid = svgElement("g", { class: "wbv-grid" });
    this.clip = svgElement("rect", {});
    this.paths = svgElement("g", { "clip-path": `url(#${this.id})` });
    this.cursor = svgElement("g", { class: "wbv-cursor" });
    this.svg.append(
      svgElement("defs", {}, svgElement("clipPath", { id: this.id }, this.clip)),
      this.grid,
      this.paths,
      this.cursor,
    );
    this.svg.addEventListener("pointermove", (event) => this.chart.point(event, this));
    this.svg.addEventListener("pointerleave", () => this.chart.look(null));
    this.element = htmlElement(
      "div",
      { class: "wbv-panel" },
      htmlElement("div", { class: "wbv-head" }, this.legend, this.scale),
      this.svg,
    );
  }

  key(line) {
    const value = htmlElement("b", { class: "wbv-value" });
    const mark = htmlElement("span", { class: `wbv-mark wbv-c${line.color}` });
    const button = htmlElement("button", { class: "wbv-key", type: "button" }, mark, line.label, value);
    button.setAttribute("aria-pressed", "true");
    button.title = "Hide or show this curve";
    button.addEventListener("click", () => {
      line.hidden = !line.hidden;
      button.setAttribute("aria-pressed", String(!line.hidden));
      this.chart.draw();
    });
    return { button, value };
  }

  seen() {
    return this.lines.filter((line) => !line.hidden);
  }

  // The range of the values that are shown, with a little air.
  range() {
    let low = Infinity;
    let high = -Infinity;
    for (const line of this.seen()) {
      const points = line.all();
      for (let i = 1; i < points.length; i += 2) {
        const y = points[i];
        if (y === null || (this.log && y <= 0)) continue;
        if (y < low) low = y;
        if (y > high) high = y;
      }
    }
    if (low > high) return this.log ? [0.1, 1] : [0, 1];
    if (this.log) return low === high ? [low / 2, high * 2] : [low / 1.1, high * 1.1];
    const air = (high - low) * 0.06 || Math.abs(high) * 0.06 || 1;
    return [low >= 0 ? Math.max(0, low - air) : low - air, high + air];
  }

  place(range) {
    const [low, high] = this.log ? range.map(Math.log10) : range;
    const { top, height, bottom } = PANEL;
    const room = height - top - bottom;
    return (y) => {
      const at = this.log ? Math.log10(y) : y;
      return top + room * (1 - (at - low) / (high - low));
    };
  }

  draw(width, xRange, last) {
    const range = this.range();
    const y = this.place(range);
    const x = this.chart.place(width, xRange);
    const height = PANEL.height + (last ? PANEL.foot : 0);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.setAttribute("width", width);
    this.svg.setAttribute("height", height);
    this.clip.setAttribute("x", PANEL.left - 2);
    this.clip.setAttribute("width", Math.max(0, width - PANEL.left - PANEL.right + 4));
    this.clip.setAttribute("height", PANEL.height);
    this.drawGrid(width, range, xRange, x, y, last);
    this.paths.replaceChildren(...this.seen().flatMap((line) => this.drawLine(line, x, y)));
    this.drawCursor(x, y);
    this.lines.forEach((line, index) => {
      const at = this.chart.looked === null ? line.last() : line.nearest(this.chart.looked);
      this.keys[index].value.textContent = at ? told(at[1], this.unit) : "";
    });
  }

  drawGrid(width, range, xRange, x, y, last) {
    const right = width - PANEL.right;
    const floor = PANEL.height - PANEL.bottom;
    const parts = [];
    for (const tick of this.log ? logTicks(...range) : linearTicks(...range, 6)) {
      const at = y(tick).toFixed(1);
      parts.push(svgElement("line", { x1: PANEL.left, x2: right, y1: at, y2: at }));
      const attributes = { x: PANEL.left - 8, y: at, dy: "0.32em", "text-anchor": "end" };
      parts.push(svgElement("text", attributes, shortNumber(tick)));
    }
    for (const tick of linearTicks(...xRange, Math.max(2, Math.min(10, width / 90)))) {
      const at = x(tick).toFixed(1);
      parts.push(svgElement("line", { x1: at, x2: at, y1: PANEL.top, y2: floor }));
      if (!last) continue;
      const attributes = { x: at, y: floor + 17, "text-anchor": "middle" };
      parts.push(svgElement("text", attributes, shortNumber(tick)));
    }
    const base = { class: "wbv-axis", x1: PANEL.left, x2: right, y1: floor, y2: floor };
    parts.push(svgElement("line", base));
    const middle = (PANEL.top + floor) / 2;
    const said = this.unit ? `${this.title} (${this.unit})` : this.title;
    const turned = { transform: `translate(13 ${middle}) rotate(-90)`, "text-anchor": "middle" };
    parts.push(svgElement("text", { class: "wbv-title", ...turned }, said));
    if (last) {
      const below = { x: (PANEL.left + right) / 2, y: floor + 36, "text-anchor": "middle" };
      parts.push(svgElement("text", { class: "wbv-title", ...below }, this.chart.xTitle));
    }
    this.grid.replaceChildren(...parts);
  }

  drawLine(line, x, y) {
    const points = line.all();
    const drawn = [];
    let path = "";
    let pen = false;
    for (let i = 0; i < points.length; i += 2) {
      const value = points[i + 1];
      if (value === null || (this.log && value <= 0)) {
        pen = false;
        continue;
      }
      const at = [x(points[i]).toFixed(1), y(value).toFixed(1)];
      path += `${pen ? "L" : "M"}${at[0]} ${at[1]}`;
      pen = true;
      drawn.push(at);
    }
    const name = `wbv-c${line.color}`;
    const parts = [svgElement("path", { class: `wbv-line ${name}`, d: path })];
    const marked = drawn.length <= 30 ? drawn : drawn.slice(-1);
    for (const [cx, cy] of marked) {
      parts.push(svgElement("circle", { class: `wbv-dot ${name}`, cx, cy, r: 2.6 }));
    }
    return parts;
  }

  drawCursor(x, y) {
    const looked = this.chart.looked;
    if (looked === null) {
      this.cursor.replaceChildren();
      return;
    }
    const at = x(looked).toFixed(1);
    const parts = [
      svgElement("line", { x1: at, x2: at, y1: PANEL.top, y2: PANEL.height - PANEL.bottom }),
    ];
    for (const line of this.seen()) {
      const near = line.nearest(looked);
      if (!near || (this.log && near[1] <= 0)) continue;
      const [cx, cy] = [x(near[0]).toFixed(1), y(near[1]).toFixed(1)];
      parts.push(svgElement("circle", { class: `wbv-dot wbv-c${line.color}`, cx, cy, r: 4 }));
    }
    this.cursor.replaceChildren(...parts);
  }
}

// The whole widget: title, state of the work, panels over one horizontal axis.
class Chart {
  constructor(root) {
    this.root = root;
    this.panels = [];
    this.looked = null;
    this.waiting = false;
    this.title = htmlElement("span", { class: "wbv-name" });
    this.status = htmlElement("span", { class: "wbv-status" });
    this.said = htmlElement("span", { class: "wbv-said", "aria-live": "polite" });
    this.note = htmlElement("div", { class: "wbv-note", hidden: "" });
    this.body = htmlElement("div", { class: "wbv-body", tabindex: "0", role: "figure" });
    this.body.addEventListener("keydown", (event) => this.onKey(event));
    this.body.addEventListener("blur", () => this.look(null));
    root.classList.add("wb-curves");
    const head = htmlElement("div", { class: "wbv-top" }, this.title, this.status);
    root.append(head, this.body, this.note, this.said);
  }

  // What the panels consist of; the same means that they stay and only points change.
  layout(state) {
    return JSON.stringify(
      state.panels.map((panel) => [panel.title, panel.unit, panel.curves.map((c) => [c.name, c.color])]),
    );
  }

  set(state) {
    this.name = state.title;
    this.xTitle = state.x_title;
    this.total = state.total;
    this.title.textContent = state.title;
    const layout = this.layout(state);
    if (layout === this.laidOut) {
      state.panels.forEach((panel, p) =>
        panel.curves.forEach((curve, c) => {
          Object.assign(this.panels[p].lines[c], { points: curve.points, tip: curve.tip });
        }),
      );
    } else {
      this.laidOut = layout;
      this.panels = state.panels.map((panel) => new Panel(this, panel));
      this.body.replaceChildren(...this.panels.map((panel) => panel.element));
    }
    if (!this.panels.length) {
      this.body.replaceChildren(htmlElement("div", { class: "wbv-empty" }, "No values yet"));
    }
    this.tell(state);
  }

  add(message) {
    for (const panel of this.panels) {
      for (const line of panel.lines) {
        if (message.curves[line.name]) line.add(message.curves[line.name]);
      }
    }
    this.tell(message);
  }

  tell(message) {
    if (message.outcome !== undefined) this.outcome = message.outcome;
    if (message.reloaded !== undefined) this.reloaded = message.reloaded;
    const ended = this.outcome ? `${this.outcome}, ` : "";
    this.status.textContent = `${ended}${message.status}`;
    this.root.dataset.outcome = this.outcome || "running";
    this.note.hidden = !(this.outcome && this.reloaded);
    this.note.textContent =
      "The page was reloaded meanwhile: show the figure in a cell to keep it in the notebook.";
    this.draw();
  }

  // Everything that is drawn, in words, for those who do not see it.
  words() {
    const values = this.panels.flatMap((panel) =>
      panel.lines.map((line) => {
        const last = line.last();
        return `${line.label} ${told(last ? last[1] : null, panel.unit)}`;
      }),
    );
    return `${this.name}, ${this.status.textContent}: ${values.join(", ") || "no values yet"}`;
  }

  draw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.drawNow();
    });
  }

  drawNow() {
    const width = Math.floor(this.body.clientWidth);
    this.body.setAttribute("aria-label", this.words());
    if (!width || !this.panels.length) return;
    const range = this.range();
    this.panels.forEach((panel, index) => {
      panel.draw(width, range, index === this.panels.length - 1);
    });
  }

  range() {
    let low = Infinity;
    let high = -Infinity;
    for (const panel of this.panels) {
      for (const line of panel.lines) {
        const points = line.all();
        for (let i = 0; i < points.length; i += 2) {
          if (points[i] < low) low = points[i];
          if (points[i] > high) high = points[i];
        }
      }
    }
    if (low > high) return [0, 1];
    if (this.total !== null && this.total > high) high = this.total;
    return low === high ? [low, low + 1] : [low, high];
  }

  place(width, [low, high]) {
    const room = width - PANEL.left - PANEL.right;
    return (x) => PANEL.left + (room * (x - low)) / (high - low);
  }

  point(event, panel) {
    const box = panel.svg.getBoundingClientRect();
    const [low, high] = this.range();
    const share = (event.clientX - box.left - PANEL.left) / (box.width - PANEL.left - PANEL.right);
    this.look(low + Math.min(1, Math.max(0, share)) * (high - low));
  }

  look(x) {
    const steps = this.panels.flatMap((panel) => panel.seen()).map((line) => x !== null && line.nearest(x));
    const near = steps.filter(Boolean).sort((a, b) => Math.abs(a[0] - x) - Math.abs(b[0] - x))[0];
    this.looked = near ? near[0] : null;
    this.root.dataset.looked = near ? shortNumber(near[0]) : "";
    this.draw();
  }

  // Arrows move from value to value, and what stands there is told.
  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const steps = this.steps();
    const at = this.looked === null ? steps.length : steps.findIndex((x) => x >= this.looked);
    const jump = Math.max(1, Math.round(steps.length / 10));
    const moves = {
      ArrowLeft: at - 1,
      ArrowRight: at + 1,
      PageDown: at - jump,
      PageUp: at + jump,
      Home: 0,
      End: steps.length - 1,
    };
    event.stopPropagation(); // a notebook in command mode deletes cells on "d d"
    if (event.key === "Escape") {
      this.look(null);
      return;
    }
    if (!(event.key in moves) || !steps.length) return;
    event.preventDefault();
    this.look(steps[Math.min(steps.length - 1, Math.max(0, moves[event.key]))]);
    const values = this.panels.flatMap((panel) =>
      panel.seen().map((line) => {
        const near = line.nearest(this.looked);
        return `${line.label} ${told(near ? near[1] : null, panel.unit)}`;
      }),
    );
    this.said.textContent = `${this.xTitle} ${shortNumber(this.looked)}: ${values.join(", ")}`;
  }

  steps() {
    const found = new Set();
    for (const panel of this.panels) {
      for (const line of panel.seen()) {
        const points = line.all();
        for (let i = 0; i < points.length; i += 2) found.add(points[i]);
      }
    }
    return [...found].sort((a, b) => a - b);
  }
}

function renderCurves({ model, el }) {
  const root = htmlElement("div");
  el.append(root);
  const chart = new Chart(root);
  const view = Math.random().toString(36).slice(2);
  let seq = null;
  let answered = false; // the first question may wait behind the cell that runs
  const hello = () => model.send({ type: "hello", view });
  const receive = (message) => {
    if (message.type === "state") {
      chart.set(message);
      answered ||= message.view === view;
      if (!answered && !message.outcome) hello();
    } else if (seq === null || message.seq !== seq + 1) {
      seq = null; // something was missed: wait for the whole state
      hello();
      return;
    } else if (message.type === "add") chart.add(message);
    else if (message.type === "end") chart.tell(message);
    seq = message.seq;
  };
  model.on("msg:custom", receive);
  const watcher = new ResizeObserver(() => chart.draw());
  watcher.observe(chart.body);
  hello();
  return () => {
    watcher.disconnect();
    model.off("msg:custom", receive);
  };
}

export default { render: renderCurves };
