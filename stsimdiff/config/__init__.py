"""From a command line to checked settings and arms; no model is loaded here and nothing runs."""
