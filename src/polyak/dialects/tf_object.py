"""TODO."""
def interpret(c):
    return None
