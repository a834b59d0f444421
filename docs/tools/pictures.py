"""Draws docs/assets/causal_map.png: the causal map of one pair, by the bundled model.

python docs/tools/pictures.py
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import vl_convert
from PIL import Image

from debug.causal_tracing import run_causal_tracing_experiment
from debug.causal_visualization import causal_heatmap
from debug.counterfactual import make_pair

PICTURE = Path(__file__).parents[1] / "assets" / "causal_map.png"
PROGRAM = "i = 8\nx = i\nh = x\ny = 4\nw = x\n#h: "


def main() -> None:
    causal_map = run_causal_tracing_experiment("tiny", [make_pair(PROGRAM, root_value=3)]).maps[0]
    chart = causal_heatmap(causal_map).properties(background="white", padding=8)
    drawn = Image.open(BytesIO(vl_convert.vegalite_to_png(chart.to_json(), scale=2)))
    drawn.convert("RGB").quantize(256).save(PICTURE, optimize=True)
    print(f"{PICTURE.name}: {PICTURE.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
