"""Wires the rooms: blueprint -> plan -> schedule -> train -> store; ``pipeline.py`` is the whole way on one page."""
