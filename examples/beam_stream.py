"""Embed text files as they appear in a folder, in an endless pipeline.

    pip install -c constraints.txt '.[beam]'
    export EPITHRE_KEY=…
    python examples/beam_stream.py inbox vectors.jsonl --max-buffering-s 5 --runner=PrismRunner

Each file waits at most `--max-buffering-s` for others to share its request. Then a line with its name and vector is
appended to the output. The pipeline runs until it is stopped, or for `--seconds`. It needs a runner that streams, such
as Prism, Flink or Dataflow; `FnApiRunner` does not wait for time to pass and ends early. On several workers, replace
`append` by a sink of Beam, such as a vector database. All other arguments are options of Beam. `--base-url emulator`
tries it without a key.
"""

import argparse
import json
from pathlib import Path

import apache_beam as beam
from apache_beam.io.fileio import MatchContinuously, ReadableFile, ReadMatches
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Timestamp

from epithre_beam import transforms as epithre


def to_asset(file: ReadableFile) -> epithre.Asset:
    return epithre.Asset.of_text(Path(file.metadata.path).name, file.read_utf8())


def append(asset: epithre.EmbeddedAsset, path: str) -> None:
    line = json.dumps({"file": asset.id, "vector": list(asset.embedding)})
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("output")
    parser.add_argument("--base-url")
    parser.add_argument("--max-buffering-s", type=float, default=5.0)
    parser.add_argument("--interval-s", type=float, default=1.0, help="how often the folder is listed")
    parser.add_argument("--seconds", type=float, help="how long the pipeline runs; by default for ever")
    options, beam_options = parser.parse_known_args()
    now = Timestamp.now()
    times = {"start_timestamp": now, "stop_timestamp": now + options.seconds if options.seconds else MAX_TIMESTAMP}
    with beam.Pipeline(options=PipelineOptions([*beam_options, "--streaming"])) as p:
        files = p | MatchContinuously(f"{options.folder}/*.txt", interval=options.interval_s, **times) | ReadMatches()
        assets = files | beam.Map(to_asset).with_output_types(epithre.Asset)
        result = assets | epithre.EmbedAssets(base_url=options.base_url, max_buffering_s=options.max_buffering_s)
        _ = result.embedded | "Append" >> beam.Map(append, options.output)
        _ = result.dead | "PrintDead" >> beam.Map(print)


if __name__ == "__main__":
    main()
