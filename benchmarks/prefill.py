"""How much of the FLOPs ratio each method's prefill really gains: a decoder of random weights, methods in turn.

    python -m benchmarks.prefill                # Qwen2-0.5B's shape, 32 frames of 182 tokens: about 20 s a full prefill
    python -m benchmarks.prefill --quick        # four layers, 8 frames
    python -m benchmarks.prefill --shape qwen2-7b --layers 28 --frames 64 --device cuda
    python -m benchmarks.prefill --clock process  # CPU time of the process alone, on a machine that others use too

The decoder is a stock ``Qwen2Model``; its input is a synthetic video between two pieces of text, and what methods of
the vision place read is random. In each repeat every method is measured right after a prefill with all tokens and
right before another, and its speed-up is over the mean of both: whatever else the machine does hits them alike.
``share`` is the measured speed-up over the ratio of FLOPs (``stsimdiff.cost``, language head aside), attention counted
causally; a kernel that computes the full square of attention gains more, up to the ratio ``square``.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModel, Qwen2Config, Qwen2Model

from benchmarks.output import save_report
from stsimdiff import compressors
from stsimdiff.budget import Budget
from stsimdiff.cost import DecoderShape, closed_form, decoder_flops
from stsimdiff.engine import Compression, Decoder, synchronise
from stsimdiff.models.released import QWEN2_7B
from stsimdiff.plan.dry_run import synthetic_video
from stsimdiff.tokens import Grid, Layout, VisionSignals
from stsimdiff.trace import Trace

METHODS = tuple(name for name in compressors.BUILTIN if name not in ("none", "no_video"))
TEXT = 40
"""Tokens of text around the video."""
CLOCKS = {"wall": time.perf_counter, "process": time.process_time}
WIDTHS = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
SHAPES = {
    "qwen2-0.5b": dict(zip(WIDTHS, (896, 4864, 14, 2), strict=True)),
    "qwen2-7b": {name: QWEN2_7B[name] for name in WIDTHS},
    "tiny": dict(zip(WIDTHS, (64, 128, 4, 2), strict=True)),
}
"""Widths of a layer."""
TOWER = (16, 72)
"""Heads of the vision tower and their width."""


def decoder_of(options: argparse.Namespace) -> Qwen2Model:
    """Random weights of the shape asked for, drawn on the device."""
    torch.manual_seed(0)
    config = Qwen2Config(
        **SHAPES[options.shape],
        vocab_size=32,
        num_hidden_layers=options.layers,
        attn_implementation=options.attention,
    )
    with torch.device(options.device):
        return AutoModel.from_config(config, dtype=getattr(torch, options.dtype)).eval()


class Bench:
    """The decoder and one prompt.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.model = decoder_of(options)
        self.grid = Grid(options.frames, options.height, options.width)
        self.shape = DecoderShape.from_config(self.model.config)
        generator = torch.Generator().manual_seed(2)
        length = self.grid.tokens + TEXT
        signals = VisionSignals(
            torch.rand(self.grid.tokens, generator=generator),
            torch.randn(self.grid.tokens, *TOWER, generator=generator),
        )
        places = torch.arange(TEXT // 2, TEXT // 2 + self.grid.tokens)
        self.layout = Layout(self.grid, places, length, options.layers, "benchmark", signals)
        embeds = torch.randn(1, length, self.shape.hidden, generator=generator)
        embeds[0, places] = synthetic_video(self.grid, self.shape.hidden)
        self.embeds = embeds.to(options.device, self.model.dtype)

    @torch.inference_mode()
    def prefill(self, name: str) -> tuple[float, Trace]:
        """Seconds of one prefill, the run's preparation included, and what the engine saw."""
        method = compressors.resolve(name)()
        clock = CLOCKS[self.options.clock]
        synchronise(self.embeds.device)
        started = clock()
        run = method.start(self.layout, Budget("tokens", self.options.retention))
        decoder = Decoder(self.model, self.model.layers)
        with Compression(decoder, run, self.layout) as trace:
            self.model(inputs_embeds=self.embeds, use_cache=True)
        synchronise(self.embeds.device)
        return clock() - started, trace

    def row(self, name: str, ratios: list[float], own: list[float], trace: Trace) -> dict:
        """One line of the result: the median speed-up and the share of the FLOPs ratio that it is."""
        everything = [trace.video] * self.shape.layers
        full = decoder_flops(self.shape, trace.text, everything, everything)
        flops = full / decoder_flops(self.shape, trace.text, trace.entering, trace.mlp)
        square = decoder_flops(self.shape, trace.text, everything, everything, causal=False)
        square /= decoder_flops(self.shape, trace.text, trace.entering, trace.mlp, causal=False)
        closed = closed_form(self.shape, trace.text, everything) / closed_form(
            self.shape, trace.text, trace.entering
        )
        speedup = statistics.median(ratios)
        return {
            "method": name,
            "before_layer_0": trace.entering[0] == trace.final,
            "kept": trace.final / trace.video,
            "compute": sum(trace.entering) / trace.video / self.shape.layers,
            "flops_ratio": flops,
            "square_ratio": square,
            "closed_form_ratio": closed,
            "speedup": speedup,
            "speedup_low": min(ratios),
            "speedup_high": max(ratios),
            "share": speedup / flops,
            "compressor_seconds": statistics.median(own),
        }


def measure(
    bench: Bench, options: argparse.Namespace, tell: Callable[[str], None]
) -> tuple[list[dict], list[float]]:
    """A row for each method, and the seconds of every prefill with all tokens; ``tell`` is told of each."""
    tell(f"warm-up: {bench.prefill('none')[0]:.2f} s")
    full: list[float] = [bench.prefill("none")[0]]
    ratios: dict[str, list[float]] = {name: [] for name in options.methods}
    own: dict[str, list[float]] = {name: [] for name in options.methods}
    traces: dict[str, Trace] = {}
    for repeat in range(options.repeats):
        for name in options.methods:
            seconds, traces[name] = bench.prefill(name)
            full.append(bench.prefill("none")[0])
            ratios[name].append((full[-2] + full[-1]) / 2 / seconds)
            own[name].append(traces[name].compressor_seconds)
            tell(f"repeat {repeat + 1}, {name}: {seconds:.2f} s, all tokens {full[-1]:.2f} s")
    return [bench.row(name, ratios[name], own[name], traces[name]) for name in options.methods], full


def shown(row: dict) -> str:
    """A row of the printed table."""
    return (
        f"{row['method']:20}{'yes' if row['before_layer_0'] else 'no':>8}{100 * row['kept']:8.1f}"
        f"{100 * row['compute']:11.1f}{row['flops_ratio']:8.2f}{row['square_ratio']:8.2f}{row['speedup']:10.2f}"
        f"{row['speedup_low']:13.2f} to {row['speedup_high']:.2f}{100 * row['share']:8.1f}"
        f"{1e3 * row['compressor_seconds']:10.1f}"
    )


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of a command line, this process's if not given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="4 layers, 8 frames, 3 repeats: under a minute")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--shape", default="qwen2-0.5b", choices=sorted(SHAPES))
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--height", type=int, default=13)
    parser.add_argument("--width", type=int, default=14)
    parser.add_argument("--retention", type=float, default=0.3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--attention", default="sdpa", choices=["sdpa", "eager", "flash_attention_2"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch on the CPU")
    parser.add_argument("--clock", default="wall", choices=sorted(CLOCKS))
    parser.add_argument("--out", type=Path, default=Path("results/prefill.json"))
    options = parser.parse_args(arguments)
    if options.clock == "process" and options.device != "cpu":
        parser.error("--clock process counts what the CPU does; an accelerator is timed with --clock wall")
    if options.quick:
        options.layers, options.frames = 4, 8
    return options


def main() -> None:
    options = options_of()
    torch.set_num_threads(options.threads)

    rows, full = measure(Bench(options), options, partial(print, flush=True))
    print(
        "\nmethod              before 0  kept %  compute %   FLOPs  square  speed-up  lowest to highest"
        " share %   own, ms"
    )
    for row in rows:
        print(shown(row))
    print(f"a prefill with all tokens: {statistics.median(full):.2f} s, the median of {len(full)}")
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    machine = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
    report = {"settings": settings, "machine": machine, "full_seconds": full, "rows": rows}
    save_report(report, options.out)


if __name__ == "__main__":
    main()
