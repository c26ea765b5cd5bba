"""What a machine with one CUDA GPU can prove without weights or data, from a source tree, as one table.

    scripts/gpu_check.sh                        # on the GPU, at the released models' layer widths: under 8 minutes
    scripts/gpu_check.sh --device cpu --tiny    # tries the checks' code where there is no GPU

A row says what was checked, what was measured, the limit, and ``ok``, ``failed`` or ``not possible``. A check that
raises is a failed row and the others go on; so is one that the time does not reach. The table is written as
``gpu_check.md`` and ``gpu_check.json``. Exit code 0: no row failed; 1: one did; 2: there is no such device.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stsimdiff.models import FAMILIES, options_of
from stsimdiff.terminal import say

if TYPE_CHECKING:
    from benchmarks.prefill import Bench
    from stsimdiff.models.kit.running import FamilyCase

DTYPES = ("bfloat16", "float16")
STATES = {"ok": "ok", "skipped": "not possible", "FAILED": "failed"}
"""What a row calls the doctor's outcomes."""
CLOCKS_APART = 0.05
"""Share of a prefill's time that CUDA events and the host's clock may differ by."""
PLAN_APART = 0.25
"""Share of the measured peak that the plan's memory may be away from it."""
FLIPPED = 0.01
"""Share of the tokens on which a selection may differ in half precision, where sums are rounded in another order."""
COPIED = (0.01, 0.1)
"""Bytes copied to the host, as shares of those of the video's features: the largest copy, and all of a prefill."""
NEEDS = "needs a GPU"


@dataclass
class Row:
    """One check."""

    check: str
    measured: str
    limit: str
    state: str
    seconds: float


class Report:
    """The rows so far; each is printed as it is made.

    Args:
        seconds: time from now on after which no check begins.
    """

    def __init__(self, seconds: float) -> None:
        self.rows: list[Row] = []
        self.started, self.seconds = time.perf_counter(), seconds

    def check(self, name: str, limit: str, probe: Callable[[], str]) -> None:
        """Make one check; ``probe`` returns what was measured, and raises what went wrong."""
        from stsimdiff.commands.doctor import outcome

        begun = time.perf_counter()
        if begun - self.started > self.seconds:
            state, said = (
                "FAILED",
                f"not made: {self.seconds / 60:g} minutes were over; give it more: --minutes N",
            )
        else:
            state, said = outcome(probe)
        row = Row(name, " ".join(said.split()), limit, STATES[state], round(time.perf_counter() - begun, 2))
        self.rows.append(row)
        say(f"{row.state:<13}{name}: {row.measured} (limit: {limit}; {row.seconds:.1f} s)")

    def count(self, state: str) -> int:
        """How many checks ended in this state."""
        return sum(row.state == state for row in self.rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="scripts/gpu_check.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 ..., or cpu (default: cuda)")
    parser.add_argument("--tiny", action="store_true", help="tiny widths, to try the checks' code")
    parser.add_argument("--families", nargs="+", default=sorted(FAMILIES), choices=sorted(FAMILIES))
    parser.add_argument("--minutes", type=float, default=8, help="no check begins after these (default: 8)")
    parser.add_argument("--out", type=Path, default=Path("results/gpu_check"), help="folder of the table")
    options = parser.parse_args(arguments)

    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    if options.device.partition(":")[0] not in ("cpu", "cuda"):
        parser.error(f"--device {options.device}: allowed: cuda, cuda:0 ..., cpu")
    if options.device != "cpu" and not torch.cuda.is_available():
        say(
            f"--device {options.device}: torch {torch.__version__} finds no CUDA device here (nvidia-smi shows the "
            "driver's view); `--device cpu --tiny` tries the checks' code without one",
            error=True,
        )
        return 2
    report = Report(60 * options.minutes)
    say(f"{_card(options)}; no check begins after {options.minutes:g} minutes")
    with tempfile.TemporaryDirectory() as folder:
        _bench(report, options)
        _selections(report, options)
        for family in options.families:
            _family(report, options, family, Path(folder))
    _write(report, options)
    failed, left = report.count("failed"), report.count("not possible")
    say(
        f"\n{report.count('ok')} ok, {failed} failed, {left} not possible, in "
        f"{time.perf_counter() - report.started:.0f} s; the table: {options.out / 'gpu_check.md'}"
    )
    return 1 if failed else 0


def _card(options: argparse.Namespace) -> str:
    import torch

    if options.device == "cpu":
        return f"{platform.machine()} CPU{', tiny widths' if options.tiny else ''}"
    card = torch.cuda.get_device_properties(options.device)
    return f"{card.name}, {card.total_memory / 1e9:.0f} GB{', tiny widths' if options.tiny else ''}"


def _free() -> None:
    """Give back what the last check held, so that it is not in the next one's way."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# Selections ----------------------------------------------------------------------------------------------------


def _selections(report: Report, options: argparse.Namespace) -> None:
    """Every method's selections on the device and on the CPU, from the same features and attention."""
    from stsimdiff import compressors

    for name in compressors.BUILTIN:
        report.check(
            f"{name}: selections on the device equal the CPU's",
            f"the same in float64; up to {100 * FLIPPED:g} % of the tokens in bfloat16",
            partial(_same_selections, options, name),
        )


def _same_selections(options: argparse.Namespace, name: str) -> str:
    import torch

    from stsimdiff import compressors
    from stsimdiff.budget import Budget
    from stsimdiff.plan.dry_run import dry_run, synthetic_video
    from stsimdiff.tokens import Grid

    grid = Grid(4, 4, 5) if options.tiny else Grid(64, 14, 15)
    apart, selections = {}, 0
    for dtype in (torch.float64, torch.bfloat16):
        features = synthetic_video(grid).to(dtype)
        traces = [
            dry_run(compressors.resolve(name)(), Budget("tokens", 0.3), grid, 40, 8, features.to(device))
            for device in ("cpu", options.device)
        ]
        kept = [
            [(stage.place, stage.layer, set(stage.kept.tolist())) for stage in one.stages] for one in traces
        ]
        if [stage[:2] for stage in kept[0]] != [stage[:2] for stage in kept[1]]:
            raise AssertionError(f"in {dtype} selections are made at other places than on the CPU")
        apart[dtype] = max((len(a[2] ^ b[2]) for a, b in zip(*kept, strict=True)), default=0)
        selections = len(kept[0])
    said = (
        f"{selections} selections of {grid.tokens} tokens; {apart[torch.float64]} differ in float64, "
        f"{apart[torch.bfloat16]} in bfloat16"
    )
    if apart[torch.float64] or apart[torch.bfloat16] > FLIPPED * grid.tokens:
        raise AssertionError(said)
    return said


# A decoder of 7B -----------------------------------------------------------------------------------------------


def _bench(report: Report, options: argparse.Namespace) -> None:
    """Clocks, prefill and copies on a decoder of the 7B shape with all its layers."""
    from benchmarks import prefill

    full = "--shape qwen2-7b --layers 28 --frames 64 --height 14 --width 15"
    tiny = "--shape tiny --layers 4 --frames 4 --height 7 --width 7 --repeats 1"
    given = prefill.options_of([*(tiny if options.tiny else full).split(), "--device", options.device])
    bench = cache(lambda: prefill.Bench(given))
    report.check(
        "CUDA events against the host's clock", f"{100 * CLOCKS_APART:g} %", lambda: _clocks(bench())
    )
    for name in prefill.METHODS:
        report.check(
            f"{name}: prefill at 30 % of the tokens against all, {given.shape}, {given.layers} layers, "
            f"{given.frames} frames",
            "faster than all tokens",
            partial(_speed, bench, name),
        )
    for name in prefill.METHODS:
        report.check(
            f"{name}: copies of features to the host",
            f"largest {100 * COPIED[0]:g} %, all {100 * COPIED[1]:g} % of the features' bytes",
            partial(_copies, bench, name),
        )
    bench.cache_clear()
    _free()


def _clocks(bench: Bench) -> str:
    from stsimdiff.latency.measure import Clock

    bench.prefill("none")
    clock = Clock(bench.embeds.device)
    began, first = time.perf_counter(), clock.mark()
    bench.prefill("none")
    last, ended = clock.mark(), time.perf_counter()
    events, wall = clock.between(first, last), ended - began
    apart = abs(events - wall) / wall
    said = f"a prefill takes {1e3 * events:.2f} ms by events and {1e3 * wall:.2f} ms by the clock: {100 * apart:.2f} %"
    if not bench.embeds.is_cuda:
        from stsimdiff.errors import CheckSkipped

        raise CheckSkipped(f"{NEEDS}: the CPU has no events; {said}")
    if apart > CLOCKS_APART:
        raise AssertionError(said)
    return said


def _speed(bench: Callable[[], Bench], name: str) -> str:
    from benchmarks.prefill import measure
    from stsimdiff.errors import CheckSkipped

    given = argparse.Namespace(**{**vars(bench().options), "methods": [name]})
    (row,), full = measure(bench(), given, lambda line: None)
    said = (
        f"{row['speedup']:.2f} times as fast ({row['speedup_low']:.2f} to {row['speedup_high']:.2f}), "
        f"{100 * row['share']:.0f} % of the FLOPs' ratio {row['flops_ratio']:.2f}; all tokens take "
        f"{1e3 * min(full):.0f} ms, the method itself {1e3 * row['compressor_seconds']:.1f} ms"
    )
    if given.shape == "tiny" or not bench().embeds.is_cuda:
        raise CheckSkipped(f"{NEEDS} and the full widths; {said}")
    if row["speedup"] <= 1:
        raise AssertionError(said)
    return said


def _copies(bench: Callable[[], Bench], name: str) -> str:
    """Bytes that one prefill copies from the device to the host, as torch's profiler sees them."""
    from torch.profiler import ProfilerActivity, profile

    from stsimdiff.errors import CheckSkipped

    embeds = bench().embeds
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if embeds.is_cuda else [])]
    with profile(activities=activities) as profiler:
        bench().prefill(name)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        copies = host_copies(json.loads(file.read_text(encoding="utf-8")))
    if not embeds.is_cuda:
        raise CheckSkipped(f"{NEEDS}: on the CPU nothing is copied to the host ({len(copies)} copies seen)")
    if not copies:
        raise CheckSkipped("torch's profiler saw no copy at all: it cannot watch this device (CUPTI)")
    features = bench().grid.tokens * embeds.shape[2] * embeds.element_size()
    said = (
        f"{len(copies)} copies, the largest {max(copies):,} bytes ({100 * max(copies) / features:.3f} % of the "
        f"features' {features:,}), all {sum(copies):,} ({100 * sum(copies) / features:.2f} %)"
    )
    if max(copies) > COPIED[0] * features or sum(copies) > COPIED[1] * features:
        raise AssertionError(said)
    return said


def host_copies(trace: dict[str, Any]) -> list[int]:
    """Bytes of each copy from the device to the host in a Chrome trace of torch's profiler."""
    events = [event for event in trace["traceEvents"] if event.get("cat") == "gpu_memcpy"]
    return [int(event["args"]["bytes"]) for event in events if "DtoH" in event["name"]]


# The families --------------------------------------------------------------------------------------------------


def _family(report: Report, options: argparse.Namespace, name: str, folder: Path) -> None:
    """The engine's exactness and the plan's memory on one family with random weights."""
    path = folder / name
    try:
        made = cache(partial(_made, options, name, path))
        for dtype in DTYPES:
            _engine(
                report,
                f"{name}, {dtype}",
                lambda *with_, dtype=dtype: _case(made(), options, name, dtype, *with_),
            )
            _free()
        report.check(
            f"{name}: memory against the plan",
            f"{100 * PLAN_APART:g} %",
            lambda: _memory(made(), options, name),
        )
    finally:
        shutil.rmtree(path, ignore_errors=True)
        _free()


def _engine(report: Report, name: str, load: Callable[[str], FamilyCase]) -> None:
    """The engine's exactness on one family in one dtype; ``load`` gives a case with an attention backend."""
    from transformers.utils import is_flash_attn_2_available

    plain = cache(lambda: load("sdpa"))
    _exact(report, f"{name}, sdpa", plain)
    if is_flash_attn_2_available():
        flash = cache(lambda: _same_prompt(load("flash_attention_2"), plain()))
        _exact(report, f"{name}, flash attention", flash, plain)
    else:
        report.check(f"{name}, flash attention: keep-all, dropping", "as sdpa", _no_flash)


def _no_flash() -> str:
    from stsimdiff.errors import CheckSkipped

    raise CheckSkipped("flash attention cannot be imported here: it is not installed, or there is no GPU")


def _exact(
    report: Report,
    name: str,
    case: Callable[[], FamilyCase],
    reference: Callable[[], FamilyCase] | None = None,
) -> None:
    from stsimdiff.commands import doctor

    report.check(f"{name}: keep-all equals stock", "bit for bit", lambda: doctor.keep_all(case()))
    report.check(
        f"{name}: dropping equals masking",
        f"{doctor.NOISE} times the stock model's rounding, or the dtype's",
        lambda: doctor.masking(case(), reference() if reference else None),
    )


def _made(options: argparse.Namespace, name: str, path: Path) -> str:
    """The folder of a checkpoint of random weights: released widths and few layers, or tiny."""
    import torch

    from stsimdiff.models.kit.miniatures import Sizes, make

    shutil.rmtree(path, ignore_errors=True)
    sizes = None if options.tiny else Sizes.released(name, torch.bfloat16, options.device)
    return str(make(name, path, sizes=sizes))


def _case(path: str, options: argparse.Namespace, name: str, dtype: str, attention: str) -> FamilyCase:
    from stsimdiff import models
    from stsimdiff.models.base import LoadOptions
    from stsimdiff.models.kit.running import FamilyCase

    family = {option: values[0] for option, values in options_of(name).items()}
    if "min_frame_tokens" in family and not options.tiny:
        # As the reference has it; the frames of a case are small and would give a handful of tokens.
        family |= {"min_frame_tokens": 128, "max_frame_tokens": 768, "max_video_tokens": 115200}
    return FamilyCase.of(
        models.resolve(name).load(path, LoadOptions(options.device, dtype, attention, family))
    )


def _same_prompt(case: FamilyCase, other: FamilyCase) -> FamilyCase:
    """The case with the other one's prompt: towers of two attention backends see a video with other rounding."""
    from stsimdiff.models.kit.running import FamilyCase

    return FamilyCase(case.family, other.frames, other.video, other.prompt)


def _memory(path: str, options: argparse.Namespace, name: str) -> str:
    """The allocator's peak for the largest prompt, and what the plan says of it."""
    import torch

    from stsimdiff.commands.doctor import made_up
    from stsimdiff.data.published import FRAME
    from stsimdiff.errors import CheckSkipped
    from stsimdiff.evaluate import passes
    from stsimdiff.evaluate.session import load_model
    from stsimdiff.latency.measure import PeakMemory
    from stsimdiff.launchers import base
    from stsimdiff.plan.estimate import plan_pass

    frames = 4 if options.tiny else 64
    words = [
        f"model={name}",
        f"model.path={path}",
        f"model.frames={frames}",
        f"model.device={options.device}",
    ]
    words += ["model.dtype=bfloat16", "benchmark=videomme", f"data={path}", "logger=none", "compressor=none"]
    (one,) = passes.passes_of(base.configurations([*words, "plan=true", "plan_tflops=100"]))
    plan = plan_pass(one.settings, list(one.arms.values()))
    planned = sum(plan.memory.values())
    family = load_model(one.settings)
    with PeakMemory(torch.device(options.device)) as memory:
        encoded = family.encode(made_up(frames, *FRAME))
        family.answer(family.prompt(encoded, "A?", sample="check"), 8)
    said = f"{frames} frames of {FRAME[0]} x {FRAME[1]}, {encoded.grid.tokens} tokens: plan {planned / 1e9:.3g} GB"
    if options.device == "cpu":
        raise CheckSkipped(f"{NEEDS}: the CPU has no allocator to ask; {said}")
    apart = planned / memory.peak - 1
    parts = ", ".join(f"{part} {size / 1e9:.2f}" for part, size in plan.memory.items())
    said += f" ({parts}), peak {memory.peak / 1e9:.2f} GB: {100 * apart:+.0f} %"
    if abs(apart) > PLAN_APART:
        raise AssertionError(said)
    return said


# The table -----------------------------------------------------------------------------------------------------


def _write(report: Report, options: argparse.Namespace) -> None:
    from stsimdiff.evaluate.provenance import PACKAGES, versions
    from stsimdiff.files import write_whole

    about = {
        "device": _card(options),
        "tiny": options.tiny,
        "python": platform.python_version(),
        "versions": versions(PACKAGES),
        "seconds": round(time.perf_counter() - report.started, 1),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    rows = [asdict(row) for row in report.rows]
    write_whole(options.out / "gpu_check.json", json.dumps({**about, "rows": rows}, indent=1) + "\n")
    write_whole(options.out / "gpu_check.md", "\n".join(_markdown(report, about)) + "\n")


def _markdown(report: Report, about: dict[str, Any]) -> Iterator[str]:
    from stsimdiff.report.text import Cell, Cells, markdown

    used = {"python": about["python"], **about["versions"]}
    yield f"{about['device']}, {about['seconds']:.0f} s; " + ", ".join(
        f"{k} {v}" for k, v in used.items() if v
    )
    yield ""
    headings = ("check", "measured", "limit", "state")
    lines = [[Cell(getattr(row, heading)) for heading in headings] for row in report.rows]
    yield markdown(Cells(headings, [("", lines)], text_columns=len(headings)))


if __name__ == "__main__":
    sys.exit(main())
