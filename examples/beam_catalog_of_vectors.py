"""Make a catalog of vectors that you have, here of a file of JSON lines with id, text and vector.

python beam_catalog_of_vectors.py vectors.jsonl catalog --runner=FnApiRunner
"""

import argparse
import json
import sys

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from epithre_beam import transforms as epithre


def to_row(line: str) -> beam.Row:
    item = json.loads(line)
    return beam.Row(id=item["id"], kind="text", text=item["text"], embedding=item["vector"])


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("vectors")
    parser.add_argument("catalog")
    options, beam_options = parser.parse_known_args(arguments)
    with beam.Pipeline(options=PipelineOptions(beam_options)) as p:
        rows = p | beam.io.ReadFromText(options.vectors) | beam.Map(to_row)
        result = rows | epithre.WriteCatalog(options.catalog)
        _ = result.outcome | beam.Map(lambda outcome: print(f"{outcome.embedded} rows in {outcome.version}"))
        _ = result.dead | beam.Map(lambda dead: print(f"{dead.id}: {dead.detail}"))


if __name__ == "__main__":
    main(sys.argv[1:])
