"""Verbs of models: train, models, promote, rollback, reproduce, export, forecast, serve, telemetry."""

from argparse import Namespace
from datetime import UTC, datetime, time
from pathlib import Path
from typing import Any

from model_service import settings
from model_service.contract import Contract
from model_service.errors import ServiceError, UsageError
from model_service.store.connection import Connection, connect, database
from model_service.verbs import load_contract, print_result, record_forecast, say


def train(arguments: Namespace) -> None:
    from model_service.training import run

    if bool(arguments.overrule) != bool(arguments.reason):
        raise UsageError("--overrule RULE and --reason TEXT go together")
    overruling = run.Overruling(tuple(arguments.overrule), arguments.reason or "")
    contract = load_contract()
    with database() as url:
        told, needed = _reasons(arguments, contract, url) if arguments.if_needed else ({}, True)
        if not needed:
            return print_result(arguments, told | {"trained": False}, "no reason to train again")
        with connect(url, "reader" if arguments.to else "loader") as connection:
            known_at = arguments.as_of or run.newest_knowledge(connection)
            asked = contract, connection, settings.root(), known_at, say, arguments.data_version, overruling
            if arguments.to:
                digest = run.write(run.make(*asked), arguments.to)
                text = f"{digest} is in {arguments.to}; nothing was judged, recorded or registered"
                return print_result(arguments, {"digest": digest}, text)
            result = run.train(*asked)
        record_forecast(contract, url)
    version = result["version"]
    text = "is the champion" if result["state"] == "champion" else f"waits: `promote {version} --sign-off NAME`"
    return print_result(arguments, told | result, f"model {version} ({result['digest']}) {text}; see build/report.html")


def _reasons(arguments: Namespace, contract: Contract, url: str) -> tuple[dict[str, Any], bool]:
    """For the result, and whether one of them holds."""
    from model_service import retrain

    if arguments.as_of or arguments.to:
        raise UsageError("--if-needed looks at what is known now: leave out --as-of and --to")
    with connect(url) as connection:
        found = retrain.reasons(contract, connection, datetime.now(UTC))
    for one in found:
        say(str(one))
    return {"reasons": [vars(one) for one in found]}, any(one.train for one in found)


def promote(arguments: Namespace) -> None:
    from model_service import artifact, registry

    if arguments.no_challenger:
        if arguments.challenger:
            raise UsageError("--challenger makes one, --no-challenger retires it: leave one of them out")
        return _withdraw(arguments)
    reason = f"signed off by {arguments.sign_off}: {arguments.reason}" if arguments.sign_off else arguments.reason
    by_hand = not (arguments.artifact or arguments.challenger)  # an image's model was the champion where it was built
    if by_hand and not arguments.sign_off and load_contract().gate.sign_off:
        raise UsageError(
            f"gate.sign_off is true in service.toml: a person answers for a champion: `promote {arguments.version}"
            " --sign-off NAME`"
        )
    with database() as url, connect(url, "loader") as connection:
        version, action = arguments.version, "promote"
        if arguments.artifact:
            version, action = registry.register(connection, arguments.artifact, arguments.reason), "import"
        if arguments.challenger:
            changed = registry.set_challenger(connection, version, reason)
        else:
            changed = registry.promote(connection, version, action, reason)
        if arguments.artifact and not arguments.challenger:
            _in_the_shadow(connection, arguments.artifact / artifact.CHALLENGER, reason)
    state = "challenger" if arguments.challenger else "champion"
    return print_result(arguments, {"version": version, "changed": changed},
               f"model {version} is {'now' if changed else 'already'} the {state}")  # fmt: skip


def _in_the_shadow(connection: Connection, folder: Path, reason: str) -> None:
    """The challenger is the one in `folder`, or none; one that is damaged keeps no champion from being promoted."""
    from model_service import registry

    if not folder.is_dir():
        registry.retire_challenger(connection, reason)
        return
    try:
        registry.set_challenger(connection, registry.register(connection, folder, reason), reason)
    except ServiceError as error:
        say(f"no challenger: {error}")


def _withdraw(arguments: Namespace) -> None:
    from model_service import registry

    with database() as url, connect(url, "loader") as connection:
        version = registry.retire_challenger(connection, arguments.reason)
    text = f"model {version} is the challenger no more" if version else "no model is the challenger"
    print_result(arguments, {"version": version, "changed": version is not None}, text)


def rollback(arguments: Namespace) -> None:
    from model_service import registry

    with database() as url, connect(url, "loader") as connection:
        version = registry.rollback(connection, arguments.reason)
    text = f"model {version} is the champion again; the next build will contain it"
    print_result(arguments, {"version": version}, text)


def reproduce(arguments: Namespace) -> int:
    from model_service.training import reproduce

    with database() as url, connect(url) as connection:
        found = reproduce.reproduce(connection, url, settings.root(), arguments.model, arguments.bundle, say)
    print_result(arguments, found, reproduce.text(found))
    return 0 if found["holds"] else 1


def export(arguments: Namespace) -> None:
    from model_service import registry

    with database() as url, connect(url) as connection:
        found = registry.export(connection, arguments.folder)
    result = {"version": found.version, "digest": found.digest}
    print_result(arguments, result, f"model {found.version} ({found.digest}) is in {arguments.folder}")


def forecast(arguments: Namespace) -> None:
    from model_service import forecasting, registry

    if arguments.all or arguments.to or arguments.out:
        return _forecast_all(arguments)
    role = "loader" if arguments.record else "reader"
    with database() as url, connect(url, role) as connection:  # type: ignore[arg-type]
        contract, model = load_contract(), forecasting.champion(connection)
        clocks = arguments.as_of, arguments.data_version
        body = forecasting.answer(contract, model, connection, *clocks, arguments.horizon)
        if arguments.record:
            registry.record(connection, [body])
    say(forecasting.unlike(contract, model.card, model.version))
    return print_result(arguments, body, forecasting.table(body))


def _forecast_all(arguments: Namespace) -> None:
    """One row for each day that something became known, and horizon: appended to `forecast`, or written."""
    from model_service import batch, forecasting, registry

    to, out = arguments.to, arguments.out
    if not (arguments.all and to) or arguments.record:
        raise UsageError("--all and --to FORMAT go together, without --record; --out FILE goes with csv and parquet")
    if (to == "parquet" and not out) or (to == "table" and out):
        raise UsageError("--to parquet needs --out FILE, --to csv may have it, --to table has none")
    if to == "parquet":
        batch.pyarrow()  # before the work, not after it
    if out and not out.parent.is_dir():
        raise UsageError(f"there is no folder {out.parent} for --out")
    until = arguments.as_of or datetime.combine(datetime.now(UTC), time.max, UTC)
    contract = load_contract()
    with database() as url, connect(url, "loader" if to == "table" else "reader") as connection:
        model = forecasting.champion(connection)
        made = list(batch.bodies(contract, model, connection, until, arguments.data_version, arguments.horizon, say))
        say(forecasting.unlike(contract, model.card, model.version))
        if to == "table":
            count = registry.record(connection, [body for body, _ in made])
            return print_result(arguments, {"appended": count}, f"{count} forecasts appended")
    rows = [row for body, loads in made for row in batch.rows(body, loads)]
    batch.write(rows, to, out)
    return print_result(arguments, {"rows": len(rows)}, f"{len(rows)} forecasts in {out}") if out else None


def serve(_: Namespace) -> int:
    from model_service.serving.bento import launch

    return int(launch())


def telemetry(arguments: Namespace) -> None:
    from model_service.telemetry.audit import install

    result = install(load_contract())
    print_result(arguments, result, f"index template {result} is installed")
