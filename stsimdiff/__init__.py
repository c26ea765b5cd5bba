"""Training-free video-token compression for multimodal LLMs: reproduction and comparison at matched budgets."""

__version__ = "0.1.0"
