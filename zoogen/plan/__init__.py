"""Blueprint -> plan: cells with content-derived ids, cohorts, segments, steps and bytes; needs no data at hand."""

from zoogen.plan.plan import Plan, Summary, make_plan

__all__ = ["Plan", "Summary", "make_plan"]
