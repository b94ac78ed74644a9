"""Draw docs/images/calibration.svg: the noise that is estimated against the noise that is there.

    python -m benchmarks.calibration_plot

From the committed result of `benchmarks.noise_gate`. Legible on light and on dark.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.rendering import result

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "calibration.svg"
INK, OURS, LEFT_OUT, LIMIT = "#808792", "#4f8ff7", "#f2994a", 0.15


def main() -> None:
    measured = result("noise_gate")
    mpl.rcParams.update({"svg.hashsalt": "calibration", "svg.fonttype": "none"})
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 0.65], [0, 0.65], color=INK, linestyle=":", linewidth=1, label="what is there")
    for name, one in measured.items():
        fractions = one.get("fraction") if isinstance(one, dict) else None
        if not fractions:
            continue
        truth = [float(share) for share in fractions]
        middle = [t + f["bias"] for t, f in zip(truth, fractions.values(), strict=True)]
        half = [f["mean width"] / 2 for f in fractions.values()]
        if name == "recipes fitted":
            band = {"color": OURS, "alpha": 0.2, "linewidth": 0}
            lower = [max(m - h, 0) for m, h in zip(middle, half, strict=True)]
            upper = [m + h for m, h in zip(middle, half, strict=True)]
            axes.fill_between(truth, lower, upper, label="mean 95 % interval", **band)
            axes.plot(truth, middle, color=OURS, marker="o", zorder=3, label="mean estimate")
        else:
            label = "a kind of noise left out of the fit" if name.endswith("swap") else None
            axes.plot(truth, middle, color=LEFT_OUT, linewidth=0.8, label=label)
    axes.axhline(LIMIT, color=INK, linewidth=0.8)
    axes.text(0.645, LIMIT + 0.008, "default limit", color=INK, ha="right", fontsize=9)
    axes.set_xlabel("share of noisy rows in a shard", color=INK)
    axes.set_ylabel("estimated", color=INK)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(mpl.ticker.PercentFormatter(1.0, decimals=0))
    axes.tick_params(colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    figure.savefig(PICTURE, transparent=True, metadata={"Date": None})
    print(f"written to {PICTURE}")


if __name__ == "__main__":
    main()
