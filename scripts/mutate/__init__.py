"""Changes the code at random and tells which changes the tests notice: ``python -m scripts.mutate --help``.

Why not one of the published tools: mutmut 3 rewrites every function into a trampoline, which the tests of a method's
code version see, leaves module and class level alone and draws no sample; cosmic-ray starts a process for each change,
whose imports of torch cost more than most tests here, and runs all of them. What they share, the lines that each test
runs, comes from coverage.
"""
