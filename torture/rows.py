"""The rows of docs/reliability.md: what is promised, how far, and the figures of others that were measured beforehand."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        number: as campaigns name it, without their letters.
        subject: what is tried.
        goal: what must come of it.
        others: what the same kind of trial found on other libraries, measured once before polyak had campaigns.
    """

    number: str
    subject: str
    goal: str
    others: str = ""


ROWS = (
    Row("1", "kill -9 at a random time while a file is saved over an old one", "0 lost in 200 for each format; what a "
        "save returned for is readable", "`.weights.h5` 35 of 40 lost, torch 33, `.keras` 32; best 0"),
    Row("2", "kill -9 at every system call that changes a file", "0 lost at any of them, formats of several files too",
        "`.keras` 18 of 20 lost, `.weights.h5` 12 of 15, torch 5 of 11, TensorFlow 1 of 16; best 0 of 31"),
    Row("3", "power cut: whatever was not synchronised is missing, cut, zeroed or undone", "every state loads the old "
        "or the new one", "8 of 10 writers synchronise no file, 10 of 10 no directory"),
    Row("4", "the N-th system call of a save fails", "0 lost; one typed error that names the path and the bytes needed; "
        "free space is looked at first", "writers in place lose 5 of 5"),
    Row("5", "what a killed writer leaves, after the next good save", "0 bytes left; nothing removed that polyak did not "
        "make", "safetensors 64 MiB a kill, TensorFlow up to 56 MiB, never removed"),
    Row("6", "damage to a file of polyak's: bits, pages, lengths, arrays", "0 silent in 10,000 over all formats; the "
        "error names the array", "silent: safetensors and torch 100 %, Orbax 98 %, `.weights.h5` 94 %; `.keras`, "
        "TensorFlow, npz 0 %"),
    Row("7", "the same damage to files of others", "every check that the format has is made; where it has none, "
        "`integrity: none` says so", "as above"),
    Row("8", "damage to a file that polyak wrote, loaded by Keras", "Keras notices all of it",
        "its own `.weights.h5`: 59 of 60 silent"),
    Row("9", "readers during 200 overwrites, two to four writers", "0 failed and 0 mixed reads; the result is one "
        "writer's; steps never go back", "torch 100 % of the reads fail, TensorFlow 61 %, npz lost 11 of 15; best 0"),
    Row("10", "a float32 average against float64, 10,000 steps at 0.9999", "1e-7 compensated, 4e-6 without memory of "
        "its own", "Keras and TensorFlow 1.24e-4, optax 1.10e-4, torch lerp 1.9e-6"),
    Row("11", "the same at 0.999999", "1e-7", "2.8e-4 (textbook), 5.0e-5 (lerp)"),
    Row("12", "averages of bfloat16 and float16 models", "99.99 % of the movement, 2e-5 relative error",
        "Keras 0.2 % and 0.03 % of the movement, torch 1.1 %"),
    Row("13", "the average of weights that do not change, 100,000 steps", "bit-equal for ever",
        "torch drifts by 1.35e-3 at 0.99999"),
    Row("14", "NaN and infinities in weights, one step or many", "none enters an average; the step is skipped whole, "
        "counted and named", "6 of 6 unguarded trackers are NaN for ever"),
    Row("15", "casts that overflow", "refused with the name; the live state is untouched", "torch: infinite after half()"),
    Row("16", "snapshots while another thread trains", "0 torn in 10,000; weights come back after any exception",
        "torn: torch 32 %, TensorFlow 41 %, Keras 85 %"),
    Row("17", "kill and resume against a run without interruption", "0 bits differ",
        "`.weights.h5` 27 of 28 arrays differ; `.keras`, TensorFlow 0"),
    Row("18", "conversions there and back, over all pairs of formats", "bit-equal, or refused"),
    Row("19", "eager, graph, XLA, NumPy, JAX and PyTorch", "bit-equal in eager, graph and NumPy; 1 ulp elsewhere after "
        "10,000 steps", "1.2e-4 between libraries"),
    Row("20", "replicas and processes", "bit-equal averages on all", "Keras: averages equal, statistics differ by 0.042"),
    Row("21", "hostile files", "no code runs, no other file is opened, no connection", "torch DCP runs code"),
    Row("22", "files that ask for far more than they hold", "refused within 1 s and 64 MiB", "`.weights.h5` of 11.8 KB: "
        "17.2 GB; `.keras` of 3 MB: 6.4 GB; safetensors of 67 MB: 1.39 GB"),
    Row("23", "mutations of files by a seeded fuzzer that knows the formats", "no crash, hang, 64 MiB or silent "
        "difference in 20,000", "0 crashes in 12,000; silent: safetensors 17 %, torch 10 %, h5 5 %"),
    Row("24", "names in files that lead elsewhere, symbolic links that change", "nothing outside the given directory is "
        "read or written; a link is written through, never replaced", "`latest_checkpoint` follows `../`; safetensors "
        "replaces links"),
    Row("25", "owner, mode, attributes and links of a file; places that cannot be written", "kept, or refused before "
        "the first byte", "safetensors: mode 0640 becomes 0600, the link is lost"),
    Row("26", "counters at 2^24, 2^31, 2^53, 2^63", "exact to 2^63, then an error", "Keras on JAX and PyTorch wraps"),
    Row("27", "what all this costs", "a save 1.5 times the other library's bare one above 256 MiB; verify 0.9 GiB/s; "
        "an update 1.2 times a plain lerp with the guard, 2 times with the residual"),
    Row("28", "each check, bound, rename, fsync and lock taken out of polyak's code", "a test fails each time",
        "nobody does it"),
    Row("29", "a transfer fails at any line, by an error or Ctrl-C", "the target is as it was, or wholly new; the undo "
        "holds the old bits once", "Keras `set_weights` and torch `load_state_dict` leave a model half written"),
    Row("30", "a million updates of a small model", "memory stays; the end is the closed form's"),
)  # fmt: skip
