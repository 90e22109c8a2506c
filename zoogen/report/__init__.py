"""What a zoo holds, for people: a summary, its card, a picture of its trajectories."""

from zoogen.report.card import card
from zoogen.report.overview import Summary, summary
from zoogen.report.picture import trajectories_picture

__all__ = ["Summary", "card", "summary", "trajectories_picture"]
