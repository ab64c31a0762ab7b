"""Everything that only a GPU can show, in the minutes that there are: `make gpu-check`.

    python -m bench.gpu_check [--minutes N] [--out FOLDER] [--only PART,...] [--rehearse]

Runs the parts of parts.py in order of worth, each in a process of its own with a limit of its own: what is right or
wrong comes before what is fast. A finding is a line of OUT/results.jsonl the moment it is known, and OUT/report.md is
written anew after every part, so that a part that is killed loses only itself. Needs what the package needs, Triton,
pytest and pytest-xdist, no network. --rehearse runs the same code without a GPU, small.
"""
