"""What travels between rooms: messages with images and tool calls, sampling, pieces joined."""

from __future__ import annotations

import base64
import struct
import zlib
from pathlib import Path

import pytest

from workbench.engines import plain
from workbench.errors import InputError
from workbench.messages import (
    Image,
    Likelihood,
    Message,
    Piece,
    Reply,
    Sampling,
    ToolCall,
    as_messages,
)


def png(width: int = 2, height: int = 2) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    rows = (b"\0" + b"\xff\x00\x00" * width) * height
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    kinds = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*pair) for pair in kinds)


def test_an_image_comes_from_a_file_bytes_or_a_data_url(tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    path.write_bytes(png())
    of_file = Image.of(path)
    assert of_file == Image.of(png()) == Image.of(of_file.data_url()) == Image.of(str(path))
    assert of_file.mime == "image/png"
    assert base64.b64decode(of_file.data_url().partition(",")[2]) == png()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("https://example.org/cat.png", "remote address"),
        ("file:///etc/passwd", "remote address"),
        ("no-such.png", "cannot be read"),
        (b"<svg onload=alert(1)>", "no PNG"),
        ("data:image/png;base64,@@@", "base64"),
    ],
)
def test_what_is_no_image_is_refused(value: str | bytes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Image.of(value)


def test_openai_parts_are_read_and_written() -> None:
    url = Image.of(png()).data_url()
    turn = {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": "What is this?"},
        ],
    }
    (message,) = as_messages([turn])
    assert message == Message("user", "What is this?", (Image.of(png()),))
    assert message.as_dict() == turn
    with pytest.raises(InputError, match="neither text nor image"):
        as_messages([{"role": "user", "content": [{"type": "audio"}]}])


def test_a_conversation_with_tools_survives_the_way_to_a_child() -> None:
    call = ToolCall(name="add", arguments='{"a": 1}', id="c1")
    messages = (
        Message("user", "1 + 1?", (Image.of(png()),)),
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", "2", tool_call_id="c1"),
    )
    assert plain.to_messages(plain.from_messages(messages)) == messages
    assert call.values() == {"a": 1}
    with pytest.raises(InputError, match="no JSON object"):
        ToolCall(name="add", arguments="[1]").values()


def test_pieces_and_replies_survive_the_way_to_a_child() -> None:
    top = (Likelihood(token_id=5, text="a", logprob=-0.1),)
    pieces = [
        Piece(text="a", token_id=5, logprob=-0.1, top=top),
        Piece(thinking="hm", token_id=6),
        Piece(tool_call=ToolCall(name="add", id="c1"), finish_reason="tool_calls"),
    ]
    again = [plain.to_piece(plain.from_piece(piece)) for piece in pieces]
    assert again == pieces
    reply = Reply.joined(again)
    assert reply.text == "a"
    assert reply.thinking == "hm"
    assert reply.tool_calls == (ToolCall(name="add", id="c1"),)
    assert reply.logprobs == ((-0.1, top),)
    assert plain.to_reply(plain.from_reply(reply)) == reply


def test_sampling_survives_and_refuses_two_constraints() -> None:
    sampling = Sampling(schema={"type": "object"}, stop=("a",), tools=({"type": "function"},))
    assert plain.to_sampling(plain.from_sampling(sampling)) == sampling
    with pytest.raises(InputError, match="grammar"):
        Sampling(schema={"type": "object"}, grammar="root ::= [a-z]+")
    with pytest.raises(InputError, match="top_logprobs"):
        Sampling(top_logprobs=-1)


def test_a_reply_is_shown_as_text_that_the_sanitiser_leaves_alone() -> None:
    from nbconvert.filters.strings import clean_html

    reply = Reply(text="<script>x</script>\n\n2 < 3", thinking="hm", finish_reason="stop")
    shown = reply._repr_mimebundle_()["text/html"]
    assert "&lt;script&gt;x&lt;/script&gt;" in shown
    assert "<div>2 &lt; 3</div>" in shown
    assert str(clean_html(shown)).replace("\xa0", "&#160;") == shown
