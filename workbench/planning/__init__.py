"""Plans: which engine, form, context and offload a card gets on a machine, and why."""

from workbench.planning.choose import AUTO, Plan, plan

__all__ = ["AUTO", "Plan", "plan"]
