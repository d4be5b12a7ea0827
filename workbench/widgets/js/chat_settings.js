// The settings panel: system prompt, one row per sampling setting, defaults and reset.

/** Rows are made from the fields that the kernel tells; `chat.send` carries each change. */
class SettingsPanel {
  constructor(chat) {
    this.chat = chat;
    this.rows = new Map();
    this.system = make("textarea.wb-field.wb-system", {
      rows: 2,
      dir: "auto",
      placeholder: "None",
      "aria-label": "System prompt",
    });
    this.system.addEventListener("change", () => this.chat.send({ type: "system", text: this.system.value }));
    this.system.addEventListener("input", () => fitField(this.system));
    this.grid = make("div.wb-rows");
    this.reset = make(
      "button.wb-word",
      { type: "button", onclick: () => this.chat.send({ type: "reset" }) },
      "Reset to the defaults",
    );
    this.fixed = make("div.wb-fixed");
    this.node = make(
      "section.wb-settings",
      {
        id: `wb-settings-${Math.random().toString(36).slice(2)}`,
        "aria-label": "Settings",
        hidden: true,
        onkeydown: (event) => this.leave(event),
      },
      make("label.wb-system-label", null, make("span", null, "System prompt"), this.system),
      this.grid,
      this.fixed,
      make("div.wb-settings-foot", null, this.reset),
    );
  }

  leave(event) {
    if (event.key !== "Escape" || composing(event)) return;
    event.stopPropagation();
    this.chat.toggleSettings(false);
  }

  /** Take over what the kernel says; a field that is being written in is left alone. */
  update({ fields, settings, defaults, system, tools, schema }) {
    if (fields) this.build(fields);
    if (system !== undefined && document.activeElement !== this.system) {
      this.system.value = system || "";
      fitField(this.system);
    }
    if (tools !== undefined) this.showFixed({ tools, schema });
    this.defaults = defaults || this.defaults || {};
    if (!settings) return;
    const values = settings;
    let changed = false;
    for (const [name, row] of this.rows) {
      if (name in values) row.put(values[name]);
      const own = JSON.stringify(values[name] ?? null) !== JSON.stringify(this.defaults[name] ?? null);
      row.node.classList.toggle("wb-changed", own);
      changed = changed || own;
    }
    this.reset.disabled = !changed;
  }

  build(fields) {
    const told = JSON.stringify(fields);
    if (told === this.told) return;
    this.told = told;
    this.rows.clear();
    for (const field of fields) {
      const send = (value) => this.chat.send({ type: "settings", [field.name]: value });
      this.rows.set(field.name, settingRow(field, send));
    }
    this.grid.replaceChildren(...[...this.rows.values()].map((row) => row.node));
  }

  /** Tools and schema are set from code and only shown here. */
  showFixed(fixed) {
    const parts = Object.entries(fixed).filter(([, value]) => value && value.length !== 0);
    this.fixed.replaceChildren(
      ...parts.map(([name, value]) => {
        const text = JSON.stringify(value, null, 2);
        const summary = make("summary", null, icon("next"), `${name} (set from code)`);
        return make("details.wb-fixed-part", null, summary, jsonBlock(text, text, "JSON"));
      }),
    );
  }
}

/** One setting; returns its node and `put(value)`. */
function settingRow(field, send) {
  const name = field.name.replaceAll("_", " ");
  const makers = { switch: switchControl, choice: choiceControl };
  const control = (makers[field.kind] || numberControl)(name, send, field);
  const node = make(
    "div.wb-row",
    null,
    make("span.wb-row-name", { "aria-hidden": "true" }, name),
    ...control.nodes,
    make("span.wb-row-text", null, field.text || ""),
  );
  return { node, put: control.put };
}

/** A slider beside a number; a range of many powers of ten is logarithmic; a seed may be empty. */
function numberControl(name, send, { kind, min, max, step }) {
  const seed = kind === "seed";
  const whole = seed || kind === "integer";
  const box = make("input.wb-number", {
    type: "number",
    inputmode: whole ? "numeric" : "decimal",
    min,
    step: whole ? 1 : "any",
    "aria-label": name,
    placeholder: seed ? "random" : null,
  });
  const read = () => (box.value === "" ? null : Number(box.value));
  box.addEventListener("change", () => (read() === null && !seed ? null : send(read())));
  if (seed || min == null || max == null) return { nodes: [box], put: (value) => fill(box, value) };
  const logarithmic = min >= 1 && max / min >= 500;
  const limits = logarithmic ? { min: 0, max: 1, step: 0.005 } : { min, max, step: step ?? "any" };
  const slider = make("input.wb-slider", { type: "range", "aria-label": `${name}, slider`, ...limits });
  const place = (value) =>
    String(logarithmic ? Math.log(Math.max(min, value) / min) / Math.log(max / min) : value);
  slider.addEventListener("input", () => {
    const value = Number(slider.value);
    box.value = String(logarithmic ? Math.round(min * (max / min) ** value) : value);
  });
  slider.addEventListener("change", () => send(read()));
  box.addEventListener("input", () => read() !== null && (slider.value = place(read())));
  const put = (value) => {
    fill(box, value);
    if (value != null && !slider.matches(":active")) slider.value = place(value);
  };
  return { nodes: [slider, box], put };
}

function fill(box, value) {
  if (document.activeElement !== box) box.value = value == null ? "" : String(value);
}

function switchControl(name, send) {
  const box = make("input.wb-switch", { type: "checkbox", role: "switch", "aria-label": name });
  box.addEventListener("change", () => send(box.checked));
  return { nodes: [box], put: (value) => (box.checked = Boolean(value)) };
}

/** Yes, no, or as the model likes. */
function choiceControl(name, send) {
  const choices = [["", "model's own"], ["true", "yes"], ["false", "no"]];
  const options = choices.map(([value, text]) => make("option", { value }, text));
  const list = make("select.wb-choice", { "aria-label": name }, options);
  list.addEventListener("change", () => send(list.value === "" ? null : list.value === "true"));
  return { nodes: [list], put: (value) => (list.value = value == null ? "" : String(value)) };
}
