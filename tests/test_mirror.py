"""Each module has a test file at the same place below tests/, or an entry here that says where it is tested."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("configs", "index", "transforms", "pipelines")

_BUILD = "tests/index/ann/test_build.py"
_STRANGERS = "tests/index/search/test_strangers.py"
_EXPORT = "tests/index/export/test_export.py"
_RUN = "tests/pipelines/jobs/test_run.py"
_SEARCH_BATCH = "tests/pipelines/jobs/test_search_batch.py"
_LOOK = "tests/pipelines/jobs/test_look.py"
_EVALUATE = "tests/pipelines/jobs/test_evaluate.py"
_INCREMENTAL = "tests/pipelines/jobs/test_incremental.py"
_API = "tests/pipelines/serve/test_api.py"
_DIALECTS = "tests/transforms/epithre/test_dialects.py"
_BACKEND = "tests/transforms/epithre/rate_limit/test_memory_backend.py"
_SERVER = "tests/transforms/epithre/emulator/test_server.py"
_ATTRIBUTES = "tests/transforms/epithre/emulator/test_attributes.py"
_CHAT = "tests/transforms/test_chat_assets.py"
_EMULATED_CHAT = "tests/transforms/epithre/emulator/test_chat.py"

REASONS: dict[str, str | tuple[str, ...]] = {
    "configs/address.py": "tests/pipelines/commands/test_trust_command.py",
    "configs/chat_schema.py": _CHAT,
    "configs/schema.py": "tests/configs/test_load.py",
    "configs/search_schema.py": _SEARCH_BATCH,
    "index/ann/ask_files.py": _BUILD,
    "index/ann/parts.py": _SEARCH_BATCH,
    "index/ann/stored_header.py": _STRANGERS,
    "index/ann/train.py": _BUILD,
    "index/ann/truth.py": "tests/index/ann/test_recall.py",
    "index/export/clip.py": _EXPORT,
    "index/export/folder.py": _EXPORT,
    "index/export/kind_source.py": _EXPORT,
    "index/export/pgvector.py": _EXPORT,
    "index/export/stock_faiss.py": _EXPORT,
    "index/local/download.py": "tests/index/local/test_cache.py",
    "index/local/local_files.py": ("tests/index/local/test_cache.py", "tests/index/local/test_verification_cache.py"),
    "index/local/private.py": ("tests/index/local/test_cache.py", "tests/index/local/test_verification_cache.py"),
    "index/search/hits.py": "data only",
    "transforms/evaluation/document.py": "data only",
    "index/storage/conditional.py": "tests/stores/test_conditions.py",
    "index/vectors/assets_file.py": _STRANGERS,
    "index/versions/files.py": "tests/index/publish/test_verify.py",
    "index/versions/holder.py": "tests/index/versions/test_lease.py",
    "index/versions/layout.py": "tests/index/vectors/test_units.py",
    "index/versions/values.py": _STRANGERS,
    "transforms/embedding/arguments.py": "tests/transforms/test_embed_assets.py",
    "transforms/chat/asker.py": _CHAT,
    "transforms/chat/engine.py": _CHAT,
    "transforms/chat/rows.py": _CHAT,
    "transforms/chat_elements.py": _CHAT,
    "transforms/embedding/access.py": ("tests/transforms/test_embed_assets.py", _CHAT),
    "transforms/epithre/emulator/calls.py": _SERVER,
    "transforms/epithre/emulator/captions.py": _ATTRIBUTES,
    "transforms/epithre/emulator/chat_wire.py": _EMULATED_CHAT,
    "transforms/epithre/emulator/fill_schema.py": _EMULATED_CHAT,
    "transforms/epithre/emulator/replies.py": _EMULATED_CHAT,
    "transforms/epithre/sender.py": (
        "tests/transforms/epithre/test_client.py",
        "tests/transforms/epithre/test_chat_client.py",
    ),
    "transforms/embedding/assets.py": (
        "tests/transforms/embedding/test_unit.py",
        "tests/transforms/test_embed_assets.py",
    ),
    "transforms/embedding/engine.py": "tests/transforms/test_embed_assets.py",
    "transforms/embedding/in_flight.py": "tests/transforms/embedding/test_unit.py",
    "transforms/fill_requests.py": "tests/transforms/test_embed_assets.py",
    "transforms/epithre/rate_limit/account.py": "tests/transforms/epithre/rate_limit/test_spending.py",
    "transforms/versions/import_model.py": "tests/transforms/embedding/test_vector_cache.py",
    "pipelines/commands/export.py": "tests/pipelines/commands/test_export_command.py",
    "pipelines/commands/quality.py": (_EVALUATE, _LOOK),
    "pipelines/commands/trust.py": "tests/pipelines/commands/test_trust_command.py",
    "pipelines/commands/serve.py": "tests/pipelines/serve/test_serve_command.py",
    "pipelines/console/options.py": "tests/pipelines/commands/test_cli.py",
    "pipelines/console/progress.py": (
        "tests/pipelines/console/test_outcomes.py",
        "tests/pipelines/console/test_pauses_logged.py",
    ),
    "pipelines/console/worker_process.py": _RUN,
    "pipelines/jobs/base.py": (_INCREMENTAL, _RUN),
    "pipelines/jobs/estimate.py": _INCREMENTAL,
    "pipelines/jobs/launch.py": _RUN,
    "pipelines/jobs/remote_jobs.py": "tests/engines/test_stopped_launcher.py",
    "pipelines/jobs/places.py": "tests/pipelines/commands/test_cli.py",
    "pipelines/jobs/search.py": (_LOOK, "tests/transforms/query/test_searcher.py"),
    "pipelines/serve/app.py": _API,
    "pipelines/serve/bodies.py": "tests/pipelines/serve/test_request_bodies.py",
    "pipelines/serve/metrics.py": _API,
    "pipelines/serve/models.py": (_API, "tests/pipelines/serve/test_bad_input.py"),
    "pipelines/serve/server.py": "tests/pipelines/serve/test_gate.py",
    "pipelines/serve/service.py": _API,
    "pipelines/serve/settings.py": "tests/pipelines/serve/test_rates.py",
    "transforms/batch_search/blocks.py": _SEARCH_BATCH,
    "transforms/batch_search/last_step.py": _SEARCH_BATCH,
    "transforms/batch_search/query_blocks.py": _SEARCH_BATCH,
    "transforms/embed_units.py": _RUN,
    "transforms/embedding/endpoint.py": (_RUN, "tests/transforms/query/test_searcher.py"),
    "transforms/embedding/lane.py": _RUN,
    "transforms/embedding/spending.py": "tests/pipelines/jobs/test_run_spending.py",
    "transforms/epithre/dialects/cohere.py": _DIALECTS,
    "transforms/epithre/dialects/epithre.py": _DIALECTS,
    "transforms/epithre/dialects/jina.py": _DIALECTS,
    "transforms/epithre/dialects/openai.py": _DIALECTS,
    "transforms/epithre/dialects/shape.py": _DIALECTS,
    "transforms/epithre/dialects/vllm.py": _DIALECTS,
    "transforms/epithre/dialects/voyage.py": _DIALECTS,
    "transforms/epithre/emulator/admission.py": _SERVER,
    "transforms/epithre/emulator/connection.py": _SERVER,
    "transforms/epithre/emulator/draw.py": _ATTRIBUTES,
    "transforms/epithre/emulator/endpoints.py": _SERVER,
    "transforms/epithre/emulator/faults.py": _SERVER,
    "transforms/epithre/emulator/fit.py": _ATTRIBUTES,
    "transforms/epithre/emulator/hash_model.py": _SERVER,
    "transforms/epithre/emulator/lexicon.py": _ATTRIBUTES,
    "transforms/epithre/emulator/measure.py": _ATTRIBUTES,
    "transforms/epithre/emulator/process.py": _SERVER,
    "transforms/epithre/emulator/settings.py": _SERVER,
    "transforms/epithre/emulator/wire.py": _SERVER,
    "transforms/epithre/rate_limit/redis_backend.py": _BACKEND,
    "transforms/evaluation/label_rows.py": "tests/transforms/evaluation/test_figures.py",
    "transforms/evaluation/labelled.py": "tests/transforms/evaluation/test_figures.py",
    "transforms/evaluation/page.py": _EVALUATE,
    "transforms/evaluation/phrases.py": "tests/transforms/evaluation/test_figures.py",
    "transforms/reports/pages.py": "tests/transforms/reports/test_report.py",
    "transforms/reports/svg.py": "tests/transforms/reports/test_plots.py",
    "transforms/search_all.py": _SEARCH_BATCH,
    "transforms/sources/buckets.py": "tests/stores/test_listing.py",
    "transforms/sources/unpreparable.py": "tests/transforms/sources/test_prepare.py",
    "transforms/plan_catalog.py": "tests/transforms/test_write_catalog.py",
    "transforms/catalog_elements.py": "tests/transforms/test_search_catalog.py",
    "transforms/search_blocks.py": "tests/transforms/test_search_catalog.py",
    "transforms/planning/incoming.py": "tests/transforms/test_write_catalog.py",
    "transforms/query/many_queries.py": "tests/transforms/test_search_catalog.py",
    "transforms/query/query_engine.py": "tests/transforms/test_search_catalog.py",
    "transforms/versions/as_before.py": _INCREMENTAL,
    "transforms/versions/begun.py": "tests/transforms/test_write_catalog.py",
    "transforms/versions/incoming_rows.py": "tests/transforms/test_write_catalog.py",
    "transforms/versions/pipeline_version.py": "tests/transforms/test_write_catalog.py",
    "transforms/versions/reused_rows.py": (_INCREMENTAL, "tests/pipelines/jobs/test_build_index.py"),
    "transforms/versions/imported_rows.py": "tests/pipelines/jobs/test_build_index.py",
    "transforms/versions/last_step.py": _RUN,
    "transforms/versions/setup.py": ("tests/pipelines/jobs/test_dataflow.py", _RUN),
    "transforms/viewing/catalog_map.py": _LOOK,
    "transforms/viewing/catalog_map_page.py": _LOOK,
    "transforms/viewing/sheet.py": _LOOK,
    "transforms/viewing/small_images.py": _LOOK,
    "transforms/write_version.py": (_RUN, "tests/pipelines/jobs/test_dataflow.py"),
}
"""For modules without a test file: the files that test them, or the reason why there is none."""

MODULES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in FOLDERS
    for path in (ROOT / folder).rglob("*.py")
    if path.name not in {"__init__.py", "__main__.py"}
)


def mirrored(module: str) -> Path:
    path = Path(module)
    return ROOT / "tests" / path.parent / f"test_{path.name}"


@pytest.mark.parametrize("module", MODULES)
def test_module_has_either_a_test_file_or_a_reason(module: str) -> None:
    assert mirrored(module).is_file() != (module in REASONS)


def test_every_reason_has_an_existing_module() -> None:
    assert sorted(set(REASONS) - set(MODULES)) == []


def test_test_files_named_in_reasons_exist() -> None:
    named = {
        name
        for reason in REASONS.values()
        for name in ((reason,) if isinstance(reason, str) else reason)
        if isinstance(reason, tuple) or name.startswith("tests/")
    }
    assert sorted(name for name in named if not (ROOT / name).is_file()) == []
