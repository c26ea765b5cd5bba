"""``python -m stsimdiff.report results/<run>``."""

from stsimdiff.commands.cli import command

if __name__ == "__main__":
    command("report")
