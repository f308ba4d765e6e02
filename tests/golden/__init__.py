"""What must not change: today's results, names and file formats, recorded before the code was rearranged.

Each test compares the code with a JSON file in this folder. A deliberate change is recorded with

    python -m tests.golden.record            # all, or the names of some: commands logits lm tools vision

and shows as a difference in those files. Only the command line, file formats and `roclab.lm.model` are used here:
every other module may move.
"""
