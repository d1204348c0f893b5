"""How averages move: rules, the kernel, what a rule remembers, and the average itself. NumPy only."""
