"""Moving weights: which source weight goes where (plan), the writing (commit), and the proof (receipt)."""
