"""What several test files build on: miniatures, synthetic runs, processes, and other code to compare with."""
