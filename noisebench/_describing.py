"""What people read and filter by in MLflow: descriptions in Markdown and plain tags. Imports neither torch nor MLflow.

Whatever a user or a plug-in named stands in them literally: it is escaped, and never markup.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from noisebench._run_folder import TAG_LIMIT, cut
from noisebench.metrics import METRICS, about

EXPERIMENT_LIMIT = 5000
"""What MLflow takes at most of an experiment's tag, in characters."""
EPOCHS = {"selected": "selected", "last": "last", "best": "best (oracle)"}


def literal(text: object) -> str:
    """Text such that Markdown shows it as it is, in one line, inside a table too."""
    plain = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~#$!])", r"\\\1", plain)


def code(text: object) -> str:
    """Text as a span of code, whatever backticks it holds."""
    plain = " ".join(str(text).split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", plain)), default=0))
    pad = " " if plain.startswith("`") or plain.endswith("`") else ""
    return f"{fence}{pad}{plain}{pad}{fence}"


def plain_tags(config: Mapping[str, Any], facts: Mapping[str, Any], board: str, status: str) -> dict[str, str]:
    """Tags as people type them into a search box: ``tags.method = "..."``, ``tags.noise_rate = "0.4"``."""
    noise = config.get("noise")
    noise = noise if isinstance(noise, dict) else {}
    given = facts.get("privileged") or ()
    found = {
        "board": board,
        "status": status,
        "noise_kind": noise.get("kind"),
        "noise_rate": noise.get("rate"),
        "privileged": ", ".join(map(str, given)) or "no",
        **{key: facts.get(key) for key in ("method", "label", "dataset", "noise", "seed", "hardware")},
    }
    return {key: cut(str(value), TAG_LIMIT) for key, value in found.items() if value is not None}


# ------------------------------------------------------------------------------------------------------------ a cell


def cell_note(
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
    final: Mapping[str, Any],
    status: str,
    *,
    noise: Mapping[str, Any],
    folder: Path,
    command: str,
    model: Mapping[str, Any] | None = None,
) -> str:
    """A cell's description.

    Args:
        config: its config.json; facts: as the board names it; final: its result.json or failure.json.
        status: as `noisebench._outbox.STATUS` has it.
        noise: the noise.json of its noise.
        folder: its run folder; command: that makes it again.
        model: what was logged of it, see `noisebench._deploying`.
    """
    heading = f"**{literal(facts['label'])}** on {literal(facts['dataset'])} under {literal(facts['noise'])}"
    lines = [f"{heading}, seed {facts['seed']}: {literal(status)}."]
    if facts.get("reason"):
        lines += ["", f"**Failed:** {literal(facts['reason'])}"]
    if isinstance(final.get("metrics"), dict):
        lines += ["", *_numbers(final["metrics"])]
    lines += ["", *_facts(config, facts, final, noise)]
    if model and model.get("uri"):
        lines += [_model_line(model)]
    elif model and model.get("reason"):
        lines += [f"- No model was logged: {literal(model['reason'])}"]
    lines += [f"- Run again: {code(command)}", f"- Run folder: {code(folder)}"]
    if config.get("paper"):
        lines += [f"- Paper: {literal(config['paper'])}"]
    return cut("\n".join(lines), TAG_LIMIT)


def _numbers(metrics: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """The three numbers of a run as a table, a row an epoch."""
    rows = {rule: metrics[rule] for rule in EPOCHS if isinstance(metrics.get(rule), dict)}
    names = [name for name in METRICS if any(name in row for row in rows.values())]
    names += sorted({name for row in rows.values() for name in row if name not in METRICS and about(name)})
    yield f"| epoch | {' | '.join(literal(_title(name)) for name in names)} |"
    yield "|---" * (len(names) + 1) + "|"
    for rule, row in rows.items():
        shown = (_shown(name, row.get(name)) for name in names)
        yield f"| {EPOCHS[rule]}: {row.get('epoch', '?')} | {' | '.join(shown)} |"


def _title(name: str) -> str:
    found = about(name)
    return found.title if found else name


def _shown(name: str, value: Any) -> str:
    found = about(name)
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return "–" if value is None else literal(value)
    return f"{100 * value:.2f}%" if found and found.percent else f"{value:.4f}"


def _facts(
    config: Mapping[str, Any], facts: Mapping[str, Any], final: Mapping[str, Any], noise: Mapping[str, Any]
) -> Iterator[str]:
    rates = [
        f"{word} {_share(noise.get(key))}"
        for word, key in (("asked", "rate"), ("expected", "expected_rate"), ("realised", "realised_rate"))
        if key in noise
    ]
    sha = str(facts.get("noise_sha256") or "")
    yield f"- Noise: {literal(facts['noise'])}" + (f"; wrong labels: {', '.join(rates)}" if rates else "")
    if sha:
        yield f"- Noise artefact: {code(config.get('noise_folder', ''))}, SHA-256 {code(sha)}"
    if facts.get("privileged"):
        yield f"- Given more than noisy labels: {literal(', '.join(map(str, facts['privileged'])))}"
    about_run = [f"{final['seconds']:g} s"] if isinstance(final.get("seconds"), (int, float)) else []
    about_run += [str(final["hardware"])] if final.get("hardware") else []
    peak = final.get("peak_memory_mb")
    about_run += [f"at most {peak:g} MB"] if isinstance(peak, (int, float)) else []
    versions = final.get("versions")
    about_run += [f"{name} {version}" for name, version in versions.items()] if isinstance(versions, dict) else []
    if about_run:
        yield f"- Trained: {literal(', '.join(about_run))}"


def _share(rate: Any) -> str:
    return f"{100 * rate:.2f}%" if isinstance(rate, (int, float)) else "unknown"


def _model_line(model: Mapping[str, Any]) -> str:
    load = f'mlflow.pyfunc.load_model("{model["uri"]}").predict(images)'
    shape = ", ".join(map(str, model.get("input", ())))
    line = f"- Model (epoch {model['epoch']}, {literal(model['which'])}): {code(load)}: uint8 images [N, {shape}]"
    line += f" to probabilities [N, {model.get('classes')}]"
    return line + (f"; registered as {code(model['registered'])}" if model.get("registered") else "")


# ----------------------------------------------------------------------------------------------------------- a board


def board_note(
    board: Mapping[str, Any],
    table: str,
    command: str,
    folder: Path,
    models: Iterable[Mapping[str, Any]] = (),
    limit: int = TAG_LIMIT,
) -> str:
    """A board's description: what it is, its ranking, how to run it again, its models, then the details of its table.

    Args:
        board: its board.json; table: its leaderboard.md; "" as long as there is none.
        command: that makes it again; folder: where its tables lie.
        models: what was logged of its cells, see `noisebench._deploying`.
        limit: in characters; the details are cut first, at the end of a line.
    """
    ranking, further = table.partition("\n## ")[::2]
    if not ranking:
        ranking = f"# {literal(board.get('title') or board['name'])}\n"
    ranking = ranking.rstrip("\n")
    title, below = ranking.partition("\n")[::2]
    parts = [title]
    parts += [literal(board["description"])] if board.get("description") else []
    parts += [below.strip("\n")] if below.strip() else []
    parts += [
        f"- Run again: {code(command)} (finished cells are only read; with another {code('--out')} all is made anew)\n"
        f"- Tables: the artefacts leaderboard.md, .csv, .json, .tex; in {code(folder)}"
    ]
    logged = [model for model in models if model.get("uri")]
    if logged:
        rows = "".join(f"| {literal(one['label'])} | {literal(one['column'])} | {one['uri']} |\n" for one in logged)
        parts += [f"## Models\n\n| method | column | mlflow.pyfunc.load_model(...) |\n|---|---|---|\n{rows}".rstrip()]
    if further:
        parts += [f"## {further.rstrip()}"]
    note = "\n\n".join(parts)
    if len(note) <= limit:
        return note
    return note[: limit - 100].rpartition("\n")[0] + "\n\n(cut; whole in the artefact leaderboard.md)"
