"""The scripts that made the golden files need the real tools: pytest does not look into them for examples."""

collect_ignore_glob = ["make_*.py"]
