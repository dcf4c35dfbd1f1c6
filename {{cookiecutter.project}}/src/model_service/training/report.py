"""`build/report.md`: what was trained on what, how well it did as it was lived, and what the gate said."""

from typing import Any

from model_service.training.gate import Rule


def text(card: dict[str, Any], rules: list[Rule]) -> str:
    """The report as Markdown, from the model's card and the gate's rules."""
    figures = card["metrics"]
    names = list(figures["rmse"])
    head = [
        f"# {card['service']}: {card['target']['series']} by {card['estimator']}",
        "",
        f"Trained as of {card['trained_as_of']['known_at']}, data version `{card['trained_as_of']['data_version']}`,"
        f" commit `{card['git_commit']}`.",
        "",
        f"Backtest: {figures['origins']['scored']} scored origins from {figures['origins']['first']} to"
        f" {figures['origins']['last']}; of all {figures['origins']['real'] + figures['origins']['pseudo']} origins"
        f" {figures['origins']['real']} were read from real vintages, {figures['origins']['pseudo']} from the oldest"
        " vintage masked by release lags (pseudo-real-time).",
        "",
        f"RMSE in {card['target']['unit']}, and relative to the last value:",
        "",
        "| horizon | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    rows = [
        f"| {horizon} | " + " | ".join(_cell(figures["rmse"], name, number) for name in names) + " |"
        for number, horizon in enumerate(card["horizons"])
    ]
    coverage = [
        f"- {level}: " + ", ".join(f"{share:.1%} at {h}" for h, share in zip(card["horizons"], shares, strict=True))
        for level, shares in figures["coverage"].items()
    ]
    verdict = "passed" if all(rule.ok for rule in rules) else "BLOCKED"
    gate = ["| rule | figure | limit | |", "|---|---|---|---|"]
    gate += [
        f"| {one.name} | {one.figure:.4g} | {one.limit:.4g} | {'pass' if one.ok else '**block**'} |" for one in rules
    ]
    covered = ["", "Coverage of the intervals, made at each origin from errors already realized there:", "", *coverage]
    return "\n".join([*head, *rows, *covered, "", f"## Gate: {verdict}", "", *gate, ""])


def _cell(rmse: dict[str, list[float]], name: str, number: int) -> str:
    return f"{rmse[name][number]:.4g} ({rmse[name][number] / rmse['last_value'][number]:.2f})"
