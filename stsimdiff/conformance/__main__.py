"""``python -m stsimdiff.conformance DIR...``."""

from stsimdiff.commands.cli import command

if __name__ == "__main__":
    command("conformance")
