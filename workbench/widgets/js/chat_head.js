// The bar on top: which model, how full its context is, settings, saving, a new conversation.

class ChatHead {
  constructor(chat) {
    this.chat = chat;
    this.label = make("span.wb-label");
    this.title = make("span.wb-title");
    this.meterBar = make("i");
    this.meterText = make("span.wb-meter-text");
    this.meter = make(
      "span.wb-meter",
      { role: "meter", "aria-label": "Context used", "aria-valuemin": 0 },
      make("span.wb-meter-track", null, this.meterBar),
      this.meterText,
    );
    this.warning = make("div.wb-warning", { role: "status", hidden: true });
    const anew = "New conversation (this one stays as a branch)";
    this.clear = iconButton("clear", anew, () => chat.send({ type: "clear" }));
    const toggle = () => chat.toggleSettings(chat.settings.node.hidden);
    const controls = { "aria-expanded": "false", "aria-controls": chat.settings.node.id };
    this.settings = iconButton("sliders", "Settings", toggle, controls);
    const names = make("span.wb-names", null, this.label, this.title);
    const buttons = make("span.wb-head-buttons", null, this.clear, this.saveMenu(), this.settings);
    this.node = make(
      "header.wb-head",
      null,
      make("div.wb-head-row", null, names, this.meter, buttons),
      this.warning,
    );
    show(this.meter, false);
  }

  saveMenu() {
    const word = (kind, text) =>
      make("button.wb-word", { type: "button", role: "menuitem", onclick: () => this.save(kind) }, text);
    this.choices = make(
      "div.wb-menu",
      { role: "menu", "aria-label": "Save as", onkeydown: (event) => this.menuKeys(event) },
      word("jsonl", "JSONL (whole dialogue)"),
      word("md", "Markdown (this branch)"),
    );
    show(this.choices, false);
    this.saving = iconButton("save", "Save", () => this.openMenu(this.choices.hidden), {
      "aria-expanded": "false",
      "aria-haspopup": "menu",
    });
    const left = (event) => place.contains(event.relatedTarget) || this.openMenu(false, false);
    const place = make("span.wb-menu-place", { onfocusout: left }, this.saving, this.choices);
    return place;
  }

  update({ label, title, meter }) {
    this.label.textContent = label || "";
    this.label.title = label || "";
    this.title.textContent = title && title !== label ? title : "";
    this.updateMeter(meter || {});
  }

  updateMeter({ used, context, warning }) {
    const known = used != null && context;
    show(this.meter, Boolean(known));
    if (known) {
      const share = Math.min(1, used / context);
      this.meterBar.style.width = `${100 * share}%`;
      this.meterText.textContent = `${decimal(used)} / ${decimal(context)}`;
      this.meter.title = `${decimal(used)} of ${decimal(context)} tokens of context used (${percent(share)})`;
      this.meter.setAttribute("aria-valuemax", context);
      this.meter.setAttribute("aria-valuenow", Math.min(used, context));
      this.meter.setAttribute("aria-valuetext", this.meter.title);
      this.meter.classList.toggle("wb-near", share >= 0.8 || Boolean(warning));
      this.meter.classList.toggle("wb-full", share >= 0.97);
    }
    const said = warning === true ? "The context is nearly full." : warning || "";
    if (this.warning.textContent !== said) {
      this.warning.replaceChildren(...(said ? [icon("warning"), make("span", null, said)] : []));
    }
    show(this.warning, Boolean(said));
  }

  refresh() {
    const idle = this.chat.busy === null && !this.chat.dead;
    this.clear.disabled = !idle;
    this.saving.disabled = this.chat.dead;
    this.settings.disabled = this.chat.dead;
  }

  openMenu(open, focus = true) {
    if (this.choices.hidden === !open) return;
    show(this.choices, open);
    this.saving.setAttribute("aria-expanded", String(open));
    if (focus) (open ? this.choices.firstElementChild : this.saving).focus();
  }

  menuKeys(event) {
    const items = [...this.choices.children];
    const at = items.indexOf(document.activeElement);
    if (event.key === "ArrowDown") items[(at + 1) % items.length].focus();
    else if (event.key === "ArrowUp") items[(at + items.length - 1) % items.length].focus();
    else if (event.key === "Escape") this.openMenu(false);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  save(kind) {
    this.openMenu(false);
    this.chat.send({ type: "save", kind });
  }
}

/**
 * Keep what is typed here from the notebook's shortcuts, and leave the notebook its own: plain keys
 * and every Enter stop at the chat, Ctrl and Cmd combinations pass (Ctrl+S saves), but for those
 * that edit text here and cells there.
 */
function keepKeys(root, escape) {
  const moves = ["ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight", "Home", "End"];
  const editing = new Set(["a", "c", "v", "x", "y", "z", "Backspace", "Delete", ...moves]);
  const kept = (event) => {
    const command = (event.ctrlKey || event.metaKey) && !event.getModifierState("AltGraph");
    return !command || event.key === "Enter" || editing.has(event.key);
  };
  root.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !composing(event)) escape();
    if (kept(event)) event.stopPropagation();
  });
  for (const name of ["keyup", "keypress"]) {
    root.addEventListener(name, (event) => kept(event) && event.stopPropagation());
  }
}
