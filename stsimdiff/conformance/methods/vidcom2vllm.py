"""VidCom2 as vLLM has it, with an exact total; the inputs are those of the files of :mod:`.vidcom2` beside it."""

from __future__ import annotations

import numpy as np
import torch

from stsimdiff.compressors import vidcom2
from stsimdiff.conformance.cases import Arrays, Fields, read_fields
from stsimdiff.conformance.replays import Replay

SUFFIX = ":pruning_rate"


def replay(data: Fields) -> Arrays:
    """Our outputs for every case that the file holds."""
    out: Arrays = {}
    for case in (name.removesuffix(SUFFIX) for name in data if name.endswith(SUFFIX)):
        recorded = read_fields(data.file.with_name(f"vidcom2_{case}.npz"))
        frames = int(recorded["n_frames"])
        typicality = vidcom2.scores(torch.from_numpy(recorded["hidden"]).unflatten(0, (frames, -1)))
        score = typicality.video + typicality.frame
        share = 1 - float(data[case + SUFFIX])
        counts = vidcom2.frame_counts(vidcom2.frame_scale(typicality.video, share)[2], score.shape[1])
        total = max(frames, int(score.numel() * share))
        mask = vidcom2.exact(score, vidcom2.least_typical(score, counts), total)
        outputs = {
            "retained_count": np.int64(total),
            "frame_keep_num": counts.numpy(),
            "similarity": score.numpy(),
            "keep_idx": mask.flatten().nonzero()[:, 0].numpy(),
        }
        out.update({f"{case}:{name}": value for name, value in outputs.items()})
    return out


def same_tokens(name: str, recorded: Fields, outputs: Arrays) -> str:
    """As many tokens are kept, and those that differ have scores that only rounding tells apart."""
    want, have = recorded[name], outputs[name]
    differ = np.setxor1d(want, have)
    score = recorded[name.replace("keep_idx", "similarity")].ravel()[differ]
    if len(want) == len(have) and (len(differ) == 0 or np.ptp(score) < 1e-5):
        return ""
    return f"{len(differ)} tokens differ, first {differ[0]}"


REPLAY = Replay(
    replay,
    inputs=f".*{SUFFIX}",
    tolerances={".*:similarity": (1e-5, 0.0)},
    rules={".*:keep_idx": same_tokens},
)
