"""From stored rows to tables, statistics and pages. Nothing here loads a model or reads a video."""
