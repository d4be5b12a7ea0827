"""LoRA adapters on a loaded transformers model: checked, loaded once, switched, taken off."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from workbench.errors import FormatError, InputError, MissingPackageError, UnsupportedError

_SWITCHED = ("LORA",)
_WEIGHTS = "adapter_model.safetensors"
_MATRIX = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


class Adapters:
    """The adapters of one model; they stay in memory beside it until it is closed.

    Args:
        model: The base, or a ``PeftModel`` around it.

    Attributes:
        model: The base until the first adapter is loaded, then the ``PeftModel`` around it.
        folder: The adapter in use, or None for the base alone.
    """

    def __init__(self, model: Any, folder: Path | None = None) -> None:
        self.model, self.folder = model, folder
        self._names: dict[tuple[Path, int, int], str] = {}
        self._count = 0

    @property
    def shown(self) -> Any:
        """The ``PeftModel`` while an adapter is in use, else the base model."""
        return self.base if self.folder is None else self.model

    @property
    def base(self) -> Any:
        """The model without its wrapper; its layers hold the adapters that were loaded."""
        return self.model.get_base_model() if self._is_wrapped else self.model

    @property
    def _is_wrapped(self) -> bool:
        return hasattr(self.model, "get_base_model")

    def use(self, folder: Path | None) -> None:
        """Answer with this adapter from now on, or with the base alone; as before on an error.

        Raises:
            InputError: The folder holds no adapter, or one for another model.
            UnsupportedError: It is an adapter of another kind than LoRA.
            FormatError: Its files are damaged, or its weights are not safetensors.
            MissingPackageError: peft is not installed.
        """
        if self._is_wrapped and not self._names:
            raise UnsupportedError(
                f"The adapter {self.folder.name if self.folder else ''} is no LoRA: it cannot be "
                "switched.",
                hint="Load the model again without it.",
            )
        if folder is None:
            if self.folder is not None:
                self.model.base_model.disable_adapter_layers()
            self.folder = None
            return
        name = self._loaded(folder)
        self.model.base_model.enable_adapter_layers()
        self.model.set_adapter(name)
        self.model.requires_grad_(False)
        self.folder = folder

    def _loaded(self, folder: Path) -> str:
        """Return the name of the adapter inside peft, loading it if its files are new."""
        require_peft()
        check_adapter(self.base, folder)
        facts = (folder / _WEIGHTS).stat()
        key = (folder, facts.st_size, facts.st_mtime_ns)
        if key in self._names:
            return self._names[key]
        old = [each for each in self._names if each[0] == folder]
        self._count += 1
        name = f"adapter_{self._count}"
        self._load(folder, name)
        self._names[key] = name
        self.model.set_adapter(name)
        for each in old:  # trained again since: its old weights are of no use
            self.model.delete_adapter(self._names.pop(each))
        return name

    def _load(self, folder: Path, name: str) -> None:
        if self._is_wrapped:
            device = str(self.base.device)
            try:
                self.model.load_adapter(str(folder), name, torch_device=device)
            except Exception:
                if name in self.model.peft_config:
                    self.model.delete_adapter(name)
                raise
            return
        from peft import PeftModel

        wrapped = PeftModel.from_pretrained(
            self.model, str(folder), adapter_name=name, is_trainable=False
        )
        self.model = wrapped.eval()


def require_peft() -> None:
    """Refuse adapters where peft is not installed.

    Raises:
        MissingPackageError: peft is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        raise MissingPackageError(
            "LoRA adapters need peft, which is not installed.",
            hint="pip install 'llm-workbench[torch]' installs it.",
        )


def kind_of_adapter(folder: Path) -> str:
    """Return the kind of a PEFT adapter by its configuration, for example ``LORA``.

    Raises:
        InputError: The folder holds no adapter.
        FormatError: Its configuration cannot be read.
    """
    file = folder / "adapter_config.json"
    if not file.is_file():
        raise InputError(
            f"{folder} holds no adapter: there is no adapter_config.json.",
            hint="Give the folder that wb.finetune or peft's save_pretrained wrote.",
        )
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return str(found["peft_type"]).upper()
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{file} is no adapter configuration: {error!r}.") from None


def check_adapter(base: Any, folder: Path) -> None:
    """Refuse an adapter whose matrices do not fit the layers of this model.

    It is checked before anything is changed, since peft changes the model while it loads.

    Raises:
        InputError: The folder holds no adapter, or one for another model.
        UnsupportedError: It is an adapter of another kind than LoRA.
        FormatError: Its files are damaged, or its weights are not safetensors.
    """
    kind = kind_of_adapter(folder)
    if kind not in _SWITCHED:
        raise UnsupportedError(
            f"{folder.name} is an adapter of the kind {kind}; only LoRA adapters are switched.",
            hint="Load the model with adapter= to use it.",
        )
    shapes = _shapes(folder)
    modules = dict(base.named_modules())
    fitting = 0
    for key, shape in shapes.items():
        found = _MATRIX.fullmatch(key)
        if found is None or len(shape) != 2:
            continue
        layer = modules.get(found["module"])
        if layer is None:
            raise _misfit(folder, base, f"it adapts {found['module']}, which is not in it")
        word, given = ("in", shape[1]) if found["side"] == "A" else ("out", shape[0])
        wanted = getattr(layer, f"{word}_features", given)
        if wanted != given:
            raise _misfit(
                folder, base, f"{found['module']} has {wanted} {word}puts here, {given} there"
            )
        fitting += 1
    if not fitting:
        raise _misfit(folder, base, "none of its weights belong to a layer of it")


def _misfit(folder: Path, base: Any, reason: str) -> InputError:
    return InputError(
        f"The adapter {folder.name} was made for another model than {type(base).__name__}: "
        f"{reason}.",
        hint="adapter_config.json names the base it was trained on.",
    )


def require_safetensors(folder: Path) -> Path:
    """Return the file of an adapter's weights; peft would take a pickle, or ask the hub, else.

    Raises:
        FormatError: There are no safetensors.
    """
    file = folder / _WEIGHTS
    if not file.is_file():
        other = next(folder.glob("adapter_model.*"), None)
        said = f" {other.name} may run code when it is read." if other else ""
        raise FormatError(
            f"{folder} holds no {_WEIGHTS}.{said}",
            hint="Only safetensors are loaded; save the adapter again with peft.",
        )
    return file


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    file = require_safetensors(folder)
    try:
        with safe_open(file, framework="numpy") as opened:
            return {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise FormatError(f"{file} cannot be read: {error}.") from None
