"""YAML with line numbers -> ``Blueprint``, checked strictly; imports neither torch nor any trainer."""

from zoogen.blueprint.load import load, loads
from zoogen.blueprint.problems import BlueprintError, Problem
from zoogen.blueprint.records import Blueprint
from zoogen.blueprint.schema import schema

__all__ = ["Blueprint", "BlueprintError", "Problem", "load", "loads", "schema"]
