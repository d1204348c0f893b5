"""Many snapshots into one, one into another form, and what they say. NumPy only; files are read lazily."""
