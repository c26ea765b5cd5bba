"""Sweeps as jobs of other processes and machines, by the stock Hydra launcher plug-ins.

``jobs`` says what a job is and what a launcher of jobs does before and after; each other module joins that to one
plug-in. How the parts of a run share its videos and files is known in ``stsimdiff.evaluate``.
"""
