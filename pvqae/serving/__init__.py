"""The scoring service over HTTP: one bundle at a time, exchangeable while it runs. Knows no registry.

door → app → uploads → scoring (one worker thread) → `evaluation.batch.one`, the row that `pvqae score` prints.
"""
