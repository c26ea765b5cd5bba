"""Shared by all tests: one torch thread, so that two cores are enough for two test processes."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")


def pytest_configure() -> None:
    import torch

    torch.set_num_threads(1)
