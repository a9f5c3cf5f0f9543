"""How do time and memory of attention layers grow with the number of points? Figures 2 and 8 of the FLARE paper.

    python -m tests.benchmarks.paper_scaling                  # measures on a GPU, and writes paper_scaling.json
    python -m tests.benchmarks.paper_scaling --draw           # draws paper_scaling.png from it, without a GPU
    python -m tests.benchmarks.paper_scaling --show           # prints it as tables

Measured is one forward and backward pass of a single token-mixing layer, its projections included, on one mesh:
vanilla attention (PyTorch's fused attention), Transolver's physics attention, and FLARE by two attention calls and by
the kernels. "bf16" is figure 2: mixed precision by autocast, with 128 channels and 8 heads for all (the paper:
float16). "fp32" is figure 8: FP32 without TF32, each layer in the size that its model has in the paper's benchmarks,
so that layers differ in size. Layers are called eagerly, neither compiled nor recorded as CUDA graphs, so that times
on small meshes include the launching of kernels. Memory is the peak of all tensors, weights and input included.
PyTorch chooses among its fused attention backends, but for cuDNN's, which plans anew for each number of points, and
which training switches off too.

Needs one GPU and no data. Figures go to `--out`, by default results/paper_scaling.json, after each measurement. Those
that are in the file, failures too, are not measured again, unless by `--again`; what was left out is tried again.
Quadratic attention stops where a pass would take more than `--longest` seconds; the file says so, and where memory ran
out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from flare_model.layers.attention import SelfAttention
from flare_model.layers.layout import Layout
from flare_model.layers.mixer import FlareMixer
from flare_model.models.transolver import PhysicsAttention
from flare_model.sizes import Implementation
from tests.benchmarks.machine import RESULTS, describe_machine

SIZES: Final = {"bf16": {"vanilla": (128, 8), "physics": (128, 8), "flare": (128, 8)}}
SIZES["fp32"] = {"vanilla": (80, 5), "physics": (128, 8), "flare": (64, 8)}
"""Channels and heads, by precision and layer."""

MIXER_LAYERS: Final = 3
"""Residual layers of FLARE's networks of keys and values."""

BUDGET: Final = 0.12
"""Seconds that the repetitions of a measurement take, about."""

MOST: Final = 10
"""Largest number of repetitions."""

WARM_POINTS: Final = (1024, 16384)
"""Points of the meshes for which kernels are compiled in advance."""


@dataclass(frozen=True)
class Layer:
    """A token-mixing layer.

    Attributes:
        method: vanilla, physics, flare_calls or flare_kernels.
        rank: Latents of FLARE, slices of Transolver; 0 for vanilla attention.
    """

    method: str
    rank: int = 0

    def build(self, precision: str) -> nn.Module:
        """The layer in its size, on the host."""
        kind = self.method.partition("_")[0]
        channels, heads = SIZES[precision][kind]
        if kind == "vanilla":
            return SelfAttention(channels, heads)
        if kind == "physics":
            return PhysicsAttention(channels, heads, self.rank)
        way: Implementation = "triton" if self.method == "flare_kernels" else "sdpa"
        mixer = FlareMixer(channels, heads, self.rank, MIXER_LAYERS, way)
        for network in (mixer.keys, mixer.values):
            network.implementation = way
        return mixer

    @property
    def name(self) -> str:
        """Its name in pictures and tables."""
        names = {"vanilla": "vanilla attention", "physics": "physics attention, {} slices"}
        names |= {"flare_calls": "FLARE by attention calls, M = {}", "flare_kernels": "FLARE by kernels, M = {}"}
        return names[self.method].format(self.rank)


LAYERS: Final = (
    Layer("vanilla"),
    *(Layer("physics", rank) for rank in (64, 256)),
    *(Layer(method, rank) for method in ("flare_calls", "flare_kernels") for rank in (64, 256, 1024)),
)


@dataclass(frozen=True)
class Measurement:
    """One point of a curve in the figures."""

    precision: str
    layer: Layer
    points: int

    @property
    def key(self) -> str:
        """Its name in the file."""
        return f"{self.precision}/{self.layer.method}-{self.layer.rank}/{self.points}"


def plan(asked: argparse.Namespace) -> list[Measurement]:
    """All measurements, from few points to many: if time runs out, all curves lack their end."""
    counts = []
    points = asked.least
    while points <= asked.most:
        counts.append(points)
        points *= asked.factor
    layers = [layer for layer in LAYERS if layer.method in asked.only]
    return [Measurement(p, layer, n) for n in counts for p in asked.precisions for layer in layers]


def expected_seconds(measured: Mapping[str, Any], one: Measurement) -> float | None:
    """Expected seconds of vanilla attention, from the largest smaller mesh that was measured; None without one.

    Other layers have None.
    """
    if one.layer.method != "vanilla":
        return None
    known = [(row["points"], row["ms"]) for row in measured.values() if _is_smaller(row, one)]
    if not known:
        return None
    points, ms = max(known)
    return float(ms) / 1000 * (one.points / points) ** 2


def _is_smaller(row: Mapping[str, Any], one: Measurement) -> bool:
    same = (row["precision"], row["method"], row["rank"]) == (one.precision, one.layer.method, one.layer.rank)
    return same and "ms" in row and row["points"] < one.points


class Clock:
    """Times calls on a device.

    Args:
        device: Where they run.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"

    def once(self, call: Callable[[], Any]) -> float:
        """Milliseconds of a call."""
        if not self.on_gpu:
            started = time.perf_counter()
            call()
            return (time.perf_counter() - started) * 1000
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))

    def median(self, call: Callable[[], Any]) -> tuple[float, int]:
        """Median milliseconds of several calls, without the first (which compiles), and their number."""
        self.once(call)
        second = self.once(call)
        count = min(MOST, max(1, int(BUDGET * 1000 / max(second, 1e-3))))
        times = [second, *(self.once(call) for _ in range(count - 1))]
        return statistics.median(times), len(times)


def measure(one: Measurement, device: torch.device) -> dict[str, Any]:
    """Time and memory of a forward and backward pass.

    Returns:
        ms, calls (number of timed ones) and, on a GPU, peak_gib.
    """
    torch.manual_seed(0)
    layer = one.layer.build(one.precision).to(device)
    x = torch.randn(1, one.points, SIZES[one.precision][one.layer.method.partition("_")[0]][0], device=device)
    leaves = [x.requires_grad_(), *layer.parameters()]
    mixed = one.precision == "bf16"

    def forward() -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16) if mixed else contextlib.nullcontext():
            out: Tensor = layer(x, Layout())
        return out

    gradient = torch.randn_like(x, dtype=torch.bfloat16 if mixed else torch.float32)

    def step() -> None:
        torch.autograd.grad(forward(), leaves, gradient)

    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    ms, calls = Clock(device).median(step)
    found: dict[str, Any] = {"ms": round(ms, 4), "calls": calls}
    if device.type == "cuda":
        found["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 4)
    return found


def row_of(one: Measurement, device: torch.device, measured: Mapping[str, Any], longest: float) -> dict[str, Any]:
    """The entry of a measurement: its figures, or why there are none."""
    about = {"precision": one.precision, **asdict(one.layer), "points": one.points}
    expected = expected_seconds(measured, one)
    if expected is not None and expected > longest:
        return about | {"left_out": f"a step would take about {expected:.0f} s"}
    try:
        return about | measure(one, device)
    except torch.OutOfMemoryError:
        return about | {"left_out": "out of memory"}
    except Exception as error:  # noqa: BLE001 (a failure is reported, and the others go on)
        return about | {"failed": f"{type(error).__name__}: {error}"[:300]}
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()


def prepare(layer: Layer, precision: str) -> None:
    """Compile the kernels of a layer, in a process of its own."""
    for points in WARM_POINTS:
        row_of(Measurement(precision, layer, points), torch.device("cuda"), {}, math.inf)


def compile_kernels(layers: Sequence[Layer], precisions: Sequence[str]) -> None:
    """Compile the kernels of all layers at once, each in a process: Triton caches them on disk."""
    kinds = [(layer, precision) for layer in layers for precision in precisions]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max(1, len(kinds)), mp_context=spawn) as pool:
        for future in [pool.submit(prepare, *kind) for kind in kinds]:
            if error := future.exception():
                print(f"compiling: {error}", flush=True)


def _disable_cudnn_attention() -> None:
    torch.backends.cuda.enable_cudnn_sdp(enabled=False)


def about(device: torch.device) -> dict[str, Any]:
    """Entries of the file beside the figures."""
    found = {
        "what": "one forward and backward pass of one token-mixing layer on one mesh, as figures 2 (bf16) and 8 (fp32)",
        "sizes": SIZES,
        "machine": describe_machine(("numpy", "torch")),
    }
    if device.type == "cuda":
        from tests.benchmarks.gpu_timing import describe_gpu

        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
        found["gpu"] = describe_gpu() | {"memory_gib": round(memory, 1)}
    return found


def curves_of(
    rows: Mapping[str, Mapping[str, Any]], precision: str, value: str
) -> dict[Layer, list[tuple[int, float]]]:
    """Layer to pairs of points and value, by ascending points; layers without any are left out."""
    found = {}
    for layer in LAYERS:
        of = [r for r in rows.values() if (r["precision"], r["method"], r["rank"]) == (precision, *_words(layer))]
        if curve := sorted((row["points"], row[value]) for row in of if row.get(value) is not None):
            found[layer] = curve
    return found


def _words(layer: Layer) -> tuple[str, int]:
    return layer.method, layer.rank


COLOURS: Final = {"vanilla": "black", "physics": "tab:blue", "flare_calls": "tab:orange", "flare_kernels": "tab:red"}
STYLES: Final = {0: "-", 64: "-", 256: "--", 1024: ":"}


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Draw time and memory over points, with a row of panels for each precision."""
    from matplotlib.figure import Figure

    precisions = [name for name in SIZES if curves_of(content["rows"], name, "ms")]
    titles = {"bf16": "mixed precision (bf16), C = 128, H = 8", "fp32": "FP32, layers as in the benchmarks' models"}
    figure = Figure(figsize=(10, 3.6 * len(precisions) + 0.8), layout="constrained")
    panels = figure.subplots(len(precisions), 2, squeeze=False)
    for row, precision in zip(panels, precisions, strict=True):
        for panel, value, label in zip(row, ("ms", "peak_gib"), ("milliseconds", "peak memory, GiB"), strict=True):
            for layer, curve in curves_of(content["rows"], precision, value).items():
                points, values = zip(*curve, strict=True)
                style = STYLES.get(layer.rank, "-")
                panel.plot(
                    points, values, style, color=COLOURS[layer.method], label=layer.name, marker="o", markersize=3
                )
            panel.set(xscale="log", yscale="log", xlabel="points", ylabel=label, title=titles[precision])
            panel.grid(alpha=0.3)
        if memory := content.get("gpu", {}).get("memory_gib"):
            row[1].axhline(memory, color="grey", linestyle="--", linewidth=1)
    known = {line.get_label(): line for panel in panels.flat for line in panel.lines}
    lines = [known[layer.name] for layer in LAYERS if layer.name in known]  # a layer may be missing in some panels
    figure.legend(handles=lines, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def tables_of(content: Mapping[str, Any]) -> list[str]:
    """Markdown tables, one a precision: milliseconds and peak memory of each layer by the number of points."""
    rows, lines = content["rows"], list[str]()
    for precision in SIZES:
        of = [row for row in rows.values() if row["precision"] == precision]
        counts = sorted({row["points"] for row in of})
        if not counts:
            continue
        lines += [
            f"| {precision}: ms, GiB | " + " | ".join(f"{n:,}" for n in counts) + " |",
            "|---" * (len(counts) + 1) + "|",
        ]
        for layer in LAYERS:
            cells = [_cell(rows.get(Measurement(precision, layer, n).key)) for n in counts]
            if any(cells):
                lines.append(f"| {layer.name} | " + " | ".join(cells) + " |")
        lines.append("")
    return lines


def ratios_of(content: Mapping[str, Any]) -> list[str]:
    """How many times as long vanilla attention takes as each other layer, on the largest mesh of both, in sentences."""
    lines = []
    for precision in SIZES:
        curves = {layer: dict(curve) for layer, curve in curves_of(content["rows"], precision, "ms").items()}
        vanilla = curves.pop(LAYERS[0], {})
        for layer, curve in curves.items():
            if common := vanilla.keys() & curve.keys():
                n = max(common)
                ratio = vanilla[n] / curve[n]
                lines.append(
                    f"{precision}, {n:,} points: vanilla attention takes {ratio:.3g} times as long as {layer.name}"
                )
    return lines


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    if "ms" not in row:
        return str(row.get("left_out") or "failed")
    memory = row.get("peak_gib")
    return f"{row['ms']:.3g}" + ("" if memory is None else f", {memory:.2g}")


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    methods = list(dict.fromkeys(layer.method for layer in LAYERS))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "paper_scaling.json", help="JSON file of the figures")
    parser.add_argument("--only", nargs="+", choices=methods, default=methods, help="these layers")
    parser.add_argument("--precisions", nargs="+", choices=tuple(SIZES), default=list(SIZES))
    parser.add_argument("--least", type=int, default=1024, help="points of the smallest mesh")
    parser.add_argument("--most", type=int, default=1 << 20, help="points of the largest mesh")
    parser.add_argument("--factor", type=int, default=4, help="from one mesh's points to the next one's")
    parser.add_argument("--longest", type=float, default=10.0, help="most seconds of a pass of vanilla attention")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no measurement later")
    parser.add_argument("--again", action="store_true", help="measure again what is in the file")
    parser.add_argument("--accelerator", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--draw", action="store_true", help="only draw the picture of the figures in --out")
    parser.add_argument("--show", action="store_true", help="only print the tables of the figures in --out")
    return parser.parse_args(words)


def run(asked: argparse.Namespace) -> None:
    """Measure what was asked for and isn't in the file."""
    device, started = torch.device("cuda" if asked.accelerator == "gpu" else "cpu"), time.monotonic()
    before = json.loads(asked.out.read_text(encoding="utf-8")) if asked.out.exists() else {}
    content: dict[str, Any] = {**about(device), "rows": before.get("rows", {})}
    rows = content["rows"]
    todo = [one for one in plan(asked) if asked.again or not {"ms", "failed"} & rows.get(one.key, {}).keys()]
    if device.type == "cuda":
        _disable_cudnn_attention()
        compile_kernels([y for y in LAYERS if y.method == "flare_kernels" and y.method in asked.only], asked.precisions)
        print(f"kernels compiled after {time.monotonic() - started:.1f} s", flush=True)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    for one in todo:
        if time.monotonic() - started > asked.seconds:
            print(f"{one.key} and what follows are left out: {asked.seconds:g} s have passed", flush=True)
            break
        rows[one.key] = row_of(one, device, rows, asked.longest)
        asked.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(f"{time.monotonic() - started:6.1f} s: {one.key}: {_cell(rows[one.key])}", flush=True)
        if "CUDA error" in rows[one.key].get("failed", ""):
            raise SystemExit(
                "after this error the process can't use the GPU; the same command continues with the next measurement"
            )
    print(asked.out)


def main() -> None:
    asked = parse()
    if asked.draw or asked.show:
        from tests.benchmarks.figures import draw_or_show

        draw_or_show(asked, draw, lambda content: [*tables_of(content), *ratios_of(content)])
    else:
        run(asked)


if __name__ == "__main__":
    main()
