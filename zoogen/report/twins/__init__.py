"""Twin zoos against their parent: rows -> numbers -> pictures and a page."""

from zoogen.report.twins.report import TwinsReport, twins_report

__all__ = ["TwinsReport", "twins_report"]
