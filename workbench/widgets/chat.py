"""The chat: talk to a loaded model in a notebook cell, from code, or in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.chats.dialogue import Dialogue
from workbench.chats.keeping import keep_always, kept_file
from workbench.chats.transcript import Transcript, transcript_text
from workbench.engines.model import Model
from workbench.messages import Conversation, Image, Message, Reply, Sampling
from workbench.widgets.chat_answer import Answer
from workbench.widgets.chat_inspect import Probabilities, Prompt
from workbench.widgets.chat_requests import handlers_of
from workbench.widgets.chat_settings import ChatSettings
from workbench.widgets.chat_shown import Printer, Surface
from workbench.widgets.chat_talk import Talk

ImageLike = Image | bytes | str | Path
_STEP = 0.05
_LAST = 10.0


class Chat:
    """A conversation with one model, shown in a cell and held as data.

    It shows itself as the last value of a cell. ``ask`` does the same from code: it blocks until
    the answer is there, and the interrupt button (or Ctrl-C) ends it; the partial text stays.
    Every change is kept in ``outputs/chats/``.

    Attributes:
        dialogue: All turns of all branches.
        settings: Sampling: read like a mapping, ``settings.update(temperature=0.7)``, ``reset()``.
    """

    def __init__(
        self,
        model: Model,
        *,
        system: str = "",
        sampling: Sampling | Mapping[str, Any] | None = None,
        dialogue: Dialogue | Conversation | Path | None = None,
        schema: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        title: str | None = None,
    ) -> None:
        self.dialogue = _dialogue_of(dialogue)
        self._talk = talk = Talk(
            model, self.dialogue, sampling=sampling, schema=schema, tools=tools
        )
        if system:
            talk.set_system(system)
        if title:
            self.dialogue.title = title
        self.settings: ChatSettings = talk.settings
        self._kept = keep_always(
            self.dialogue, tell=lambda text: talk.listener.tell("error", message=text, hint=None)
        )
        handlers = handlers_of(talk, kept=lambda: self.kept)
        self._surface = Surface(
            "chat",
            copy=lambda live_id: Transcript(self.dialogue, live_id=live_id),
            text=lambda: transcript_text(self.dialogue),
            state=self._state,
            handlers=handlers,
            lock=talk.lock,
        )
        talk.listener = self._surface

    # Asking: each blocks until the answer is there

    def ask(
        self, text: str | Message, *, images: Sequence[ImageLike] = (), **sampling: Any
    ) -> Reply:
        """Say something, wait for the answer, and return it.

        Args:
            text: The question, or a message: a tool's result has the role ``tool``.
            images: Pictures for a model that sees: files, bytes or ``data:`` URLs.
            sampling: Settings for this answer only: ``max_tokens=``, ``temperature=``, ...

        Raises:
            InputError: A setting is wrong.
            UnsupportedError: The model cannot do what the message or a setting needs.
            WorkbenchError: The engine failed; what it said before is in the chat.
            KeyboardInterrupt: The user pressed Ctrl-C; the partial answer is in the chat.
        """
        shown = tuple(Image.of(image) for image in images)
        return self._waited(lambda: self._talk.send(text, images=shown, **sampling))

    def regenerate(self, turn_id: str | None = None, **sampling: Any) -> Reply:
        """Answer a question again, beside the old answer; the last one where none is named."""
        return self._waited(lambda: self._talk.regenerate(turn_id, **sampling))

    def edit(self, turn_id: str, text: str, **sampling: Any) -> Reply:
        """Say an earlier question otherwise, on a branch of its own, and return the answer."""
        return self._waited(lambda: self._talk.edit(turn_id, text, **sampling))

    def go_on(self, turn_id: str | None = None, **sampling: Any) -> Reply:
        """Continue an answer that was cut off, and return it whole; the last where none is named.

        Raises:
            InputError: It came to its end by itself.
            UnsupportedError: The engine cannot go on in the middle of an answer.
        """
        return self._waited(lambda: self._talk.go_on(turn_id, **sampling))

    def _waited(self, begin: Callable[[], Answer]) -> Reply:
        """Begin an answer and wait for it in short steps, so that Ctrl-C gets through."""
        self._surface.ensure()
        while (earlier := self._talk.answer) is not None:  # a question from the front end
            earlier.join(_STEP)
        printer, answer = Printer(), None
        try:
            answer = begin()
            self._wait_for(answer, printer)
        except KeyboardInterrupt:
            self.stop()
            if answer is not None:
                answer.join(_LAST)
            raise
        finally:
            self._surface.update()
        turn = self.dialogue[answer.turn_id]
        printer.end(turn.text)
        if answer.error is not None:
            raise answer.error
        return turn.reply or Reply(text="")

    def _wait_for(self, answer: Answer, printer: Printer) -> None:
        try:
            answer.blocking = True
            self._talk.tell_busy()
            while not answer.join(_STEP):
                printer.follow(answer.text)
        finally:
            answer.blocking = False

    # What can be done at any time

    def stop(self) -> None:
        """End the answer in progress between two tokens; what has come stays."""
        self._talk.stop()

    def show(self, turn_id: str) -> None:
        """Put the branch through a turn on view.

        Raises:
            InputError: There is no such turn.
            EngineError: An answer is in progress.
        """
        self._talk.show(turn_id)

    def clear(self) -> None:
        """Begin anew; what was said stays as a branch."""
        self._talk.clear()

    def use(self, model: Model) -> None:
        """Go on with another model, or with the same one loaded again; the settings stay.

        Raises:
            EngineError: An answer is in progress, or the model is closed.
        """
        self._talk.use(model)

    @property
    def model(self) -> Model:
        """The model that answers; ``use`` takes another one."""
        return self._talk.model

    @property
    def system(self) -> str:
        """The system prompt; one that is set holds from the next answer on."""
        return self.dialogue.system

    @system.setter
    def system(self, text: str) -> None:
        self._talk.set_system(text)

    @property
    def kept(self) -> Path:
        """The file in ``outputs/chats/``, there from the first turn on.

        It is another one from the moment on when two copies of a conversation went on.
        """
        return kept_file(self.dialogue) or self._kept

    @property
    def busy(self) -> bool:
        """Whether an answer is in progress."""
        return self._talk.answer is not None

    @property
    def messages(self) -> list[Message]:
        """What a model would be sent: the system prompt and the branch on view."""
        return self.dialogue.messages()

    def prompt(self, turn_id: str | None = None) -> Prompt:
        """Return the exact prompt of a turn with its token ids; of what would be sent for None.

        Raises:
            UnsupportedError: The engine cannot render a prompt.
        """
        return self._talk.prompt(turn_id)

    def probabilities(self, turn_id: str | None = None) -> Probabilities:
        """Return the probability of each token of an answer; of the last one for None.

        Raises:
            UnsupportedError: The engine neither told them nor can score.
        """
        return self._talk.probabilities(turn_id)

    def save(self, path: str | Path) -> Path:
        """Write the conversation as ``.jsonl`` (all of it) or ``.md`` (for reading).

        Raises:
            InputError: Another ending.
        """
        return self.dialogue.save(path)

    def transcript(self) -> Transcript:
        """Return a static copy as of now, which displays itself and needs no kernel."""
        return Transcript(self.dialogue)

    def close(self) -> None:
        """End the answer in progress and take the widget away; the model stays loaded."""
        answer = self._talk.answer
        self.stop()
        if answer is not None:
            answer.join(_LAST)
        self._surface.close()

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _state(self) -> dict[str, Any]:
        """Return what a front end draws, with the file and what an empty view leads back to."""
        began = [turn.id for turn in self.dialogue if turn.parent is None]
        earlier = began[-1] if began and not self.dialogue.path() else None
        return {**self._talk.state(), "kept": str(self.kept), "earlier": earlier}

    def __repr__(self) -> str:
        return f"<Chat with {self.model.label}: {len(self.dialogue.path())} turns on view>"

    def _ipython_display_(self) -> None:
        self._surface.show()


def chat(
    model: Model,
    *,
    system: str = "",
    sampling: Sampling | Mapping[str, Any] | None = None,
    dialogue: Dialogue | Conversation | Path | None = None,
    schema: Mapping[str, Any] | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
    title: str | None = None,
) -> Chat:
    """Open a chat with a loaded model; it shows itself as the last value of a cell.

    Args:
        model: What ``wb.load`` returned.
        system: System prompt.
        sampling: Other settings than the card's: all of them, or single ones by name.
        dialogue: Go on with this one: a dialogue, its file, or a list of messages.
        schema: JSON schema that answers are held to.
        tools: What the model may call, in OpenAI's form; nothing is run by itself.
        title: A name, shown and kept with it.

    Raises:
        InputError: It is no loaded model, or a setting is wrong.
        UnsupportedError: The model has no tools, or cannot be held to a schema.
        MissingPackageError: A live notebook lacks the packages for widgets.
    """
    return Chat(
        model,
        system=system,
        sampling=sampling,
        dialogue=dialogue,
        schema=schema,
        tools=tools,
        title=title,
    )


def _dialogue_of(given: Dialogue | Conversation | Path | None) -> Dialogue:
    if given is None:
        return Dialogue()
    if isinstance(given, Dialogue):
        return given
    if isinstance(given, str | Path):
        return Dialogue.load(given)
    return Dialogue.of(given)
