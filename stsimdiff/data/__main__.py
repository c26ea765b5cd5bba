"""``python -m stsimdiff.data BENCHMARK``."""

from stsimdiff.commands.cli import command

if __name__ == "__main__":
    command("data")
