"""What the site shows of the command, the benchmark's keys, the known names and the notebook: made when it is built.

A page names what stands in a place by a line of its own, ``<!-- made: NAME -->``; nothing of it can go stale.
"""

from __future__ import annotations

import inspect
import json
import logging
import re
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

log = logging.getLogger("mkdocs.hooks.noisebench")
ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the notebook as a page."""
    files.append(File.generated(config, "tutorials/notebook.md", content=notebook(NOTEBOOK)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in what a page asks for."""
    return re.sub(r"^<!-- made: ([a-z-]+) -->$", lambda found: MAKERS[found[1]](), markdown, flags=re.MULTILINE)


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings write ``::`` before a block of code, as reST does."""
    return html.replace("::</p>", ":</p>")


# --------------------------------------------------------------------------------------------- the command line


def command_line() -> str:
    """Every command with its help, arguments and options, as the typer app has them."""
    import typer.main

    from noisebench import cli

    return "\n\n".join(_commands(typer.main.get_command(cli.app), "noisebench", None))


def _commands(command: Any, name: str, parent: Any) -> Iterator[str]:
    context = command.context_class(command, info_name=name, parent=parent)
    within = getattr(command, "commands", {})
    if parent is not None:
        yield f"## {name}"
        for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
            example = paragraph.startswith("noisebench ")
            yield f"```sh\n{_unmarked(paragraph)}\n```" if example else _plain(paragraph)
    if not within:
        yield f"```text\n{name} {' '.join(command.collect_usage_pieces(context))}\n```"
    shown = [param for param in command.get_params(context) if parent is not None and param.get_help_record(context)]
    yield "\n".join(_parameter(param, context) for param in shown)
    for key in sorted(within) if parent is None else within:
        yield from _commands(within[key], f"{name} {key}", context)


def _parameter(param: Any, context: Any) -> str:
    """A line of a list: the option with its placeholder, what it does, its default and its environment variable."""
    names, about = param.get_help_record(context)
    notes = about.removeprefix(param.help or "").strip()
    return f"- `{names}`: {_plain(param.help or '')}" + (f" `{notes}`" if notes else "")


def _plain(text: str) -> str:
    """Help as Markdown that means the same."""
    return re.sub(r"([*_<>|])", r"\\\1", _unmarked(text))


def _unmarked(text: str) -> str:
    """Help without rich's marks."""
    from rich.text import Text

    return Text.from_markup(inspect.cleandoc(text)).plain


# ------------------------------------------------------------------------------------------ the benchmark's keys

SAID: dict[str, str] = {
    "Benchmark.name": "its folder below `boards/`; the file's name by default",
    "Benchmark.title": "heads the table",
    "Benchmark.description": "what it is and what is our choice in it",
    "Benchmark.datasets": "names, `name@n` for n of its training images, or `name:PATH`",
    "Benchmark.noise": "each a `kind`, a `rate` and the kind's own options; every one is a column of each dataset",
    "Benchmark.seeds": "a run of each method and column for each",
    "Benchmark.methods": "names, or `{name, label, hparams}`; `all` for every method",
    "Benchmark.recipe": "how networks are trained, the same for all rows that do not say otherwise",
    "Benchmark.tuned": "written by `noisebench tune`: how settings were chosen",
    "Benchmark.published": "a paper's figures, shown beside ours and never ranked",
    "Benchmark.execution": "how and where cells run; alters no result",
    "Benchmark.tracking": "what MLflow gets beside the numbers; alters no result",
    "Benchmark.scale": "small versions of it by name, for `--scale NAME`",
    "Scale.recipe": "keys of the recipe, each in the place of the board's",
    "Noise.kind": "one of `noisebench list noise`",
    "Noise.rate": "in [0, 1]; left out where an option implies it",
    "Noise.seed": "fixes the draw; the cell's seed by default, so that the sd covers it",
    "MethodSpec.name": "one of `noisebench list methods`",
    "MethodSpec.label": "what the row is called; the name and what differs by default",
    "MethodSpec.hparams": "settings where they differ from the method's own",
    "Recipe.backbone": "one of `noisebench list backbones`, or `timm:NAME`",
    "Recipe.backbone_options": "arguments of the backbone",
    "Recipe.start": "a finished run whose backbone's weights to begin with: `{run, weights}`",
    "Recipe.epochs": "passes over the training split",
    "Recipe.batch_size": "of all ranks together",
    "Recipe.optimizer": "",
    "Recipe.lr": "learning rate",
    "Recipe.momentum": "of sgd",
    "Recipe.nesterov": "",
    "Recipe.weight_decay": "",
    "Recipe.schedule": "of the learning rate",
    "Recipe.clip_norm": "largest norm of the gradient",
    "Recipe.padding": "pixels around an image before it is cropped to its size again",
    "Recipe.flip": "left to right, half of the images",
    "Recipe.validation": "share of the training images that is held out, under noisy labels; 0 for none",
    "Recipe.precision": "",
    "Recipe.compile": "`torch.compile`",
    "Recipe.loader": "data on the device, or streamed from files",
    "Recipe.workers": "processes that decode images",
    "Recipe.threads": "of a cell on a CPU; they decide the last bits of a result",
    "Recipe.record_losses": "quartiles of the loss of rightly and wrongly labelled images, each epoch",
    "Schedule.kind": "",
    "Schedule.milestones": "of multistep: epochs, or shares of the run",
    "Schedule.gamma": "of multistep: factor at each milestone",
    "Schedule.warmup": "epochs, or a share of the run, of linear rise",
    "Slurm.partition": "",
    "Slurm.account": "",
    "Slurm.qos": "",
    "Slurm.constraint": "",
    "Execution.slurm": "what Slurm is asked for",
    "Execution.ray": "which Ray cluster",
}
"""What a key means, where neither its model's docstring nor the comment behind it says so."""


def benchmark_keys() -> str:
    """A table of keys for every model that a benchmark's file is made of."""
    from noisebench import board_files, config, execution, published, tracking_options

    tables = [
        ("The board", config.Benchmark, ""),
        ("noise", config.Noise, "noise[]."),
        ("methods", config.MethodSpec, "methods[]."),
        ("recipe", config.Recipe, "recipe."),
        ("recipe.schedule", config.Schedule, "recipe.schedule."),
        ("execution", execution.Execution, "execution."),
        ("execution.slurm", execution.Slurm, "execution.slurm."),
        ("execution.ray", execution.Ray, "execution.ray."),
        ("tracking", tracking_options.Tracking, "tracking."),
        ("scale", board_files.Scale, "scale.NAME."),
        ("published", published.Published, "published."),
        ("published.tables", published.PublishedTable, "published.tables[]."),
    ]
    return "\n\n".join(f"## {title}\n\n{_keys(model, prefix)}" for title, model, prefix in tables)


def _keys(model: Any, prefix: str) -> str:
    said = _attributes(model)
    rows = ["| key | type | default | what |", "| --- | --- | --- | --- |"]
    for name, field in model.model_fields.items():
        what = said.get(name) or SAID.get(f"{model.__name__}.{name}")
        if what is None:
            log.warning("docs/hooks.py: nothing says what the key %s.%s is", model.__name__, name)
        default = "" if field.is_required() else _value(field.get_default(call_default_factory=True))
        default = f"`{default}`" if default else ""
        rows.append(f"| `{prefix}{name}` | {_type(field.annotation)} | {default} | {what or ''} |")
    return "\n".join(rows)


def _attributes(model: Any) -> dict[str, str]:
    """What a model's docstring says of its attributes, and the comments behind its fields."""
    source = inspect.getsource(model)
    said = dict(re.findall(r"^    (\w+): .*?  # (?!type:)(.+)$", source, re.MULTILINE))
    _, _, listed = inspect.cleandoc(model.__doc__ or "").partition("Attributes:\n")
    for names, text in re.findall(r"^    (\w[\w, ]*): ((?:.+\n?)(?:^ {8}.+\n?)*)", listed, re.MULTILINE):
        said |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return {name: text.replace("|", "\\|") for name, text in said.items()}


def _type(annotation: Any) -> str:
    """A type as a user thinks of it."""
    args = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return " \\| ".join(f"`{arg}`" for arg in args)
    if typing.get_origin(annotation) in (tuple, list):
        return f"list of {_type(args[0])}"
    if typing.get_origin(annotation) is dict or hasattr(annotation, "model_fields"):
        return "keys"
    if typing.get_origin(annotation) is typing.Annotated:
        return _type(args[0])
    if args:  # a union
        return " or ".join(dict.fromkeys(_type(arg) for arg in args if arg is not type(None)))
    return str(getattr(annotation, "__name__", annotation)).replace("str", "text")


def _value(value: Any) -> str:
    """A default as YAML has it."""
    if isinstance(value, dict) or hasattr(type(value), "model_fields"):
        return "{}"
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_value, value))}]"
    return value if isinstance(value, str) else json.dumps(value)


# ---------------------------------------------------------------------------------------------------- known names


def names() -> str:
    """Methods, datasets, noise, benchmarks and backbones, as `noisebench list` shows them."""
    from noisebench.listing import everything

    parts = []
    for kind, rows in everything().items():
        if kind == "problems":
            continue
        columns = [key for key in ("name", "summary", "paper", "noise", "licence") if any(row.get(key) for row in rows)]
        lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
        for row in rows:
            cells = [_plain(str(row.get(key) or "")).replace("\n", " ") for key in columns]
            lines.append(f"| `{row['name']}` | {' | '.join(cells[1:])} |")
        parts.append(f"## {kind.capitalize()}\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def figures() -> str:
    """What mkdocstrings is to show of `noisebench.figures`, whose functions stand in modules below it."""
    from noisebench import figures

    homes = {name: home for home, names in figures._HOMES.items() for name in names}
    shown = "::: {home}.{name}\n    options: {{heading: noisebench.figures.{name}}}"
    return "\n\n".join(shown.format(home=homes[name], name=name) for name in sorted(homes))


# --------------------------------------------------------------------------------------------------- the notebook


def notebook(path: Path) -> str:
    """A notebook's cells and their outputs as Markdown; Markdown and code as they stand."""
    if not path.is_file():
        log.warning("%s: there is no such notebook", path.name)
        return "# A notebook\n"
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"]).strip()
        if not text:
            continue
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        parts += [shown for output in cell.get("outputs", ()) if (shown := _output(output))]
    note = "*This page is the notebook `docs/tutorial.ipynb` of the repository; open it in Jupyter to run it.*"
    return "\n\n".join([*parts[:1], note, *parts[1:]])


def _output(output: dict[str, Any]) -> str:
    """The richest form of an output that a page can show; none for what goes to standard error."""
    data = output.get("data", {})
    if "image/png" in data:
        picture = "".join("".join(data["image/png"]).split())
        return f'<img alt="what the cell above shows" src="data:image/png;base64,{picture}">'
    if "text/html" in data:
        return "<div>" + re.sub(r"\n\s*\n", "\n", "".join(data["text/html"]).strip()) + "</div>"
    text = "".join(data.get("text/plain", output.get("text", "") if output.get("name") != "stderr" else ""))
    return f"```text\n{text.rstrip()}\n```" if text.strip() else ""


MAKERS: dict[str, Callable[[], str]] = {
    "command-line": command_line,
    "benchmark-keys": benchmark_keys,
    "names": names,
    "figures": figures,
}
