"""Housekeeping: garbage collection, doctor, new datasets."""
