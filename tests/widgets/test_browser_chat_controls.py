"""The chat's front end in a reader's hands: keys, buttons, settings, images, what is read out."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from chat_stub import SETTINGS, Stub, answer, user

pytestmark = pytest.mark.browser
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
HELLO = (user("1", "Hello"), answer("2", "Hello to you."))


@pytest.fixture
def stub(page: Any) -> Any:
    stub = Stub(page)
    stub.state(*HELLO)
    yield stub
    assert page.said == []
    assert page.asked == []


def field(stub: Stub) -> Any:
    return stub.page.get_by_role("textbox", name="Your turn")


def test_enter_sends_and_shift_enter_is_a_new_line(stub: Stub) -> None:
    field(stub).click()
    stub.page.keyboard.type("one")
    stub.page.keyboard.press("Shift+Enter")
    stub.page.keyboard.type("two")
    assert stub.sent("send") == []
    stub.page.keyboard.press("Enter")
    assert stub.sent("send") == [{"type": "send", "text": "one\ntwo", "images": []}]
    assert field(stub).input_value() == ""
    assert stub.page.locator(".wb-pending").inner_text() == "one\ntwo"
    stub.page.keyboard.press("Enter")
    assert len(stub.sent("send")) == 1, "nothing to send"


@pytest.mark.parametrize("event", [{"isComposing": True}, {"keyCode": 229}])
def test_enter_that_confirms_a_composition_sends_nothing(stub: Stub, event: Any) -> None:
    field(stub).fill("にほんご")
    press = """(node, more) => node.dispatchEvent(
      new KeyboardEvent("keydown", {key: "Enter", bubbles: true, cancelable: true, ...more}))"""
    assert field(stub).evaluate(press, event), "the default of the key is left alone"
    assert stub.sent("send") == []
    assert field(stub).input_value() == "にほんご"
    field(stub).evaluate(press, {})
    assert [each["text"] for each in stub.sent("send")] == ["にほんご"]


def test_a_real_composition_is_not_cut_off(stub: Stub) -> None:
    field(stub).click()
    session = stub.page.context.new_cdp_session(stub.page)
    session.send(
        "Input.imeSetComposition", {"text": "にほん", "selectionStart": 3, "selectionEnd": 3}
    )
    key = {"type": "rawKeyDown", "key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 229}
    session.send("Input.dispatchKeyEvent", key)
    assert stub.sent("send") == []
    session.send("Input.insertText", {"text": "日本"})
    stub.page.keyboard.press("Enter")
    assert [each["text"] for each in stub.sent("send")] == ["日本"]


def test_escape_and_the_button_stop_only_what_is_running(stub: Stub) -> None:
    field(stub).press("Escape")
    assert stub.sent("stop") == []
    stub.feed({"type": "busy", "id": "2", "blocking": False, "subshell": True})
    field(stub).fill("next")
    field(stub).press("Enter")
    assert stub.sent("send") == [], "one answer at a time; the draft stays"
    field(stub).press("Escape")
    assert len(stub.sent("stop")) == 1
    stub.button("Stop (Esc)").click()
    assert len(stub.sent("stop")) == 2
    assert field(stub).input_value() == "next"


def test_escape_goes_to_the_field_past_all_buttons(stub: Stub) -> None:
    stub.button("Answer again").focus()
    stub.page.keyboard.press("Escape")
    assert field(stub).evaluate("(node) => node === document.activeElement")


def test_the_notebook_hears_ctrl_s_and_no_typing(stub: Stub) -> None:
    stub.page.evaluate(
        """() => {
          window.heard = [];
          document.addEventListener("keydown", (event) => window.heard.push(event.key));
        }"""
    )
    field(stub).click()
    for key in ("d", "d", "A", "0", "Shift+Enter", "Control+Enter", "Escape", "Control+a"):
        stub.page.keyboard.press(key)
    stub.button("Settings").focus()
    for key in ("Control+Backspace", "Control+Shift+ArrowUp", "x"):
        stub.page.keyboard.press(key)
    assert [
        key for key in stub.page.evaluate("() => window.heard") if key not in ("Control", "Shift")
    ] == []
    stub.page.keyboard.press("Control+s")
    assert stub.page.evaluate("() => window.heard").count("s") == 1


def test_an_edit_makes_a_branch(stub: Stub) -> None:
    turn = stub.page.locator('[data-turn="1"]')
    turn.hover()
    stub.button("Edit and ask again").click()
    form = stub.page.get_by_role("textbox", name="Edit this turn")
    assert form.input_value() == "Hello"
    form.press("Escape")
    assert turn.inner_text().strip() == "Hello"
    stub.button("Edit and ask again").click()
    form.fill("Good morning")
    form.press("Enter")
    assert stub.sent("edit") == [{"type": "edit", "id": "1", "text": "Good morning"}]
    both = ["1", "3"]
    stub.feed(
        {"type": "path", "ids": ["3"]},
        {"type": "turn", "turn": user("3", "Good morning", siblings=both)},
    )
    assert stub.page.locator(".wb-turn").count() == 1
    assert "2 / 2" in stub.page.locator('[data-turn="3"]').inner_text()
    stub.button("Earlier version").click()
    assert stub.sent("show") == [{"type": "show", "id": "1"}]
    stub.feed(
        {"type": "turn", "turn": user("1", "Hello", siblings=both)},
        {"type": "path", "ids": ["1", "2"]},
    )
    shown = stub.page.locator(".wb-turn").evaluate_all("(all) => all.map((n) => n.dataset.turn)")
    assert shown == ["1", "2"]
    assert stub.button("Earlier version").is_disabled()


def test_a_path_with_an_unknown_turn_asks_for_the_state(stub: Stub) -> None:
    stub.feed({"type": "path", "ids": ["1", "9"]})
    stub.page.wait_for_function("() => window.sent.filter((m) => m.type === 'hello').length === 2")


def test_each_button_sends_its_message(stub: Stub) -> None:
    stub.state(user("1", "Hello"), answer("2", "Hello to", meta={"finish": "length"}))
    stub.button("Answer again").click()
    stub.button("Continue this answer").click()
    stub.page.get_by_role("button", name="New conversation").click()
    stub.button("Save").click()
    stub.page.keyboard.press("ArrowDown")
    stub.page.keyboard.press("Enter")
    wanted = [("regenerate", "2"), ("continue", "2"), ("clear", None), ("save", None)]
    assert [(each["type"], each.get("id")) for each in stub.sent()[1:]] == wanted
    assert stub.sent("save")[0]["kind"] == "md"
    stub.feed({"type": "saved", "path": "outputs/chats/one.md"})
    assert "outputs/chats/one.md" in stub.page.locator(".wb-status").inner_text()


def test_settings_are_sent_marked_and_reset(stub: Stub) -> None:
    stub.button("Settings").click()
    number = stub.page.get_by_role("spinbutton", name="temperature")
    assert number.input_value() == "0.7"
    assert stub.button("Reset to the defaults").is_disabled()
    number.fill("1.2")
    number.press("Tab")
    assert stub.sent("settings") == [{"type": "settings", "temperature": 1.2}]
    slider = stub.page.get_by_role("slider", name="temperature, slider")
    assert slider.input_value() == "1.2"
    slider.focus()
    slider.press("ArrowRight")
    assert stub.sent("settings")[-1]["temperature"] == 1.25
    seed = stub.page.get_by_role("spinbutton", name="seed")
    seed.fill("7")
    seed.press("Tab")
    seed.fill("")
    seed.press("Tab")
    assert [each["seed"] for each in stub.sent("settings") if "seed" in each] == [7, None]
    stub.page.get_by_role("switch", name="probabilities").click()
    assert stub.sent("settings")[-1] == {"type": "settings", "probabilities": True}
    stub.feed({"type": "settings", "settings": {**SETTINGS, "temperature": 1.25}})
    assert stub.page.locator(".wb-changed .wb-row-name").all_inner_texts() == ["temperature"]
    stub.button("Reset to the defaults").click()
    assert len(stub.sent("reset")) == 1
    system = stub.page.get_by_role("textbox", name="System prompt")
    system.fill("Be brief.")
    system.press("Tab")
    assert stub.sent("system") == [{"type": "system", "text": "Be brief."}]
    stub.page.keyboard.press("Escape")
    assert not system.is_visible()
    assert stub.button("Settings").evaluate("(node) => node === document.activeElement")


def test_images_are_attached_only_where_the_model_sees(stub: Stub) -> None:
    stub.page.locator("input[type=file]").set_input_files(
        [
            {"name": "dot.png", "mimeType": "image/png", "buffer": PIXEL},
            {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no"},
        ]
    )
    stub.page.locator(".wb-attached img").wait_for()
    assert "notes.txt is no PNG" in stub.page.get_by_role("alert").first.inner_text()
    give = """([kind, bytes]) => {
      const data = new DataTransfer();
      data.items.add(new File([new Uint8Array(bytes)], kind + ".png", {type: "image/png"}));
      const more = kind === "paste" ? {clipboardData: data} : {dataTransfer: data};
      const Kind = kind === "paste" ? ClipboardEvent : DragEvent;
      const target = document.querySelector(".wb-composer textarea");
      target.dispatchEvent(new Kind(kind, {bubbles: true, cancelable: true, ...more}));
    }"""
    for index, kind in enumerate(("paste", "drop")):
        stub.page.evaluate(give, [kind, list(PIXEL)])
        stub.page.locator(".wb-attached").nth(index + 1).wait_for()
    stub.button("Remove paste.png").click()
    field(stub).press("Enter")
    sent = stub.sent("send")[0]
    assert [image["name"] for image in sent["images"]] == ["dot.png", "drop.png"]
    assert base64.b64decode(sent["images"][0]["url"].split(",")[1]) == PIXEL
    stub.state(*HELLO, powers=["render"])
    assert not stub.button("Attach an image").is_visible()
    stub.page.evaluate(give, ["drop", list(PIXEL)])
    stub.drawn()
    assert stub.page.locator(".wb-attached").count() == 0


def test_code_is_copied_also_where_the_clipboard_is_closed(stub: Stub) -> None:
    stub.state(user("1", "Code?"), answer("2", "```python\nprint('猫')\n```"))
    stub.page.evaluate(
        "() => { Object.defineProperty(navigator, 'clipboard', {value: undefined}); }"
    )
    stub.page.evaluate(
        """() => document.addEventListener("copy", () => {
          window.copied = document.activeElement.value ?? getSelection().toString();
        })"""
    )
    code = stub.page.locator('[data-turn="2"] .wb-body')
    code.hover()
    code.get_by_role("button").first.click()
    stub.page.wait_for_function("() => window.copied !== undefined")
    assert stub.page.evaluate("() => window.copied").rstrip("\n") == "print('猫')"


def test_an_error_gives_the_words_back(stub: Stub) -> None:
    field(stub).fill("too long")
    field(stub).press("Enter")
    stub.feed({"type": "error", "message": "It does not fit.", "hint": "Shorten it."})
    alert = stub.page.locator(".wb-trouble")
    assert alert.inner_text().split("\n")[0] == "It does not fit. Shorten it."
    assert field(stub).input_value() == "too long"
    assert stub.page.locator(".wb-pending").count() == 0
    stub.button("Dismiss").click()
    assert not alert.is_visible()


def test_a_closed_connection_leaves_the_conversation_readable(stub: Stub) -> None:
    stub.page.evaluate("() => { window.gone = true; }")
    field(stub).fill("anybody there?")
    field(stub).press("Enter")
    assert "The kernel is gone" in stub.page.locator(".wb-status").inner_text()
    assert field(stub).is_disabled()
    assert "Hello to you." in stub.page.locator(".wb-log").inner_text()


def test_a_silent_kernel_is_named_until_it_speaks(stub: Stub) -> None:
    status = stub.page.locator(".wb-status")
    stub.page.clock.install()
    field(stub).fill("anybody there?")
    field(stub).press("Enter")
    stub.page.clock.run_for(5000)
    assert "may be running a cell" in status.inner_text()
    stub.feed({"type": "turn", "turn": user("3", "anybody there?")})
    assert not status.is_visible()


def test_the_context_meter_warns(stub: Stub) -> None:
    meter = stub.page.get_by_role("meter", name="Context used")
    assert meter.get_attribute("aria-valuenow") == "412"
    stub.feed({"type": "meter", "used": 1900, "context": 2048, "warning": "148 tokens are left."})
    assert meter.get_attribute("aria-valuenow") == "1900"
    assert stub.page.locator(".wb-warning").inner_text() == "148 tokens are left."


def test_everything_has_a_name_and_is_reached_by_tab(stub: Stub) -> None:
    stub.page.mouse.move(0, 0)
    nameless = stub.page.locator(
        ".wb-chat button, .wb-chat input, .wb-chat textarea, .wb-chat select"
    )
    assert (
        nameless.evaluate_all(
            "(all) => all.filter((n) => !(n.ariaLabel || n.textContent.trim()))"
            ".filter((n) => n.type !== 'file').map((n) => n.outerHTML)"
        )
        == []
    )
    log = stub.page.get_by_role("log")
    assert log.get_attribute("aria-live") == "polite"
    reached = []
    for _ in range(20):
        stub.page.keyboard.press("Tab")
        reached.append(
            stub.page.evaluate(
                "() => document.activeElement.ariaLabel || document.activeElement.tagName"
            )
        )
        if reached[-1] == "Your turn":
            break
        outline = "() => getComputedStyle(document.activeElement).outlineStyle"
        assert stub.page.evaluate(outline) == "solid", reached[-1]
    assert reached[:4] == [
        "New conversation (this one stays as a branch)",
        "Save",
        "Settings",
        "Conversation",
    ]
    assert {"Edit and ask again", "Answer again", "Token probabilities", "Your turn"} <= set(
        reached
    )


def test_dark_and_light_come_from_the_page_or_the_system(stub: Stub) -> None:
    shade = """() => {
      const canvas = document.createElement("canvas").getContext("2d");
      canvas.fillStyle = getComputedStyle(document.querySelector(".wb-chat")).backgroundColor;
      canvas.fillRect(0, 0, 1, 1);
      return canvas.getImageData(0, 0, 1, 1).data[0];
    }"""
    assert stub.page.evaluate(shade) > 200
    stub.page.emulate_media(color_scheme="dark")
    assert stub.page.evaluate(shade) < 60
    stub.page.evaluate("() => { document.body.dataset.jpThemeLight = 'true'; }")
    assert stub.page.evaluate(shade) > 200
    stub.page.evaluate("() => document.body.style.setProperty('--jp-layout-color1', '#223344')")
    assert stub.page.evaluate(shade) == 0x22


@pytest.mark.parametrize("width", [280, 480, 1400])
def test_nothing_sticks_out_of_a_narrow_or_a_wide_cell(stub: Stub, width: int) -> None:
    stub.page.set_viewport_size({"width": width, "height": 800})
    wide = "| " + " | ".join(f"column {n}" for n in range(12)) + " |\n" + "|---" * 12 + "|\n"
    text = f"{'x' * 3000}\n\n{wide}\n\n```\n{'y' * 3000}\n```\n\nhttps://example.com/{'z' * 500}"
    stub.state(user("1", "w" * 3000), answer("2", text))
    stub.button("Settings").click()
    stub.drawn()
    assert stub.page.evaluate("() => document.documentElement.scrollWidth - innerWidth") <= 0
    log = stub.page.locator(".wb-log")
    assert log.evaluate("(node) => node.scrollWidth - node.clientWidth") <= 0


def test_the_static_copy_hides_while_the_view_shows(stub: Stub) -> None:
    stub.page.evaluate(
        """() => {
          const copy = document.createElement("div");
          copy.dataset.chat = "abc-1";
          copy.textContent = "The static copy.";
          document.body.append(copy);
        }"""
    )
    copy = stub.page.locator("[data-chat]")
    assert copy.is_visible()
    stub.state(*HELLO, live="abc-1")
    assert not copy.is_visible()
    stub.page.evaluate("() => window.end()")
    assert copy.is_visible()
