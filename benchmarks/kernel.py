"""Decode attention alone: every provider against vLLM's own FlashAttention.

    python -m benchmarks.kernel --windows 1024,4096 --batches 1,8,32,64,128,256 --json out.json

One decode step of one layer (32 query heads, 8 KV heads, 128 channels, bfloat16), as vLLM runs it:
its cache layout, its block tables, FlashAttention 3 with the plan that vLLM computes ahead, all
in a CUDA graph. Each call of a graph reads a cache of its own, as the layers of a model do, so that
the L2 cache holds no more than it would for a model. Sides are interleaved: a round times each of
them once, in a new order. A picture is written beside the JSON.

Sides: ``stock window`` is vLLM's sliding window over the whole stream's block table, ``stock full``
is its full attention over a context as long as the window, the others are this project's providers.
``xformers`` and ``torch`` never run inside a graph: they are launched layer by layer,
``EAGER_ROUNDS`` times after the others, not counting what they prepare once per step.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import record

HEADS, KV_HEADS, SIZE = 32, 8, 128
#: Several times the L2 cache of an H100.
ROTATED_BYTES = 300 << 20
MOST_CALLS = 40
EAGER_ROUNDS = 5
EAGER = ("xformers", "torch")


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.kernel",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--windows", type=numbers, default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--batches", type=numbers, default=[1, 8, 32, 64, 128, 256])
    parser.add_argument("--sink-tokens", type=int, default=4)
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument(
        "--providers",
        default="flash+triton,flash,triton,xformers,torch",
        help="of vllm_sink, comma separated",
    )
    parser.add_argument("--json", required=True, type=Path, help="where the result goes")
    return parser.parse_args()


@dataclass
class Caches:
    """Several layers' caches with one block table.

    Attributes:
        layers: [blocks, block_size, KV_HEADS, 2 * SIZE] each.
        table: int32 [rows, columns], the whole stream's; evicted blocks are null.
        length: tokens of every stream.
    """

    layers: list[torch.Tensor]
    table: torch.Tensor
    length: int


def caches(batch: int, window: int, size: int) -> Caches:
    """Streams of four windows and a bit, of which sinks and window are held."""
    length = 4 * window + size // 2 + 1
    columns = -(-length // size)
    first = (length - window) // size
    held = columns - first + 1
    bytes_each = batch * held * size * KV_HEADS * 2 * SIZE * 2
    count = min(MOST_CALLS, max(2, -(-ROTATED_BYTES // bytes_each)))
    blocks = batch * held + 1
    layers = [
        torch.randn(blocks, size, KV_HEADS, 2 * SIZE, device="cuda", dtype=torch.bfloat16)
        for _ in range(count)
    ]
    table = torch.zeros(batch, columns, dtype=torch.int32, device="cuda")
    mixed = torch.randperm(blocks - 1, device="cuda").int().view(batch, held) + 1
    table[:, 0], table[:, first:] = mixed[:, 0], mixed[:, 1:]
    return Caches(layers, table, length)


def graph_of(call: Callable[[torch.Tensor], None], layers: list[torch.Tensor]) -> Any:
    """One call for each layer, captured."""
    call(layers[0])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for layer in layers:
            call(layer)
    graph.replay()
    torch.cuda.synchronize()
    return graph


def microseconds(run: Callable[[], None], calls: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) * 1e3 / calls


def copy_bandwidth() -> float:
    """Bytes per second, read and written, of a large copy on this card."""
    source = torch.randn(1 << 30, device="cuda", dtype=torch.bfloat16)
    target = torch.empty_like(source)
    graph = graph_of(target.copy_, [source])
    seconds = statistics.median(microseconds(graph.replay, 1) for _ in range(15)) / 1e6
    return 2 * source.numel() * source.element_size() / seconds


def stock(data: Caches, batch: int, window: int, size: int, full: bool) -> Callable[..., None]:
    """vLLM's FlashAttention 3 over the stream's whole table, or over a context of a window."""
    from vllm.v1.attention.backends.fa_utils import flash_attn_varlen_func, get_scheduler_metadata

    table, length = data.table, data.length
    if full:
        first = (length - window) // size
        # As many whole blocks as a window has tokens.
        table, length = table[:, first : first + window // size].contiguous(), window
    lens = torch.full((batch,), length, dtype=torch.int32, device="cuda")
    starts = torch.arange(batch + 1, dtype=torch.int32, device="cuda")
    span = (-1, -1) if full else (window - 1, 0)
    plan = get_scheduler_metadata(
        batch_size=batch,
        max_seqlen_q=1,
        max_seqlen_k=length,
        num_heads_q=HEADS,
        num_heads_kv=KV_HEADS,
        headdim=SIZE,
        cache_seqlens=lens,
        qkv_dtype=torch.bfloat16,
        cu_seqlens_q=starts,
        page_size=size,
        causal=True,
        window_size=span,
        num_splits=32,
    )
    query = torch.randn(batch, HEADS, SIZE, device="cuda", dtype=torch.bfloat16)
    output = torch.empty_like(query)

    def call(cache: torch.Tensor) -> None:
        key, value = cache.split(SIZE, -1)
        flash_attn_varlen_func(
            q=query,
            k=key,
            v=value,
            out=output,
            cu_seqlens_q=starts,
            max_seqlen_q=1,
            seqused_k=lens,
            max_seqlen_k=length,
            softmax_scale=SIZE**-0.5,
            causal=True,
            window_size=list(span),
            block_table=table,
            scheduler_metadata=plan,
            num_splits=32,
            fa_version=3,
        )

    return call


def ours(
    data: Caches, batch: int, window: int, size: int, sinks: int, provider: str
) -> Callable[..., None]:
    """A provider of this project on the same streams."""
    from vllm_sink.attention import provider_factory, providers
    from vllm_sink.attention.flash_plan import FlashPlan, FlashShape
    from vllm_sink.attention.layer import LayerParams
    from vllm_sink.attention.paged_step import HostStep, PagedStep
    from vllm_sink.rope.frequencies import Frequencies
    from vllm_sink.rope.rotary import ExactRotary

    inv_freq = 500_000.0 ** -(torch.arange(0, SIZE, 2, dtype=torch.float64) / SIZE)
    rotary = ExactRotary(Frequencies(inv_freq, 1.0), SIZE, is_neox_style=True).cuda()
    layer = LayerParams(HEADS, KV_HEADS, SIZE, SIZE**-0.5, window, True, rotary=rotary)
    step = PagedStep(
        num_reqs=batch,
        num_tokens=batch,
        max_query_len=1,
        query_start_loc=torch.arange(batch + 1, dtype=torch.int32, device="cuda"),
        seq_lens=torch.full((batch,), data.length, dtype=torch.int32, device="cuda"),
        block_table=data.table,
        positions=torch.full((batch,), data.length - 1, dtype=torch.int64, device="cuda"),
        sinks=torch.full((batch,), sinks, dtype=torch.int32, device="cuda"),
        windows=torch.full((batch,), window, dtype=torch.int32, device="cuda"),
        block_size=size,
        window_tokens=window,
        past_window=True,
        host=HostStep([1] * batch, [data.length] * batch, [sinks] * batch, [window] * batch),
    )
    if providers.needs_compact_tables(provider):
        shape = FlashShape(
            provider=provider,
            window_tokens=window,
            uniform_window=window,
            num_heads=HEADS,
            num_kv_heads=KV_HEADS,
            head_size=SIZE,
            block_size=size,
            dtype=torch.bfloat16,
            rows=batch,
            tokens=batch,
            graph_tokens=batch,
            graph_splits=32,
        )
        FlashPlan(shape, torch.device("cuda", torch.cuda.current_device())).fill(step)
    query = torch.randn(batch, HEADS, SIZE, device="cuda", dtype=torch.bfloat16)
    output = torch.empty_like(query)
    if not providers.is_paged(provider):
        return _in_tiles(layer, step, query, output)
    made = provider_factory.make(provider, layer, torch.bfloat16)
    assert made is not None

    def call(cache: torch.Tensor) -> None:
        key, value = cache.split(SIZE, -1)
        made.attend(step, query, key, value, output)

    return call


def _in_tiles(layer: Any, step: Any, query: torch.Tensor, output: torch.Tensor) -> Any:
    """The ``torch`` provider, which takes tiles."""
    from vllm_sink.attention.tiles import TileCutter
    from vllm_sink.attention.torch_provider import attend

    batch = step.num_reqs
    # What the cutter reads of vLLM's metadata is named alike, but for the table.
    step.block_table_tensor = step.block_table
    cutter = TileCutter(step.block_size)
    starts = list(range(batch + 1))
    tiles = cutter.cut(step, starts, step.host.seq_lens, step.host.sinks, step.host.windows)

    def call(cache: torch.Tensor) -> None:
        for tile in tiles:
            attend(layer, tile, query, cache.flatten(0, 1), output)

    return call


def measure(args: argparse.Namespace, batch: int, window: int) -> dict[str, Any]:
    """Every side at one point: median and quartiles in microseconds a layer."""
    size = args.block_size
    data = caches(batch, window, size)
    sides = {
        "stock window": stock(data, batch, window, size, full=False),
        "stock full": stock(data, batch, window, size, full=True),
    }
    eager: dict[str, Callable[..., None]] = {}
    for provider in args.providers.split(","):
        group = eager if provider in EAGER else sides
        group[provider] = ours(data, batch, window, size, args.sink_tokens, provider)
    graphs = {name: graph_of(call, data.layers) for name, call in sides.items()}
    times: dict[str, list[float]] = {name: [] for name in [*sides, *eager]}
    for _ in range(args.rounds):
        order = list(graphs)
        random.shuffle(order)
        for name in order:
            times[name].append(microseconds(graphs[name].replay, len(data.layers)))
    few = data.layers[:4]
    for name, call in eager.items():
        call(few[0])
        run = partial(_each, call, few)
        times[name] = [microseconds(run, len(few)) for _ in range(EAGER_ROUNDS)]
    point: dict[str, Any] = {"batch": batch, "window": window, "layers": len(data.layers)}
    base = statistics.median(times["stock window"])
    point["sides"] = {
        name: {
            "median_us": statistics.median(values),
            "quartiles_us": statistics.quantiles(values, n=4)[::2],
            "min_us": min(values),
            "ratio_to_stock_window": statistics.median(values) / base,
            "bytes_per_second": 2
            * batch
            * window
            * KV_HEADS
            * SIZE
            * 2
            / (statistics.median(values) / 1e6),
        }
        for name, values in times.items()
    }
    return point


def _each(call: Callable[[torch.Tensor], None], layers: list[torch.Tensor]) -> None:
    for layer in layers:
        call(layer)


def draw(result: dict[str, Any], path: Path) -> None:
    """Ratio to stock by batch, a panel for each window, for sides that run in graphs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    windows = sorted({p["window"] for p in result["points"]})
    figure, panels = pyplot.subplots(
        1, len(windows), figsize=(3.4 * len(windows), 3.6), sharey=True, squeeze=False
    )
    for axes, window in zip(panels[0], windows, strict=True):
        points = [p for p in result["points"] if p["window"] == window]
        for name in points[0]["sides"]:
            if name in EAGER:
                continue
            ratios = [p["sides"][name]["ratio_to_stock_window"] for p in points]
            axes.plot([p["batch"] for p in points], ratios, marker="o", label=name)
        axes.set_xscale("log", base=2)
        axes.set_title(f"W {window}")
        axes.set_xlabel("streams in the batch")
    panels[0][0].set_ylabel("time / vLLM's sliding window")
    panels[0][-1].legend(fontsize=7)
    figure.suptitle(f"Decode attention, {result['hardware']}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    from tqdm import tqdm

    args = parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.kernel: error: there is no NVIDIA GPU on this machine")
    torch.manual_seed(0)
    copy = copy_bandwidth()
    points = []
    grid = [(b, w) for w in args.windows for b in args.batches]
    for batch, window in tqdm(grid, unit="point"):
        points.append(measure(args, batch, window))
        torch.cuda.empty_cache()
    result = {
        "benchmark": "kernel",
        "hardware": torch.cuda.get_device_name(),
        "shape": {"heads": HEADS, "kv_heads": KV_HEADS, "head_size": SIZE, "dtype": "bfloat16"},
        "sink_tokens": args.sink_tokens,
        "block_size": args.block_size,
        "rounds": args.rounds,
        "copy_bytes_per_second": copy,
        "points": points,
    }
    record.write(args.json, result)
    draw(result, args.json.with_suffix(".png"))
    print(f"copy {copy / 1e12:.2f} TB/s; us a layer (ratio to stock window), share of copy rate")
    for p in points:
        cells = [
            f"{name} {s['median_us']:.1f} ({s['ratio_to_stock_window']:.3f}) "
            f"{s['bytes_per_second'] / copy:.2f}"
            for name, s in p["sides"].items()
        ]
        print(f"W {p['window']:5} B {p['batch']:4}: " + " | ".join(cells))


if __name__ == "__main__":
    main()
