"""LoRA adapters of a running server: named when it starts, or loaded later, and switched."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.engines.http import Http
from workbench.engines.server_command import adapters_of
from workbench.errors import EngineError, InputError, UnsupportedError, did_you_mean
from workbench.planning import Plan

if TYPE_CHECKING:
    from workbench.engines.openai_session import OpenAISession


class VllmAdapters:
    """vLLM serves each adapter as a model of its own name.

    Args:
        session: Whose requests are to name the adapter.
        plan: What the server was started with.
    """

    def __init__(self, session: OpenAISession, plan: Plan) -> None:
        self._session, self._base = session, session.model
        self._names = {path: name for name, path in adapters_of(plan).items()}
        if plan.adapter is not None:
            self.use(plan.adapter)

    def use(self, folder: Path | None) -> None:
        """Answer with this adapter from now on; one that is new is loaded by the server now.

        Raises:
            InputError: The folder is no adapter, or does not fit the model.
        """
        if folder is None:
            self._session.model = self._base
            return
        if folder not in self._names:
            if not (folder / "adapter_config.json").is_file():
                raise InputError(f"{folder} is not a LoRA adapter: it has no adapter_config.json.")
            name = f"{folder.name}-{len(self._names) + 1}"
            body = {"lora_name": name, "lora_path": str(folder)}
            try:
                told(self._session.http, "/load_lora_adapter", body)
            except (InputError, EngineError) as error:
                raise InputError(
                    f"vLLM does not take the adapter {folder}: {error.message}"
                ) from error
            self._names[folder] = name
        self._session.model = self._names[folder]


class LlamaServerAdapters:
    """llama-server loads adapters when it starts; each request says how strong they are.

    A change for all requests at once, by ``POST /lora-adapters``, would leave prompts in its cache
    that were read with the other weights.
    """

    def __init__(self, session: OpenAISession, plan: Plan) -> None:
        self._session = session
        self._files = list(adapters_of(plan).values())
        self.use(plan.adapter)

    def use(self, folder: Path | None) -> None:
        """Answer with one adapter at full strength and the others at none.

        Raises:
            UnsupportedError: The server was started without it.
        """
        if folder is not None and folder not in self._files:
            known = did_you_mean(str(folder), [str(each) for each in self._files])
            raise UnsupportedError(
                f"The server was started without the adapter {folder}.",
                hint=f"Load it with adapters={{'name': folder}}. {known}",
            )
        if self._files:
            self._session.extra["lora"] = [
                {"id": number, "scale": float(file == folder)}
                for number, file in enumerate(self._files)
            ]


def told(http: Http, path: str, body: Any = None, *, at_root: bool = False) -> str:
    """Post something to a server and return what it answers, whatever that is."""
    with contextlib.closing(http.exchange("POST", path, body, at_root=at_root)) as exchange:
        exchange.start()
        return exchange.text()
