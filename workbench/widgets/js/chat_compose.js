// Where the next turn is written: keys, input methods, images by button, paste and drop.

const PICTURES = ["image/png", "image/jpeg", "image/webp", "image/gif"];
const PICTURE_LIMIT = 20e6;

/** True while an input method is composing, so that Enter confirms characters and does not send. */
function composing(event) {
  return event.isComposing || event.keyCode === 229;
}

/** Enter acts, Shift+Enter is a new line, Escape leaves. */
function writingKeys(field, { enter, escape }) {
  field.addEventListener("keydown", (event) => {
    if (composing(event)) return;
    if (event.key === "Enter" && !event.shiftKey && !event.altKey) {
      event.preventDefault();
      enter();
    } else if (event.key === "Escape" && escape) {
      event.preventDefault();
      event.stopPropagation();
      escape();
    }
  });
  field.addEventListener("input", () => fitField(field));
}

/** Let a field grow with its text (the style sheet sets the limits). */
function fitField(field) {
  if (CSS.supports("field-sizing", "content")) return;
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + 2}px`;
}

/** The composer; `chat` gives `send`, `busy`, `powers` and `say`. */
class Composer {
  constructor(chat) {
    this.chat = chat;
    this.images = [];
    this.field = make("textarea.wb-field", {
      rows: 1,
      dir: "auto",
      placeholder: "Ask something",
      "aria-label": "Your turn",
      spellcheck: "false",
    });
    this.chooser = make("input", { type: "file", accept: PICTURES.join(","), multiple: true, hidden: true });
    this.attach = iconButton("image", "Attach an image", () => this.chooser.click());
    this.go = iconButton("send", "Send (Enter)", () => this.press());
    this.go.classList.add("wb-go");
    this.tray = make("div.wb-tray", { "aria-label": "Attached images" });
    this.hint = make("span.wb-hint.wb-keys", null, "Enter sends · Shift+Enter new line · Esc stops");
    this.node = make(
      "form.wb-composer",
      { onsubmit: (event) => event.preventDefault() },
      this.tray,
      this.field,
      make("div.wb-composer-foot", null, this.attach, this.chooser, this.hint, this.go),
    );
    this.listen();
    this.refresh();
  }

  listen() {
    writingKeys(this.field, { enter: () => this.submit() });
    this.field.addEventListener("input", () => this.refresh());
    this.chooser.addEventListener("change", () => {
      this.take([...this.chooser.files]);
      this.chooser.value = "";
    });
    this.field.addEventListener("paste", (event) => {
      const files = [...(event.clipboardData?.files || [])];
      if (!files.length || !this.sees) return;
      event.preventDefault();
      this.take(files);
    });
    this.node.addEventListener("dragover", (event) => {
      if (!this.sees) return;
      event.preventDefault();
      event.stopPropagation();
      this.node.classList.add("wb-over");
    });
    this.node.addEventListener("dragleave", () => this.node.classList.remove("wb-over"));
    this.node.addEventListener("drop", (event) => {
      this.node.classList.remove("wb-over");
      if (!this.sees || !event.dataTransfer.files.length) return;
      event.preventDefault();
      event.stopPropagation();
      this.take([...event.dataTransfer.files]);
    });
  }

  get sees() {
    return this.chat.powers.has("images");
  }

  /** Read image files as data: addresses; refuse others with a reason. */
  async take(files) {
    for (const file of files) {
      if (!PICTURES.includes(file.type)) {
        this.chat.say({ message: `${file.name} is no PNG, JPEG, WebP or GIF image.` });
      } else if (file.size > PICTURE_LIMIT) {
        const size = decimal(file.size / 1e6);
        this.chat.say({ message: `${file.name} has ${size} MB; at most 20 MB can be attached.` });
      } else {
        const url = await new Promise((done, failed) => {
          const reader = new FileReader();
          reader.onload = () => done(reader.result);
          reader.onerror = () => failed(reader.error);
          reader.readAsDataURL(file);
        });
        this.images.push({ name: file.name || "image", url });
      }
    }
    this.drawTray();
  }

  drawTray() {
    this.tray.replaceChildren(
      ...this.images.map((image, index) =>
        make(
          "span.wb-attached",
          null,
          picture(image),
          iconButton("close", `Remove ${image.name}`, () => {
            this.images.splice(index, 1);
            this.drawTray();
            this.field.focus();
          }),
        ),
      ),
    );
    this.refresh();
  }

  press() {
    if (this.chat.busy === null) this.submit();
    else this.chat.stop();
    this.field.focus({ preventScroll: true });
  }

  submit() {
    const text = this.field.value;
    if (this.chat.busy !== null || this.chat.dead || (!text.trim() && !this.images.length)) return;
    this.chat.ask(text, this.images);
    this.field.value = "";
    this.images = [];
    this.drawTray();
    fitField(this.field);
  }

  /** Put back what could not be sent. */
  restore(text, images) {
    if (this.field.value || this.images.length) return;
    this.field.value = text;
    this.images = images;
    this.drawTray();
    fitField(this.field);
  }

  refresh() {
    const going = this.chat.busy !== null;
    const label = going ? "Stop (Esc)" : "Send (Enter)";
    if (this.go.title !== label) {
      this.go.replaceChildren(icon(going ? "stop" : "send"));
      this.go.title = label;
      this.go.setAttribute("aria-label", label);
    }
    this.go.classList.toggle("wb-going", going);
    const empty = !this.field.value.trim() && !this.images.length;
    this.go.setAttribute("aria-disabled", String(this.chat.dead || (!going && empty)));
    // Disabled it would lose the focus, and the notebook would take what is typed for commands.
    this.field.readOnly = this.chat.dead;
    this.field.setAttribute("aria-disabled", String(this.chat.dead));
    show(this.attach, this.sees);
    show(this.tray, this.images.length > 0);
  }
}
