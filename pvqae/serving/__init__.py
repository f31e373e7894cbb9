"""Scores for many images: folders and HTTP."""
