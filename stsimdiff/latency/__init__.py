"""The latency protocol: time and memory of arms, measured in turn, stored, summarised and tabulated."""
