"""Verbs of models: train, promote, rollback, export, forecast, serve, telemetry."""

from argparse import Namespace

from model_service import settings
from model_service.store.connection import connect, database
from model_service.verbs import declared, put, record_forecast, say


def train(arguments: Namespace) -> None:
    from model_service.training import run

    contract = declared()
    with database() as url:
        with connect(url, "loader") as connection:
            known_at = arguments.as_of or run.newest_knowledge(connection)
            result = run.train(contract, connection, settings.root(), known_at, say)
        record_forecast(contract, url)
    put(arguments, result, f"model {result['version']} ({result['digest']}) is the champion; see build/report.md")


def promote(arguments: Namespace) -> None:
    from model_service import registry

    with database() as url, connect(url, "loader") as connection:
        if arguments.artifact:
            version, action = registry.register(connection, arguments.artifact), "import"
        else:
            version, action = arguments.version, "promote"
        changed = registry.promote(connection, version, action, arguments.reason)
    put(arguments, {"version": version, "changed": changed},
           f"model {version} is {'now' if changed else 'already'} the champion")  # fmt: skip


def rollback(arguments: Namespace) -> None:
    from model_service import registry

    with database() as url, connect(url, "loader") as connection:
        version = registry.rollback(connection, arguments.reason)
    put(arguments, {"version": version}, f"model {version} is the champion again; the next build will contain it")


def export(arguments: Namespace) -> None:
    from model_service import registry

    with database() as url, connect(url) as connection:
        found = registry.export(connection, arguments.folder)
    result = {"version": found.version, "digest": found.digest}
    put(arguments, result, f"model {found.version} ({found.digest}) is in {arguments.folder}")


def forecast(arguments: Namespace) -> None:
    from model_service import forecasting, registry

    role = "loader" if arguments.record else "reader"
    with database() as url, connect(url, role) as connection:  # type: ignore[arg-type]
        body = forecasting.by_champion(
            declared(), connection, arguments.as_of, arguments.data_version, arguments.horizon
        )
        if arguments.record:
            registry.record(connection, body)
    put(arguments, body, forecasting.table(body))


def serve(_: Namespace) -> int:
    from model_service.serving.bento import launch

    return int(launch())


def telemetry(arguments: Namespace) -> None:
    from model_service.telemetry.audit import install

    result = install(declared())
    put(arguments, result, f"index template {result} is installed")
