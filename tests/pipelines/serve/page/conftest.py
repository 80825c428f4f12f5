"""One catalog, one server and one browser for all tests of the page."""

import shutil

import pytest
from playwright.sync_api import sync_playwright

from .page_scene import cli, served, visiting, write_job, write_sources


@pytest.fixture(scope="session")
def scene(tmp_path_factory):
    """A folder with a catalog of two versions; the first lacks the last texts."""
    folder = tmp_path_factory.mktemp("page")
    write_sources(folder)
    lines = (folder / "texts.csv").read_text("utf-8").splitlines()
    (folder / "fewer.csv").write_text("\n".join(lines[:-9]) + "\n", "utf-8")
    cli(folder, "run", write_job(folder, "fewer.csv"), "--quiet")
    cli(folder, "run", write_job(folder, "texts.csv"), "--quiet")
    return folder


@pytest.fixture(scope="session")
def server(scene):
    with served(scene / "catalog", "--rate", 0, "--max-upload-mb", 1) as running:
        yield running


@pytest.fixture(scope="module")
def browser():
    """Per module, because `asyncio.run` fails in the whole process while Playwright runs."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def visit(browser, server):
    with visiting(browser, server) as visited:
        yield visited
