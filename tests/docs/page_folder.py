"""A folder in which the blocks of a page run one after the other, as a reader would run them."""

import json
import os
import re
import shlex
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import yaml

from epithre_beam.configs import load_config
from epithre_beam.configs.search_schema import SearchJob
from epithre_beam.transforms.epithre.emulator.settings import EmulatorSettings

from ..ports import free_port
from .pages import Block

_SERVER = re.compile(r"epithre-beam (?:serve|emulator)\b")
_NAMED = re.compile(r"# ([\w-]+\.yaml)\n")
_PORTS = ("8000", "8080")
"""What `serve` and `emulator` listen on; each page has free ones in their place."""
_SEARCH_SECTIONS = {"output", "queries", "vectors", "assets", "search"}
_PRELUDE = """set -euo pipefail
curl() { command curl --fail-with-body --show-error "$@"; }
"""
_TIMEOUT_S = 150


class PageFolder:
    """Runs blocks; files, exported variables and servers of a block remain for the next ones of its page.

    Unlike in a reader's folder, ports are free ones, and a job without an address uses the emulator.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self._environment = environment
        self._ports = {port: str(free_port()) for port in _PORTS}
        self._servers: list[subprocess.Popen[str]] = []
        self._output = ""

    def close(self) -> None:
        for server in self._servers:
            server.terminate()
        for server in self._servers:
            server.communicate()
        self._servers.clear()

    def run(self, block: Block) -> None:
        """Raises AssertionError, with what was printed, where the block does not do what it shows."""
        match block.language:
            case "bash":
                self._run_shell(block)
            case "text":
                self._compare(block)
            case "python":
                self._run([sys.executable, "-c", block.text], block)
            case "yaml":
                self._check_yaml(block)
            case "json":
                json.loads(block.text)
            case other:
                raise AssertionError(f"{block}: {other!r} cannot be run; put `<!-- not run: WHY -->` before it")

    def _run(self, command: list[str], block: Block) -> None:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        self._output += done.stdout
        assert done.returncode == 0, f"{block} ended with {done.returncode}:\n{block.text}\n{done.stdout}"

    def _run_shell(self, block: Block) -> None:
        self._output = ""
        text = block.text
        for shown, port in self._ports.items():
            text = re.sub(rf"\b{shown}\b", port, text)
        script = ""
        for line in re.sub(r"\\\n\s*", "", text).splitlines(keepends=True):
            if _SERVER.match(line):
                self._run_script(script, block)
                script = ""
                self._serve(line, block)
            else:
                script += line
        self._run_script(script, block)

    def _run_script(self, script: str, block: Block) -> None:
        if not script.strip():
            return
        kept = self.folder / ".environment"
        keep = f"\n{shlex.quote(sys.executable)} -c 'import json, os; print(json.dumps(dict(os.environ)))' > {kept}\n"
        self._run(["bash", "-c", _PRELUDE + script + keep], block)
        self._environment = json.loads(kept.read_text("utf-8"))

    def _serve(self, line: str, block: Block) -> None:
        """Starts a server in the place of the one before, and returns when it says that it answers."""
        self.close()
        if line.startswith("epithre-beam serve"):
            line = line.replace("epithre-beam serve", f"epithre-beam serve --port {self._ports['8000']}", 1)
        server = subprocess.Popen(
            ["bash", "-c", f"exec {line}"],
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._servers.append(server)
        assert server.stdout is not None
        late = threading.Timer(_TIMEOUT_S, server.kill)
        late.start()
        for said in server.stdout:
            self._output += said
            if "http://127.0.0.1:" in said:
                break
        late.cancel()
        assert "http://127.0.0.1:" in self._output, f"{block} does not serve:\n{line}\n{self._output}"
        # What it says later must not fill the pipe.
        threading.Thread(target=server.stdout.read, daemon=True).start()

    def _compare(self, block: Block) -> None:
        """The lines of the block stand in the last shell block's output, in order; `…` stands for anything."""
        output = self._output
        for shown, port in self._ports.items():
            output = output.replace(port, shown)
        lines = iter([" ".join(line.split()) for line in output.splitlines()])
        for wanted in filter(None, (" ".join(line.split()) for line in block.text.splitlines())):
            pattern = re.compile(".*".join(map(re.escape, wanted.split("…"))))
            assert any(pattern.search(line) for line in lines), f"{block}: {wanted!r} is not printed, but:\n{output}"

    def _check_yaml(self, block: Block) -> None:
        """A whole job, or the sections of one; the settings of an emulator; written where it has a name."""
        data: dict[str, Any] = yaml.safe_load(block.text)
        named = _NAMED.match(block.text)
        path = self.folder / (named[1] if named else ".fragment.yaml")
        if data.keys() <= set(EmulatorSettings.model_fields):
            EmulatorSettings.model_validate(data)
        elif data.keys() & _SEARCH_SECTIONS:
            least = {"catalog": "catalog", "output": "found", "assets": [{"kind": "image"}]}
            SearchJob.model_validate(data if named else least | data)
        else:
            least = {"catalog": "catalog", "sources": [{"kind": "text", "files": "texts"}]}
            job = data if named else least | data
            embed = job.get("embed", {})
            if not embed.keys() & {"base_url", "dialect"}:
                job = job | {"embed": embed | {"base_url": "emulator"}}
            path.write_text(yaml.safe_dump(job), "utf-8")
            load_config(path, ())
            return
        path.write_text(block.text, "utf-8")


def environment(programs: Path | None = None) -> dict[str, str]:
    """That of this process, with `programs` and the installed ones first; nothing is sent to the real API."""
    first = [str(programs)] if programs else []
    return os.environ | {
        "PATH": os.pathsep.join([*first, str(Path(sys.executable).parent), os.environ["PATH"]]),
        "EPITHRE_KEY": "no-key",
        "COLUMNS": "140",
        "MPLBACKEND": "agg",
    }
