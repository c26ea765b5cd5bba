"""From stored rows to tables, statistics, figures and pages. Only ``inspect`` loads a model and reads a video."""
