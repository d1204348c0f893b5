"""Measurements, each against what the machine or the field's own tool can do in the same run: ``make bench``."""
