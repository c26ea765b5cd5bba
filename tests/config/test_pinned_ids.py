"""What is stored of a configuration, and the id made of it, are what they were: only code and files may change them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from helpers.configured import configured
from helpers.paths import MINIATURES
from stsimdiff import compressors
from stsimdiff.config import arms, benchmark, model

PINNED = {
    "compressor=st_simdiff budget.retention=0.3": ("bec9e9443342", "3ecca60c55a3"),
    "compressor=st_simdiff compressor.tau_sim=1 compressor.tau_diff=p95 budget=compute seed=3": (
        "22650fe23597",
        "c765baa54636",
    ),
    "compressor=framefusion model=llava_video model.pooling=average model.sampling=fps model.fps=2": (
        "888c2d51cc28",
        "18ab7b56608d",
    ),
    "compressor=none model=qwen3_vl model.max_frame_tokens=512 model.threads=2": (
        "68bf6cea625b",
        "a2a4fd7e62da",
    ),
    "compressor=prumerge model=nvila protocol=nvila_authors benchmark.max_new_tokens=64": (
        "37c3d1455441",
        "b951d4084cac",
    ),
    "compressor=fastv model=qwen2_5_vl benchmark=videomme benchmark.data={data}/videomme": (
        "dadf78ce98b2",
        "14925f81928e",
    ),
    "compressor=random model=qwen2_5_vl benchmark=long_clips logger=none cache.max_gb=1": (
        "b35bc37dd578",
        "899736bf36fe",
    ),
}
"""The id of a line of settings, and a digest of what its ``arm.json`` says, both from before settings had types."""


@pytest.mark.parametrize("line", PINNED)
def test_ids_and_records_stay(line: str, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"num_hidden_layers": 28}}))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    # What code says, and which version of a package, may change; what is made of the settings may not.
    monkeypatch.setattr(arms, "version_of", lambda *roots: "beneath")
    monkeypatch.setattr(model, "version_of", lambda *roots: "family")
    monkeypatch.setattr(compressors, "code_version", lambda cls: "method")
    monkeypatch.setattr(benchmark, "version", lambda name: "0")
    monkeypatch.setattr(benchmark, "task_version", lambda *task: "task")
    settings, arm = configured(f"model.path={tmp_path}", *line.format(data=MINIATURES).split())
    told = arms.arm_record(arm, settings, {})
    record = json.dumps(
        [told[key] for key in ("model", "benchmark", "protocol", "budget", "seed")], sort_keys=True
    )
    record = record.replace(str(tmp_path), "PATH").replace(str(MINIATURES), "DATA")
    assert (arm.id, hashlib.sha256(record.encode()).hexdigest()[:12]) == PINNED[line], record
