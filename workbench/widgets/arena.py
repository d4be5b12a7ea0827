"""The arena: several models answer the same prompt side by side, and a reader votes."""

from __future__ import annotations

import datetime
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.chats.dialogue import Dialogue
from workbench.chats.keeping import chats_folder
from workbench.chats.votes import Vote, Votes
from workbench.errors import InputError
from workbench.evaluate.form import Form
from workbench.evaluate.prompts import Prompt, load_prompts
from workbench.messages import Image, Message
from workbench.widgets.arena_contestants import SamplingLike, contestants_of
from workbench.widgets.arena_play import Play
from workbench.widgets.arena_requests import handlers_of
from workbench.widgets.arena_round import Round
from workbench.widgets.arena_transcript import ArenaTranscript, arena_text
from workbench.widgets.chat_shown import Surface
from workbench.widgets.chat_talk import clean_text

ImageLike = Image | bytes | str | Path
Prompts = str | Path | Iterable[str | Prompt] | None
_STEP = 0.05
_LAST = 10.0


class Arena:
    """Several models, or one in several forms, asked the same; shown in a cell and held as data.

    It shows itself as the last value of a cell. ``ask`` does the same from code: it blocks until
    all have answered, and the interrupt button (or Ctrl-C) ends it. Dialogues and votes are kept
    in ``outputs/chats/``.

    Attributes:
        votes: The votes so far: a table of win rates that displays itself.
    """

    def __init__(self, play: Play) -> None:
        self._play = play
        self.votes: Votes = play.votes
        self._surface = Surface(
            "arena",
            copy=lambda live_id: ArenaTranscript(play, live_id=live_id),
            text=lambda: arena_text(play),
            state=play.state,
            handlers=handlers_of(play),
            lock=play.lock,
        )
        play.listener = self._surface

    # Asking: each blocks until all have answered

    def ask(
        self,
        text: str | Message,
        *,
        follow: bool = False,
        images: Sequence[ImageLike] = (),
        **sampling: Any,
    ) -> Round:
        """Ask all contestants, wait for all answers, and return the round.

        One that fails does not end the others: its column says why, and so does ``round.errors``.

        Args:
            text: The question.
            follow: Go on with the talk of the round before; else the prompt stands alone.
            images: Pictures for models that see: files, bytes or ``data:`` URLs.
            sampling: Settings for this round only: ``max_tokens=``, ``temperature=``, ...

        Raises:
            InputError: A setting is wrong.
            WorkbenchError: Every contestant failed; this is the first one's reason.
            KeyboardInterrupt: The user pressed Ctrl-C; what was said stays.
        """
        message = text if isinstance(text, Message) else Message("user", clean_text(text))
        if message.role != "user":
            raise InputError(f"An arena is asked by the user, not by the {message.role}.")
        shown = (*message.images, *(Image.of(image) for image in images))
        message = Message("user", message.content, shown)
        return self._waited(lambda: self._play.ask(message, follow=follow, sampling=sampling))

    def next(self, **sampling: Any) -> Round:
        """Ask the next prompt of the list that the arena was made with.

        Raises:
            InputError: There is none left.
        """
        return self._waited(lambda: self._play.next(**sampling))

    def _waited(self, begin: Callable[[], Round]) -> Round:
        play = self._play
        self._surface.ensure()
        while (earlier := play.bout) is not None:  # a question from the front end
            earlier.join(_STEP)
        play.blocking = True
        try:
            round = begin()
            play.tell_busy()
            while not round.join(_STEP):
                pass
        except KeyboardInterrupt:
            self.stop()
            self._join(_LAST)
            raise
        finally:
            play.blocking = False
            play.tell_busy()
            self._surface.update()
        errors = [entry.error for entry in round.entries if entry.error is not None]
        if len(errors) == len(round.entries) and errors[0] is not None:
            raise errors[0]
        return round

    def _join(self, seconds: float) -> None:
        bout = self._play.bout
        if bout is not None:
            bout.join(seconds)

    # What can be done at any time

    def stop(self, which: str | None = None) -> None:
        """End the answers in progress between two tokens, or that of one letter; words stay."""
        if which is None:
            self._play.stop()
            return
        bout = self._play.bout
        place = ord(which.upper()) - ord("A") if len(which) == 1 else -1
        if bout is not None and not 0 <= place < len(bout.round.entries):
            raise InputError(f"{which!r} is no letter of the round in progress.")
        self._play.stop(place)

    def vote(self, choice: str, *, round: int | None = None, note: str = "") -> Vote:
        """Vote on a round, and show the names where they were hidden.

        Args:
            choice: A letter (``"a"``), a contestant's name where it is shown, ``tie``, or ``bad``
                where none is good.
            round: Its number; None for the last.
            note: A remark.

        Raises:
            InputError: No such choice, the round goes on, or it was voted on blind.
        """
        return self._play.vote(choice, number=round, note=note)

    def reveal(self, round: int | None = None) -> None:
        """Show the names of a round without a vote."""
        self._play.reveal(round)

    @property
    def busy(self) -> bool:
        """Whether a round is in progress."""
        return self._play.bout is not None

    @property
    def rounds(self) -> list[Round]:
        """What was asked so far, with all answers."""
        return list(self._play.rounds)

    @property
    def contestants(self) -> list[str]:
        """Names of those that answer."""
        return [each.name for each in self._play.contestants]

    @property
    def dialogues(self) -> dict[str, Dialogue]:
        """By contestant, what it was asked and what it answered; each prompt begins a branch."""
        return {each.name: each.dialogue for each in self._play.contestants}

    @property
    def prompts(self) -> list[str]:
        """Prompts of the list that are still to be asked."""
        return list(self._play.prompts)

    def transcript(self) -> ArenaTranscript:
        """Return a static copy as of now, which displays itself and needs no kernel."""
        return ArenaTranscript(self._play)

    def close(self) -> None:
        """End what goes on, free the models that the arena loaded, take the widget away."""
        self.stop()
        self._join(_LAST)
        self._surface.close()
        self._play.close()

    def __enter__(self) -> Arena:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Arena of {', '.join(self.contestants)}: {len(self._play.rounds)} rounds>"

    def _ipython_display_(self) -> None:
        self._surface.show()


def arena(
    contestants: Any = None,
    *,
    adapter: str | Path | None = None,
    forms: Sequence[str | Mapping[str, Any] | Form] | None = None,
    sampling: SamplingLike = None,
    prompts: Prompts = None,
    blind: bool = False,
    together: bool | None = None,
    system: str = "",
    title: str | None = None,
    seed: int | None = None,
) -> Arena:
    """Open an arena; it shows itself as the last value of a cell.

    Args:
        contestants: A list of loaded models; of plans, cards, ids, or arguments of ``wb.load`` as
            mappings, which are loaded when they are needed; or of pairs ``(model, sampling)``.
            With ``adapter`` or ``forms`` one model, loaded or not.
        adapter: Folder of a LoRA adapter: it against its base, which is read from the adapter
            where no model is given. One loaded model serves both where its engine can switch.
        forms: Forms of one model as ``compare`` takes them: ``"llama.cpp:Q4_K_M"``, or mappings.
        sampling: Other settings than the cards': all of them, or single ones by name.
        prompts: Texts to be asked one after another with ``next``, or the name or file of a set.
        blind: Hide the names until the vote; the order is drawn anew for each prompt.
        together: True loads and asks all at once, False one after the other, so that none takes
            another's speed; None asks at once whatever fits into memory by its plan.
        system: System prompt of all.
        title: A name, shown and kept.
        seed: Seed of the order.

    Raises:
        InputError: Fewer than two contestants, or a setting is wrong.
        NotFoundError: No such card, file or adapter.
        MissingPackageError: A live notebook lacks the packages for widgets.
    """
    play = Play(
        contestants_of(contestants, forms=forms, adapter=adapter, sampling=sampling),
        votes=_votes_file(),
        prompts=_prompts(prompts),
        blind=blind,
        seed=seed,
        together=together,
        system=system,
        title=title or "",
    )
    return Arena(play)


def _votes_file() -> Path:
    now = datetime.datetime.now().astimezone()
    return chats_folder() / "votes" / f"{now:%Y%m%d-%H%M%S}-arena-{secrets.token_hex(4)}.jsonl"


def _prompts(given: Prompts) -> list[str]:
    """Return the texts of a list, or those of a set that ships or of a file."""
    if given is None:
        return []
    items = load_prompts(given) if isinstance(given, str | Path) else list(given)
    return [each if isinstance(each, str) else _asked(each) for each in items]


def _asked(prompt: Prompt) -> str:
    users = [message for message in prompt.messages if message.role == "user"]
    if len(users) != 1 or any(message.role == "assistant" for message in prompt.messages):
        raise InputError(f"The prompt {prompt.id!r} is a talk of several turns; an arena asks one.")
    return users[0].content
