"""Frames of cameras, videos and watched folders, scored as they come."""
