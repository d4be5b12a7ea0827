"""A transcript survives the sanitiser of nbconvert as it is, tells all, and runs nothing."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from test_markdown import HOSTILE

from workbench.chats.dialogue import Dialogue
from workbench.chats.markdown import parse
from workbench.chats.markup import markup
from workbench.chats.transcript import LONGEST, Transcript, transcript_html, transcript_text
from workbench.messages import Image, Message, Reply, Timings, ToolCall, Usage

KEPT = set(re.findall(r"\w+", "a b blockquote code div em i li ol pre span strong ul"))
EVERYTHING = (
    "# Title\n\nText *a* **b** ~~c~~ `d`\nnext line\n\nsecond\n\n"
    "- one\n  two\n- three\n  - four\n\n5. five\n6. six\n\n"
    "```py\nif a < b:\n    pass\n```\n\n| h | i |\n|---|--:|\n| 1 | 2<3 |\n\n"
    "> quoted\n\n---\n\n[link](https://a.b/?c=d&e=f) ![pic](https://a.b/p.png)\n"
)


class Seen(HTMLParser):
    """What a browser would make of HTML: tags, attributes, text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.open = "", []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def sanitised(source: str) -> str:
    from nbconvert.filters.strings import clean_html

    return str(clean_html(source))


def same(source: str) -> bool:
    """Tell whether the sanitiser keeps every tag, attribute and word."""
    before, after = Seen(source), Seen(sanitised(source))
    wanted = [(t, {n: v for n, v in a.items() if n != "data-chat"}) for t, a in before.tags]
    return wanted == after.tags and before.text == after.text


def reply(text: str, **facts: Any) -> Reply:
    usage = Usage(prompt_tokens=12, completion_tokens=34)
    timings = Timings(ttft=0.25, total=1.25, decode_tokens_per_second=33.0)
    return Reply(text=text, usage=usage, timings=timings, model="tiny-chat", **facts)


def talk() -> Dialogue:
    dialogue = Dialogue(system="Be *brief* <b>.", model="tiny-chat", made_by={"engine": "scripted"})
    asked = dialogue.say("First <question>")
    first = dialogue.answer(asked.id)
    dialogue.finish(first.id, reply("Old answer"))
    second = dialogue.answer(asked.id)
    dialogue.finish(second.id, reply(EVERYTHING, thinking="I *think* <so>"))
    image = Image(b"\x89PNG" + bytes(2000))
    seen = dialogue.say("Look", images=[image])
    call = ToolCall(name="add", arguments='{"a": 1, "b": "<x>"}', id="c1")
    asks = dialogue.answer(seen.id)
    dialogue.finish(asks.id, reply("", tool_calls=(call,), finish_reason="tool_calls"))
    dialogue.add(Message("tool", "3 <b>", tool_call_id="c1"))
    failed = dialogue.answer(dialogue.path()[-1].id)
    dialogue.finish(failed.id, None, error="Out of memory <here>.")
    return dialogue


def test_the_sanitiser_changes_nothing() -> None:
    shown = transcript_html(talk(), live_id="abc")
    assert {tag for tag, _ in Seen(shown).tags} <= KEPT
    assert same(shown)
    assert 'data-chat="abc"' in shown
    assert "data-chat" not in transcript_html(talk())


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_reads_as_text(text: str) -> None:
    dialogue = Dialogue(system=text, title=text, model=text, made_by={"engine": text})
    asked = dialogue.say(text)
    call = ToolCall(name=text, arguments=text)
    answer = Reply(text=text, thinking=text, model=text, tool_calls=(call,), error=text)
    dialogue.finish(dialogue.answer(asked.id).id, answer)
    dialogue.add(Message("tool", text))
    shown = transcript_html(dialogue, live_id='"><script>')
    shown.encode()
    seen = Seen(shown)
    for tag, attributes in seen.tags:
        assert tag in KEPT
        assert set(attributes) <= {"class", "href", "title", "data-chat"}
        assert attributes.get("href", "https://").startswith(("https://", "http://"))
    assert same(shown)
    plain = transcript_text(dialogue)
    plain.encode()
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e]", plain)


def test_every_part_of_a_talk_is_told() -> None:
    for shown in (Seen(transcript_html(talk())).text, transcript_text(talk())):
        for part in (
            "System prompt",
            "First <question>",
            "think",
            "<so>",
            "version 2 of 2",
            "12 + 34 tokens",
            "TTFT 250 ms",
            "33.0 tokens/s",
            "stop",
            "picture, PNG, 2.0 kB, not kept in this copy",
            "add",
            "<x>",
            "tool_calls",
            "3 <b>",
            "Failed: Out of memory <here>.",
            "1 turn on other branches",
        ):
            assert part in shown, part
        assert "Old answer" not in shown


def test_markdown_keeps_its_form_in_few_tags() -> None:
    shown = markup(parse(EVERYTHING))
    assert "<div><b>Title</b></div>" in shown
    assert "<em>a</em> <strong>b</strong> <span>~~c~~</span> <code>d</code></div>" in shown
    assert "</div><div>next line</div><div>&nbsp;</div><div>second</div>" in shown
    assert "<li><div>one</div><div>two</div></li>" in shown
    assert "<li>three<ul><li>four</li></ul></li>" in shown
    assert "<ul><li>5. five</li><li>6. six</li></ul>" in shown
    assert "<div><i>py</i></div><pre><code>if a &lt; b:\n    pass\n</code></pre>" in shown
    assert "<pre><b>h    i</b>\n─  ───\n1  2&lt;3</pre>" in shown
    assert '<a href="https://a.b/?c=d&amp;e=f" title="https://a.b/?c=d&amp;e=f">link</a>' in shown
    assert "<img" not in shown
    assert "picture “pic” at a.b, not loaded" in shown
    assert Seen(shown)


def test_the_columns_of_a_table_stand_under_one_another() -> None:
    shown = markup(parse("| 名前 | x |\n|---|---|\n| a **b** | [1](https://a.b) |\n| &lt; | |"))
    lines = Seen(shown).text.split("\n")
    assert lines == ["名前  x", "────  ─", "a b   1", "<"]


def test_an_unfinished_and_an_empty_talk() -> None:
    dialogue = Dialogue()
    assert "Nothing has been said yet." in transcript_html(dialogue)
    assert transcript_text(dialogue) == "Nothing has been said yet."
    dialogue.answer(dialogue.say("Hello").id)
    assert "This answer is not finished." in transcript_html(dialogue)


def test_a_chat_of_forty_turns_stays_small() -> None:
    dialogue = Dialogue(system="Be helpful.", model="tiny-chat")
    line = "A sentence with **bold** words and `code` in it, 日本語も少し。 "
    answer = (line * 12 + "\n\n- one **item**\n- two\n\n```python\nprint(1)\n```\n\n") * 2
    for number in range(40):
        asked = dialogue.say(f"Question {number}: what is this, and why is it so?")
        dialogue.finish(dialogue.answer(asked.id).id, reply(answer, thinking="Let me see. " * 10))
    bundle = Transcript(dialogue)._repr_mimebundle_()
    assert len(answer) > 1400
    assert len(json.dumps(bundle, ensure_ascii=False).encode()) < 200_000
    assert bundle["text/html"].count("TTFT 250 ms") == 40


def test_a_text_beyond_measure_is_cut_and_says_so() -> None:
    dialogue = Dialogue()
    asked = dialogue.say("x" * (LONGEST + 1234))
    dialogue.finish(dialogue.answer(asked.id).id, reply("short"))
    shown = transcript_html(dialogue)
    assert "[... 1,234 more characters are not shown here]" in shown
    assert len(shown) < LONGEST + 2000
    bundle = Transcript(dialogue)._repr_mimebundle_()
    assert bundle["text/plain"].endswith("[... the HTML form goes on]")


@pytest.mark.parametrize("sanitize", [True, False])
def test_nbconvert_shows_it_whole(sanitize: bool) -> None:
    import nbformat.v4 as v4
    from nbconvert.exporters import HTMLExporter

    bundle = Transcript(talk(), live_id="abc")._repr_mimebundle_()
    cell = v4.new_code_cell("chat", outputs=[v4.new_output("display_data", bundle)])
    page, _ = HTMLExporter(sanitize_html=sanitize).from_notebook_node(v4.new_notebook(cells=[cell]))
    at = page.index('<div class="wb-transcript')
    shown = page[at : page.index("other branches", at)]
    assert "&lt;div" not in shown
    assert "&lt;b&gt;Title" not in shown
    assert "TTFT 250 ms" in shown
    assert "<pre><code>if a &lt; b:" in shown
