"""`python forked_pipelines.py` imports everything once and forks a process for each order, a line of JSON on its input.

An order has the sources, the settings of the API and the catalog of a pipeline that reads, embeds and writes; or, as
`chat`, the number of rows and the arguments of `ChatAssets`. The process id of the fork is printed at once, and its
exit status when it has ended.
"""

import json
import os
import sys
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from epithre_beam import transforms as epithre


def run(sources: list, embed: dict, catalog: str) -> None:
    with beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"])) as pipeline:
        assets = (pipeline | epithre.ReadAssets(sources)).assets
        result = assets | epithre.EmbedAssets(embed=embed, rate_limiter="memory", cache=catalog)
        _ = result.embedded | epithre.WriteCatalog(catalog, metadata={"price": "double"}, dead=result.dead)


def chat(rows: int, **arguments: Any) -> None:
    with beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"])) as pipeline:
        asked = pipeline | beam.Create([epithre.ChatRow.of(str(row)) for row in range(rows)], reshuffle=False)
        _ = asked | epithre.ChatAssets(**arguments)


def say(line: object) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    say(f"{epithre.WriteCatalog.__name__} {epithre.ChatAssets.__name__}")  # imported
    for line in sys.stdin:
        process = os.fork()
        if not process:
            status = 1
            try:
                order = json.loads(line)
                chat(**order["chat"]) if "chat" in order else run(**order)
                status = 0
            finally:
                os._exit(status)
        say(process)
        say(os.waitpid(process, 0)[1])


if __name__ == "__main__":
    main()
