"""docs/serve.md lists every error code and every answer of the health checks."""

import ast
import re
from pathlib import Path

from epithre_beam.pipelines.serve import faults

ROOT = Path(__file__).resolve().parents[3]
DOCS = (ROOT / "docs" / "serve.md").read_text()


def raised() -> set[tuple[int, str]]:
    """Return the status and code of every `Fault` in the source."""
    found = set(faults._CODES.items())
    for file in (ROOT / "pipelines" / "serve").glob("*.py"):
        for call in ast.walk(ast.parse(file.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Fault":
                status, code = call.args[:2]
                if isinstance(status, ast.Constant) and isinstance(code, ast.Constant):
                    found.add((status.value, code.value))
    return found


def test_the_documentation_lists_every_error_code() -> None:
    section = DOCS.partition("\n### Errors\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\d{3}) \| (.*?) \|", section, re.MULTILINE)
    documented = {(int(status), code) for status, codes in rows for code in re.findall(r"`(\w+)`", codes)}
    assert documented == raised()
    assert {status for status, _ in documented} - {405, 500} == faults._MEANINGS.keys()
