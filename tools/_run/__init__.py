"""The main job: load, run each pass, check, measure, write, report."""
