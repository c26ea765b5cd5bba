"""Replays of recorded selections, a module each method; each gives a ``REPLAY``, under the recording's own name."""
