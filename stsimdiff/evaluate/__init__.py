"""Answering a benchmark's questions with many arms, and storing every answer at once."""
