"""Every fenced block of README.md and docs/*.md runs on the demo's data, in order, or says why not.

A block is not run if the comment `<!-- not run: WHY -->` stands right before it. A `text` block is what the shell block
before it prints, with `…` for what may differ. A YAML block whose first line is `# NAME.yaml` becomes that file.
"""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from .forked_command import ForkedCommand
from .page_folder import PageFolder, environment
from .pages import USER_PAGES, Block, blocks_of, name_of

IMAGES = 60
RUNNABLE = {"bash", "text", "python", "yaml", "json"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages speak of: `demo/`; `job.yaml` with `catalog`, of two versions; `photos`, `captions.csv`, …"""
    folder = tmp_path_factory.mktemp("data")

    def cli(*arguments: str) -> None:
        done = subprocess.run(
            ["epithre-beam", *arguments],
            cwd=folder,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}\n{done.stderr}"

    cli("demo", "demo", "--images", str(IMAGES))
    for name in ("job.yaml", "captions.csv"):
        shutil.copy(folder / "demo" / name, folder)
    for name, copy in (("catalog", "catalog"), ("images", "images"), ("images", "photos")):
        shutil.copytree(folder / "demo" / name, folder / copy)
    cli("index", "catalog", "--set", "index.target_recall=0.97", "--quiet")
    (folder / "old-vectors").mkdir()
    for number, file in enumerate(sorted((folder / "demo" / "catalog").glob("versions/*/vectors/**/*.parquet"))):
        table = pq.read_table(file, columns=["asset_id", "kind", "embedding"]).rename_columns(["id", "kind", "vector"])
        pq.write_table(table, folder / "old-vectors" / f"{number}.parquet")
    return folder


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("programs")
    command = ForkedCommand(folder)
    yield folder
    command.close()


@pytest.fixture
def page_folder(data: Path, programs: Path, tmp_path: Path) -> Iterator[PageFolder]:
    folder = PageFolder(shutil.copytree(data, tmp_path / "page"), environment(programs))
    yield folder
    folder.close()


def has_own_job(blocks: list[Block]) -> bool:
    return any(block.text.startswith("# job.yaml\n") for block in blocks)


@pytest.mark.slow
@pytest.mark.timeout(900)  # a page has a dozen commands, and the first one makes the data of all
@pytest.mark.parametrize("page", USER_PAGES, ids=name_of)
def test_the_blocks_of_a_page_run_in_order(page: Path, page_folder: PageFolder) -> None:
    blocks = [block for block in blocks_of(page) if block.reason is None]
    if has_own_job(blocks):
        shutil.rmtree(page_folder.folder / "catalog")
    for block in blocks:
        page_folder.run(block)


@pytest.mark.parametrize("page", USER_PAGES, ids=name_of)
def test_a_block_has_a_language_that_is_run_or_says_why_it_is_not(page: Path) -> None:
    silent = [str(b) for b in blocks_of(page) if b.reason is None and b.language not in RUNNABLE]
    assert silent == [], "put `<!-- not run: WHY -->` right before it, or name a language"


def test_a_reason_stands_for_a_block_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- not run: needs\n     Flink -->\n```bash\nflink\n```\n\n```bash\ntrue\n```\n", "utf-8")
    assert [block.reason for block in blocks_of(page)] == ["needs Flink", None]
