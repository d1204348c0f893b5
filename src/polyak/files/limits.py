"""How much a file may ask for, in one place: no honest file of weights comes near, and a hostile one gets no further.

Each limit is compared with what a header says, and with the file's size, before anything is read or allocated for it.
What belongs to one format alone stands in its module.
"""

from __future__ import annotations

# The largest models published hold some 92,000 tensors in all, over many files. Each costs a kilobyte to describe.
MOST_TENSORS = 100_000

# The header of safetensors, an index, a manifest: some 500 bytes for each of 100,000 tensors.
MOST_HEADER = 50_000_000

# NumPy's own limit is 64; no layer has ten.
MOST_AXES = 32

# Elements of one array: what NumPy can address at 16 bytes each.
MOST_ELEMENTS = 2**58

# Packed members and arrays may become this many times as large. Trained weights hardly pack at all; zeros of a fresh
# model do, without end, so small ones are free.
MOST_INFLATION = 20
FREE_INFLATION = 1 << 24

# Steps and values of a pickle or a tree: a second's work. Each tensor brings the ones that describe it with it.
FREE_STEPS = 200_000
STEPS_OF_A_TENSOR = 64
_BYTES_OF_A_STEP = 512


def most_steps(size: int, tensors: int) -> int:
    """How many steps the description of so many tensors in a file of so many bytes may take."""
    return (
        FREE_STEPS
        + STEPS_OF_A_TENSOR * min(tensors, MOST_TENSORS)
        + min(size // _BYTES_OF_A_STEP, STEPS_OF_A_TENSOR * MOST_TENSORS)
    )


def most_described(tensors: int) -> int:
    """Bytes that the description of so many tensors may have: it is copied a few times while it is read."""
    return (12 << 20) + 512 * min(tensors, MOST_TENSORS)
