"""Plans: which engine, form, context and offload a card gets on a machine, and why."""

from workbench.planning.check import require_memory
from workbench.planning.choose import plan
from workbench.planning.estimates import estimate
from workbench.planning.fits import catalog
from workbench.planning.given import AUTO
from workbench.planning.planned import Plan

__all__ = ["AUTO", "Plan", "catalog", "estimate", "plan", "require_memory"]
