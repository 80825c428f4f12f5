"""Bring a catalog up to date with what changed since yesterday.

    python beam_nightly_upsert.py changed.csv gone.csv s3://bucket/catalog --runner=FnApiRunner

`changed.csv` has the columns sku and title; `gone.csv` has the column sku. All other assets of the catalog stay, with
their vectors. If the pipeline is killed, the catalog is as before, and the next attempt pays only for what was on its
way.
"""

import argparse
import sys

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from epithre_beam import transforms as epithre


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("changed")
    parser.add_argument("gone")
    parser.add_argument("catalog")
    parser.add_argument("--base-url")
    options, beam_options = parser.parse_known_args(arguments)
    source = {"kind": "text", "table": options.changed, "id": "sku", "text": "title"}
    with beam.Pipeline(options=PipelineOptions(beam_options)) as p:
        gone = p | beam.io.ReadFromText(options.gone, skip_header_lines=1) | beam.Map(lambda sku: ("text", sku))
        assets = (p | epithre.ReadAssets(source)).assets
        result = assets | epithre.EmbedAssets(base_url=options.base_url, cache=options.catalog)
        written = result.embedded | epithre.WriteCatalog(
            options.catalog, mode="upsert", delete=gone, dead=result.dead, job="nightly", fail_if_held=True
        )
        _ = written.outcome | beam.Map(
            lambda o: print(f"{o.embedded} embedded, {o.reused} reused, {o.deleted} removed")
        )


if __name__ == "__main__":
    main(sys.argv[1:])
