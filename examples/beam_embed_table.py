"""Embed a table of products in a pipeline of your own: vectors as Parquet, failed products as JSON lines.

    pip install -c constraints.txt '.[beam]'
    export EPITHRE_KEY=…
    python examples/beam_embed_table.py products.csv out --requests-per-minute 600

The table (csv, jsonl or parquet) has the columns `sku`, `title` and `price`. Afterwards `out/vectors` has the vectors
with their prices, and `out/dead.jsonl` the products without a vector, each with its reason. All other arguments are
options of Beam, such as `--runner=PrismRunner`. `--base-url emulator` tries it without a key.
"""

import argparse
import json

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from epithre_beam import transforms as epithre


def to_line(dead: epithre.DeadAsset) -> str:
    return json.dumps(dead._asdict())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table")
    parser.add_argument("folder")
    parser.add_argument("--base-url")
    parser.add_argument("--requests-per-minute", type=int)
    options, beam_options = parser.parse_known_args()
    columns = {"id": "sku", "text": "title", "metadata": {"price": "double"}}
    with beam.Pipeline(options=PipelineOptions(beam_options)) as p:
        products = p | epithre.ReadAssets({"kind": "text", "table": options.table, **columns})
        result = products.assets | epithre.EmbedAssets(
            base_url=options.base_url, requests_per_minute=options.requests_per_minute
        )
        _ = result.embedded | epithre.WriteVectors(f"{options.folder}/vectors", metadata={"price": "double"})
        lines = result.dead | beam.Map(to_line)
        _ = lines | beam.io.WriteToText(f"{options.folder}/dead", ".jsonl", shard_name_template="")


if __name__ == "__main__":
    main()
