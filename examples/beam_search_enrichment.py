"""Add to each question of a file the assets of a catalog that fit best.

    python beam_search_enrichment.py questions.jsonl catalog enriched.jsonl --runner=FnApiRunner

Each line of `questions.jsonl` is an object with id and text; each line written has also `found`, best first.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from epithre_beam import transforms as epithre


def join(element: tuple[str, dict[str, Iterable[Any]]]) -> Iterator[str]:
    _, grouped = element
    hits = sorted(grouped["hits"], key=lambda hit: hit.rank)
    for question in grouped["questions"]:
        found = [{"id": hit.asset_id, "score": round(hit.score, 4)} for hit in hits]
        yield json.dumps({**question, "found": found})


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("questions")
    parser.add_argument("catalog")
    parser.add_argument("enriched")
    parser.add_argument("-k", type=int, default=3)
    options, beam_options = parser.parse_known_args(arguments)
    with beam.Pipeline(options=PipelineOptions(beam_options)) as p:
        questions = p | beam.io.ReadFromText(options.questions) | beam.Map(json.loads)
        queries = questions | beam.Map(lambda question: epithre.Query.of_text(question["id"], question["text"]))
        result = queries | epithre.SearchCatalog(options.catalog, k=options.k)
        both = {
            "questions": questions | "ById" >> beam.Map(lambda question: (question["id"], question)),
            "hits": result.hits | "ByQuery" >> beam.Map(lambda hit: (hit.query_id, hit)),
        }
        lines = both | beam.CoGroupByKey() | beam.FlatMap(join)
        _ = lines | beam.io.WriteToText(options.enriched, shard_name_template="")


if __name__ == "__main__":
    main(sys.argv[1:])
