"""What everything stands on: settings, errors, files, layout, runtime, seeds, progress."""
