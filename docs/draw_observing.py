"""Makes the pictures of docs/observing.md, by its commands: the table of `pushsum top`, and a page of `pushsum report`.

python docs/draw_observing.py          # two minutes; needs rich, pillow and the program chromium
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from rich.console import Console

from pushsum_opt.cli.top_table import table
from pushsum_opt.observe.report.reading import Folder

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
COLUMNS = 124
SIZE = (1000, 1340)
"""Of the page, in px."""
COLOURS = 96


def draw_top(folder: Path, work: Path) -> None:
    """The table, as rich draws a terminal, without the fonts that it would have a browser fetch."""
    run = Folder(folder).look()
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(table(run, run.seen + 2.0, COLUMNS))
    svg = console.export_svg(title="pushsum top slow-run", unique_id="top")
    drawing = work / "top.svg"
    drawing.write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL), encoding="utf-8")
    wide, high = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0]
    shoot(drawing, (int(float(wide)), int(float(high))), IMAGES / "top.png", work)


def draw_report(folder: Path, work: Path) -> None:
    """The upper part of the page, as a browser shows it."""
    page = work / "report.html"
    subprocess.run([sys.executable, "-m", "pushsum_opt", "report", str(folder), "-o", str(page)], check=True)
    shoot(page, SIZE, IMAGES / "report.png", work)


def shoot(file: Path, size: tuple[int, int], picture: Path, work: Path) -> None:
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]
    options += [f"--user-data-dir={work}/browser", f"--window-size={size[0]},{size[1]}", f"--screenshot={picture}"]
    subprocess.run(["chromium", *options, file.as_uri()], check=True, capture_output=True)
    Image.open(picture).convert("RGB").quantize(COLOURS).save(picture, optimize=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        folder = work / "slow-run"
        program = [str(ROOT / "examples" / "slow_rank.py"), "--metrics", str(folder)]
        command = [sys.executable, "-m", "pushsum_opt", "run", "-np", "8", *program]
        subprocess.run(command, check=True, cwd=ROOT)
        draw_top(folder, work)
        draw_report(folder, work)


if __name__ == "__main__":
    main()
