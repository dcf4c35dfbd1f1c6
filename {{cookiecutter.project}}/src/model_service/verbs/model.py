"""Verbs of models: train, models, promote, rollback, reproduce, export, forecast, serve, telemetry."""

from argparse import Namespace

from model_service import settings
from model_service.errors import UsageError
from model_service.store.connection import connect, database
from model_service.verbs import declared, put, record_forecast, say, show


def train(arguments: Namespace) -> None:
    from model_service.training import run

    if bool(arguments.overrule) != bool(arguments.reason):
        raise UsageError("--overrule RULE and --reason TEXT go together")
    overruling = run.Overruling(tuple(arguments.overrule), arguments.reason or "")
    contract = declared()
    with database() as url:
        with connect(url, "reader" if arguments.to else "loader") as connection:
            known_at = arguments.as_of or run.newest_knowledge(connection)
            asked = contract, connection, settings.root(), known_at, say, arguments.data_version, overruling
            if arguments.to:
                digest = run.write(run.make(*asked), arguments.to)
                text = f"{digest} is in {arguments.to}; nothing was judged, recorded or registered"
                return put(arguments, {"digest": digest}, text)
            result = run.train(*asked)
        record_forecast(contract, url)
    version = result["version"]
    text = "is the champion" if result["state"] == "champion" else f"waits: `promote {version} --sign-off NAME`"
    return put(arguments, result, f"model {version} ({result['digest']}) {text}; see build/report.html")


def promote(arguments: Namespace) -> None:
    from model_service import registry

    reason = f"signed off by {arguments.sign_off}: {arguments.reason}" if arguments.sign_off else arguments.reason
    by_hand = not (arguments.artifact or arguments.challenger)  # an image's model was the champion where it was built
    if by_hand and not arguments.sign_off and declared().gate.sign_off:
        raise UsageError(
            f"gate.sign_off is true in service.toml: a person answers for a champion: `promote {arguments.version}"
            " --sign-off NAME`"
        )
    with database() as url, connect(url, "loader") as connection:
        version, action = arguments.version, "promote"
        if arguments.artifact:
            version, action = registry.register(connection, arguments.artifact, arguments.reason), "import"
        if arguments.challenger:
            changed = registry.challenge(connection, version, reason)
        else:
            changed = registry.promote(connection, version, action, reason)
    state = "challenger" if arguments.challenger else "champion"
    put(arguments, {"version": version, "changed": changed},
           f"model {version} is {'now' if changed else 'already'} the {state}")  # fmt: skip


def rollback(arguments: Namespace) -> None:
    from model_service import registry

    with database() as url, connect(url, "loader") as connection:
        version = registry.rollback(connection, arguments.reason)
    put(arguments, {"version": version}, f"model {version} is the champion again; the next build will contain it")


def models_list(arguments: Namespace) -> None:
    from model_service import experiments

    show(arguments, experiments.models, experiments.models_text)


def models_runs(arguments: Namespace) -> None:
    from model_service import experiments

    show(arguments, experiments.runs, experiments.runs_text)


def models_show(arguments: Namespace) -> None:
    from model_service import experiments

    show(arguments, lambda connection: experiments.model(connection, arguments.model), experiments.model_text)


def models_diff(arguments: Namespace) -> None:
    from model_service import experiments

    pair = arguments.one, arguments.other
    show(arguments, lambda connection: experiments.difference(connection, *pair), experiments.difference_text)


def reproduce(arguments: Namespace) -> int:
    from model_service.training import reproduce

    with database() as url, connect(url) as connection:
        found = reproduce.reproduce(connection, url, settings.root(), arguments.model, arguments.bundle, say)
    put(arguments, found, reproduce.text(found))
    return 0 if found["holds"] else 1


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
            registry.record(connection, [body])
    put(arguments, body, forecasting.table(body))


def serve(_: Namespace) -> int:
    from model_service.serving.bento import launch

    return int(launch())


def telemetry(arguments: Namespace) -> None:
    from model_service.telemetry.audit import install

    result = install(declared())
    put(arguments, result, f"index template {result} is installed")
