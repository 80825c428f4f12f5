"""The commands that show the quality of a catalog: `evaluate` with labelled queries, `look` for visual checks."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ...configs.address import ApiAddress
from ...configs.caller import COMMAND
from ...configs.errors import ConfigError
from ...configs.words import of_count
from ..console.documents import json_text
from ..console.options import ApiKeyEnv, BaseUrl, CatalogUrl, Json, check_file
from ..console.screen import Screen

_LONGEST_LIST = 100
_MERGES = {"score", "quota", "standardised"}


def _lengths(words: str) -> tuple[int, ...]:
    try:
        ks = sorted({int(word) for word in words.split(",")})
    except ValueError:
        ks = [0]
    if not 1 <= ks[0] <= ks[-1] <= _LONGEST_LIST:
        raise ConfigError(f"-k must be whole numbers from 1 to {_LONGEST_LIST}, as in 1,5,10, got {words!r}.")
    return tuple(ks)


def evaluate(
    catalog: CatalogUrl,
    pairs: Annotated[Path, typer.Option(metavar="FILE", help="A table of labelled pairs: CSV, JSON Lines or Parquet.")],
    against: Annotated[str | None, typer.Option(metavar="CATALOG", help="Compare with this catalog.")] = None,
    version: Annotated[str | None, typer.Option(help="A version of CATALOG. Default: the current version.")] = None,
    against_version: Annotated[
        str | None,
        typer.Option(metavar="VERSION", help="Compare with this version of --against or, without it, of CATALOG."),
    ] = None,
    k: Annotated[str, typer.Option("-k", metavar="K,…", help="Numbers of hits to evaluate, up to 100.")] = "1,5,10",
    merge: Annotated[
        str | None, typer.Option(help="Also evaluate merged hits of both kinds: score, quota or standardised.")
    ] = None,
    confidence: Annotated[float, typer.Option(help="Confidence level of the intervals.")] = 0.95,
    drop_unknown: Annotated[
        bool, typer.Option("--drop-unknown", help="Skip pairs whose query or asset is in none of the versions.")
    ] = False,
    base_url: BaseUrl = None,
    api_key_env: ApiKeyEnv = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a page with plots and the failed queries to this file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure how well CATALOG answers labelled queries, with separate errors of the model and of the index."""
    if merge is not None and merge not in _MERGES:
        raise ConfigError(f"--merge must be score, quota or standardised, got {merge!r}.")
    if not 0 < confidence < 1:
        raise ConfigError(f"--confidence must be between 0 and 1, such as 0.95, got {confidence:g}.")
    check_file("--html", html)
    if html is not None:  # fail before anything is sent
        import matplotlib  # noqa: F401
    from ..jobs.evaluate import CatalogPlace, Question, print_evaluation, write_page
    from ..jobs.evaluate import evaluate as evaluate_catalogs

    question = Question(
        pairs=pairs,
        ks=_lengths(k),
        merge=merge,  # type: ignore[arg-type]  # checked above
        confidence=confidence,
        drop_unknown=drop_unknown,
        address=ApiAddress(base_url=base_url, api_key_env=api_key_env, caller=COMMAND),
    )
    places = [CatalogPlace(catalog, version)]
    if against is not None or against_version is not None:
        places.append(CatalogPlace(against or catalog, against_version))
    document = evaluate_catalogs(places, question)
    if html is not None:
        write_page(html, document)
    if as_json:
        sys.stdout.write(json_text(document) + "\n")
    else:
        print_evaluation(Screen(), document)


def look(
    catalog: CatalogUrl,
    text: Annotated[list[str] | None, typer.Option(help="A text query. Repeatable.")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="The file of an image query. Repeatable.")] = None,
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a contact sheet of the hits: out.png or out.html.")
    ] = None,
    k: Annotated[int, typer.Option("-k", help="Number of hits per query.")] = 8,
    kind: Annotated[list[str] | None, typer.Option(help="Search only `image` or `text`.")] = None,
    merge: Annotated[
        str, typer.Option(help="How hits of both kinds are merged: score, quota or standardised.")
    ] = "score",
    map_: Annotated[
        Path | None, typer.Option("--map", metavar="FILE", help="Write a two-dimensional map of the catalog: map.html.")
    ] = None,
    points: Annotated[int, typer.Option(help="--map: maximum number of assets.")] = 5000,
    align: Annotated[
        bool, typer.Option("--align/--no-align", help="--map: subtract the mean of each kind first.")
    ] = True,
    seed: Annotated[int, typer.Option(help="--map: seed of the sample and of the projection.")] = 0,
    base_url: BaseUrl = None,
    api_key_env: ApiKeyEnv = None,
) -> None:
    """Write a contact sheet of the hits of some queries, or a map of the assets of CATALOG."""
    queries = [*(text or []), *(image or [])]
    if sheet is None and map_ is None:
        raise ConfigError("look: there is nothing to write. Give --sheet FILE.png with a query, or --map FILE.html.")
    if map_ is not None and map_.suffix.lower() not in {".html", ".htm"}:
        raise ConfigError(f"--map must name an HTML page, such as map.html, got {str(map_)!r}.")
    if (sheet is not None) != bool(queries):
        raise ConfigError(
            "look: --sheet and queries require each other. Give --sheet FILE with --text TEXT or --image FILE."
        )
    if sheet is not None and sheet.suffix.lower() not in {".png", ".html"}:
        raise ConfigError(f"--sheet must end in .png or .html, got {str(sheet)!r}.")
    if not 1 <= k <= _LONGEST_LIST:
        raise ConfigError(f"-k must be from 1 to {_LONGEST_LIST}, got {k}.")
    if merge not in _MERGES:
        raise ConfigError(f"--merge must be score, quota or standardised, got {merge!r}.")
    for name in kind or []:
        if name not in {"image", "text"}:
            raise ConfigError(f"--kind must be image or text, got {name!r}.")
    if not 1 <= points <= 20_000:
        raise ConfigError(f"--points must be from 1 to 20000, got {points}.")
    if not 0 <= seed < 1 << 32:
        raise ConfigError(f"--seed must be from 0 to {(1 << 32) - 1}, got {seed}.")
    check_file("--sheet", sheet)
    check_file("--map", map_)
    from ..jobs.look import make_map, make_sheet
    from ..jobs.search import named_queries

    if sheet is not None:
        make_sheet(
            catalog,
            sheet,
            named_queries(text or [], image or []),
            k=k,
            kinds=kind or None,  # type: ignore[arg-type]  # checked above
            merge=merge,  # type: ignore[arg-type]  # checked above
            address=ApiAddress(base_url=base_url, api_key_env=api_key_env, caller=COMMAND),
        )
        sys.stdout.write(f"{sheet}: {of_count(len(queries), 'query', 'queries')}\n")
    if map_ is not None:
        sys.stdout.write(make_map(catalog, map_, points=points, is_aligned=align, seed=seed) + "\n")
