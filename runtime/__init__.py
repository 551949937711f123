"""Everything that runs a model: sessions, targets, data feeds, calibration, metrics, benchmarks,
comparison.
"""
