"""`lightwam bench gpu`: the figures that only a GPU can give, in one process; a module a section.

`measure` runs the sections; `setup`, `clocks` and `profiling` are what several of them use. On a CPU it is a dry run.
"""
