"""How results look: tables of text."""
