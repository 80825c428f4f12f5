"""The demo and the guide's three patterns find the right assets, in both languages."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import Place

TOP = Path(__file__).parents[3]
EXAMPLES = TOP / "examples"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    place = Place(tmp_path_factory.mktemp("demo"))
    done = place.cli("demo", "demo", "--images", "150", key=None)
    assert done.returncode == 0, done.stderr
    return place, done.stdout


def test_demo_hits_are_correct_in_english_and_indonesian(demo):
    _, output = demo
    blocks = output.split("\n\n")
    for sentence, name in (
        ("sepeda merah", "red-bicycle"),
        ("an orange cat", "orange-cat"),
        ("bintang kuning di malam hari", "yellow-star-at-night"),
        ("a blue fish in the sea", "blue-"),
        ("bunga merah muda berbintik", "pink-dotted-flower"),
        ("a brown house on green grass", "brown-house-on-grass"),
    ):
        block = next(block for block in blocks if sentence in block.splitlines()[0])
        rows = [line for line in block.splitlines() if "image" in line]
        assert all(name in row for row in rows[:2]), block


def test_the_demo_writes_a_page_with_images(demo):
    place, _ = demo
    assert (place.folder / "demo" / "results.html").read_text().count("<img") >= 30


def run_example(place, name, *arguments):
    command = [sys.executable, EXAMPLES / name, *arguments]
    done = subprocess.run(command, cwd=place.folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_pattern_a_finds_images_by_description(demo):
    lines = run_example(demo[0], "pattern_a_text_to_image.py", "demo/job.yaml", "sepeda merah", "kucing oren")
    assert all("red-bicycle" in line for line in lines[1:5])
    assert all("orange-" in line and "cat" in line for line in lines[7:11])


def test_pattern_b_finds_texts_by_image(demo):
    image = next((demo[0].folder / "demo" / "images").glob("0000-*.jpg"))
    lines = run_example(demo[0], "pattern_b_image_to_text.py", "demo/catalog", image)
    assert "red bicycle" in lines[1] or "sepeda merah" in lines[1]


def test_pattern_c_finds_both_kinds(demo):
    lines = run_example(demo[0], "pattern_c_both_kinds.py", "demo/catalog", "an orange cat")
    quota = lines[lines.index("merged by quota") + 1 :]
    assert [line.split()[1] for line in quota].count("image") == 3
    assert all("orange" in line or "oren" in line for line in quota[:4])


def test_the_program_in_the_readme_runs_unchanged(demo):
    blocks = re.findall(r"```python\n(.*?)```", (TOP / "README.md").read_text("utf-8"), re.DOTALL)
    (program,) = (block for block in blocks if "open_catalog" in block)
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=demo[0].folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "{'image': 150, 'text': 150}"
    assert all("red-bicycle" in line and "'lang': 'id'" in line for line in lines[1:2])
    assert len(lines) == 4
