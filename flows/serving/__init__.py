"""Scores, service and drift of a registered version."""
