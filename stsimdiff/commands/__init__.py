"""What is started from a shell or by another program: a file a command."""

from __future__ import annotations

HELP = frozenset(("-h", "--help"))
"""Words that ask a command that takes settings for its usage."""
