"""How far each form of a model may be from the one it is held against, from configs."""

from __future__ import annotations

import functools

from pydantic import Field

from workbench.errors import InputError, did_you_mean
from workbench.evaluate.agreement import Agreement
from workbench.paths import shipped
from workbench.settings import Settings, read_yaml


class Looser(Settings):
    """Limits that take the place of the others for a mixture of experts."""

    mean_kl: float = Field(gt=0)
    """Most nats per token."""
    top1: float = Field(ge=0, le=1)
    """Least share of equal most probable tokens."""


class Limit(Settings):
    """What one form must keep."""

    mean_kl: float = Field(gt=0)
    """Most mean KL(reference || form), nats per token."""
    top1: float = Field(ge=0, le=1)
    """Least share of positions with the same most probable token."""
    perplexity: float = Field(gt=0)
    """Most that perplexity / reference's perplexity may differ from 1."""
    moe: Looser | None = None
    """Limits for a mixture of experts, where they are wider."""

    def of_kind(self, *, moe: bool) -> Limit:
        """Return the limits for a dense model or a mixture of experts."""
        if not moe or self.moe is None:
            return self
        return self.changed(mean_kl=self.moe.mean_kl, top1=self.moe.top1, perplexity=0.01)

    def broken(self, found: Agreement) -> str | None:
        """Return the first figure outside its limit as ``figure value, limit``, or None."""
        if not found.prompt_ids_equal:
            differing = found.prompts - found.prompts_equal
            return f"prompt token ids differ in {differing} of {found.prompts}, limit none"
        if not found.mean_kl <= self.mean_kl:
            return f"mean KL {found.mean_kl:.3g} nats, limit {self.mean_kl:g}"
        if not found.top1 >= self.top1:
            return f"top-1 agreement {found.top1:.2%}, limit {self.top1:.1%}"
        if not abs(found.perplexity_ratio - 1) <= self.perplexity:
            return f"perplexity ratio {found.perplexity_ratio:.4f}, limit 1 ± {self.perplexity:g}"
        return None


@functools.cache
def limits() -> dict[str, Limit]:
    """Return the limits of ``configs/parity.yaml`` by form."""
    path = shipped("configs", "parity.yaml")
    return {
        name: Limit.of(values, source=f"{path} {name}") for name, values in read_yaml(path).items()
    }


def limit_of(form: str, *, moe: bool = False) -> Limit:
    """Return the limit of a form: ``merged``, ``F16``, ``Q4_K_M``, ...

    Raises:
        InputError: No limit is stated for it.
    """
    known = limits()
    if form not in known:
        raise InputError(
            f"No limit is stated for the form {form!r}.", hint=did_you_mean(form, known)
        )
    return known[form].of_kind(moe=moe)
