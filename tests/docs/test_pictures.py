"""Pictures and tables that scripts make are up to date, and what pages say of the code is there."""

from __future__ import annotations

import doctest
import importlib.util
import re
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
import pytest

import pushsum_opt as ps

DOCS = Path(__file__).resolve().parents[2] / "docs"
DRAWINGS = sorted((DOCS / "images").glob("*.svg"))
SVG = "{http://www.w3.org/2000/svg}"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


rooms = script("draw_rooms")
weights = script("draw_weights")


def test_picture_and_table_of_the_rooms_are_those_of_the_imports():
    imports = rooms.read_imports()
    again = "run: python docs/draw_rooms.py"
    page = rooms.PAGE.read_text(encoding="utf-8")
    assert rooms.PICTURE.read_text(encoding="utf-8") == rooms.picture(imports), again
    assert page == rooms.with_table(page, rooms.table(imports)), again


def test_every_room_has_a_place_in_the_picture_and_a_purpose_in_the_table():
    imports = rooms.read_imports()
    drawn = {text.text for text in ElementTree.fromstring(rooms.picture(imports)).iter(f"{SVG}text")}
    assert drawn == set(imports)
    assert [row for row in rooms.table(imports).splitlines() if row.endswith("|  |")] == []


def test_an_import_inside_a_function_and_one_by_full_name_are_seen(tmp_path):
    package = tmp_path / "house"
    (package / "graphs").mkdir(parents=True)
    (package / "graphs" / "__init__.py").write_text("from ..errors import GraphError\n")
    (package / "graphs" / "ring.py").write_text("import house.world\n")
    (package / "errors.py").write_text("")
    (package / "world.py").write_text("def lazily():\n    from house import errors\n")
    assert rooms.read_imports(package) == {"graphs": {"errors", "world"}, "errors": set(), "world": {"errors"}}


def test_rooms_that_import_each_other_in_a_circle_cannot_be_drawn():
    with pytest.raises(ValueError, match="circle"):
        rooms.floors({"a": {"b"}, "b": {"a"}})


@pytest.mark.parametrize("module", [rooms, weights], ids=lambda module: module.__name__)
def test_examples_in_the_scripts_are_right(module):
    assert doctest.testmod(module).failed == 0


def test_drawn_weights_are_those_of_the_modes():
    drawn = weights.PICTURE.read_text(encoding="utf-8")
    for staleness, settled in ((0, 1.0), (1, 2 / 3), (2, 1 / 2)):
        values = weights.weights(staleness)
        assert values[-1] == pytest.approx(settled)
        assert weights.points(values) in drawn, "run: python docs/draw_weights.py"
    assert min(weights.weights("unbounded")) >= 1 / 2 - 1e-12


def test_the_drawn_round_is_what_a_round_does():
    def graph(rank: int, size: int, round: int) -> tuple[int, ...]:
        return ((1, 2), (2,), (0,))[rank]

    def rank(comm) -> tuple[float, float]:
        z = np.array([[0.0, 3.0, 9.0][comm.rank]])
        with ps.PushSum([z], graph=graph, comm=comm) as push_sum:
            push_sum.mix()
            return z.item(), push_sum.push_weight

    texts = {text.text for text in ElementTree.parse(DOCS / "images" / "round.svg").iter(f"{SVG}text")}
    for z, w in ps.testing.run(3, rank):
        assert f"z = {z:.2g}" in texts
        assert f"w = {Fraction(w).limit_denominator(10)}" in texts


@pytest.mark.parametrize("drawing", DRAWINGS, ids=lambda path: path.name)
def test_drawing_can_be_read_aloud_scaled_and_shown_on_its_own(drawing):
    root = ElementTree.parse(drawing).getroot()
    assert root.find(f"{SVG}title").text
    assert root.find(f"{SVG}desc").text
    assert "viewBox" in root.attrib
    assert "width" not in root.attrib
    text = drawing.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"<script|https?:|@import|<image", text)
    first = next(root.iter(f"{SVG}rect"))
    assert first.attrib["fill"] == "#fcfcf9", "without a ground of its own, dark text stands on a dark page"


def test_every_picture_is_on_a_page():
    pages = "\n".join(page.read_text(encoding="utf-8") for page in DOCS.rglob("*.md"))
    assert [path.name for path in sorted((DOCS / "images").iterdir()) if f"images/{path.name})" not in pages] == []


@pytest.mark.parametrize("page", ["architecture", "contributing", "releasing", "versions"])
def test_files_that_a_page_names_are_there(page):
    root = DOCS.parent
    named = re.findall(
        r"`((?!try\.)[\w./-]+(?:\.py|/))`|`((?:tests|docs|examples)/[\w/]+)`", (DOCS / f"{page}.md").read_text()
    )
    paths = [first or second for first, second in named]
    assert [path for path in paths if not any((place / path).exists() for place in (root, root / "pushsum_opt"))] == []
