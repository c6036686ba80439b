"""Our plain attention on a processor beside torch's fused kernel, forward and backward.

    python benchmarks/attention.py

writes ``benchmarks/attention.json``. Sizes are those of the fusion in a batch of the small shop: 64
products, 4 heads, 110 tokens.
"""

import time
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F

from m5lib import data as files
from m5lib.lab import recording
from m5lib.layers import attention


def fused(q, k, v, readable):
    """torch's."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=readable[:, None, None])


def seconds(function, kind: torch.dtype, width: int, repeats: int = 15) -> tuple[float, float]:
    """Median forward and backward time."""
    generator, forward, backward = torch.Generator().manual_seed(0), [], []
    readable = torch.rand(64, 110, generator=generator) > 0.4
    readable[:, 0] = True
    for _ in range(repeats):
        q, k, v = (
            torch.randn(64, 4, 110, width, generator=generator).to(kind).requires_grad_()
            for _ in range(3)
        )
        begun = time.perf_counter()
        out = function(q, k, v, readable)
        between = time.perf_counter()
        out.sum().backward()
        forward.append(between - begun)
        backward.append(time.perf_counter() - between)
    return median(forward), median(backward)


def main() -> None:
    """Measure and write."""
    found = []
    for kind in (torch.float32, torch.bfloat16):
        for width in (32, 64):
            times = {
                name: seconds(f, kind, width)
                for name, f in (("plain", attention), ("fused", fused))
            }
            row = {"dtype": str(kind), "width of a head": width}
            for place, name in enumerate(("forward", "backward")):
                row |= {
                    f"{which} {name} (ms)": round(1e3 * times[which][place], 1) for which in times
                }
            row["fused / plain"] = round(sum(times["fused"]) / sum(times["plain"]), 2)
            found.append(row)
            print(row)
    made = recording.provenance("small", 0, 0.0)
    files.write_json(Path(__file__).with_suffix(".json"), {"provenance": made, "rows": found})


if __name__ == "__main__":
    main()
