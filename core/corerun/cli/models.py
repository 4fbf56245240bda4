"""``corerun models``: which models there are, whether one can be used, what was learned, what they cost."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from corerun.cli.app import State, output_format
from corerun.cli.output import print_json, print_table, say
from corerun.errors import UsageError

if TYPE_CHECKING:
    from corerun.llm.accounts import Accounts
    from corerun.llm.directory import ModelDirectory

T = TypeVar("T")
LADDER: tuple[str, ...] = ("feature", "state", "evidence")
PROBE: tuple[str, ...] = ("feature", "verdict", "status", "evidence")
CONFIG = click.option("--config", "config_file", type=click.Path(path_type=Path), help="job file to read")
MODELS_FILE = click.option(
    "--models-file", "--models_file", type=click.Path(path_type=Path), help="file with models: to read"
)


@click.group()
def group() -> None:
    """List and test models, what was learned of them and what they cost."""


@group.command("list")
@click.argument("provider", required=False)
@click.option("--remote", is_flag=True, help="Ask every server that is ready which models it offers.")
@CONFIG
@MODELS_FILE
@output_format
@click.pass_obj
def list_models(
    state: State,
    provider: str | None,
    remote: bool,
    config_file: Path | None,
    models_file: Path | None,
    as_json: bool,
) -> None:
    """List aliases and providers, or the ids that PROVIDER (a provider or an alias) offers."""
    from corerun.cli import model_facts as facts

    environ, directory, _ = _read(state, config_file, models_file)
    if provider is not None:
        ids = _closing(directory, facts.offered(directory, provider, environ))
        _print(as_json, {"provider": provider, "models": ids}, [("MODEL",), *((one,) for one in ids)])
        return
    aliases = facts.aliases(directory)
    providers = facts.providers(directory, state.manager, environ)
    if remote:
        names = [row["name"] for row in providers if row["status"] == "ready"]
        offers = _closing(directory, facts.all_offered(directory, names, environ))
        providers = [row | offers.get(row["name"], {}) for row in providers]
    if as_json:
        print_json({"aliases": aliases, "providers": providers})
        return
    if aliases:
        shown = [(row["name"], row["provider"], row["model"], row["status"]) for row in aliases]
        print_table([("ALIAS", "PROVIDER", "MODEL", "STATUS"), *shown])
        click.echo()
    shown = [(row["name"], row["plugin"], row["address"] or None, row["status"]) for row in providers]
    print_table([("PROVIDER", "PLUGIN", "ADDRESS", "STATUS"), *shown])
    for row in providers:
        for one in row.get("models") or ():
            say(f"{row['name']}::{one}")
        if row.get("problem"):
            say(f"{row['name']}: {row['problem']}", err=True)


@group.command("test")
@click.argument("model")
@click.option("--probe", is_flag=True, help="Try every feature of the API and print what the server does.")
@click.option("--explain", is_flag=True, help="Print each feature that may be given up, with its evidence.")
@CONFIG
@MODELS_FILE
@output_format
@click.pass_obj
def test(
    state: State,
    model: str,
    probe: bool,
    explain: bool,
    config_file: Path | None,
    models_file: Path | None,
    as_json: bool,
) -> int:
    """Ask MODEL two small questions, the second for JSON. Exit code 1 if an answer is of no use."""
    environ, directory, accounts = _read(state, config_file, models_file)
    info = directory.check(model)
    target = directory.target(model)
    if info.kind == "rules":
        text = f"{model} answers by built-in rules: there is no language model to test"
        _print(as_json, {"name": model, "kind": info.kind, "calls": [], "note": text}, [(text,)])
        return 0
    done = _closing(directory, _try(directory, model, accounts, environ, probe=probe, explain=explain))
    if as_json:
        head = {"name": model, "provider": target.provider, "model": target.model, "kind": info.kind}
        print_json(head | done)
    else:
        say(directory.meaning(model))
        _print_calls(done)
    return 1 if any(call["problem"] for call in done["calls"]) else 0


@group.command("caps")
@click.argument("model", required=False)
@click.option("--forget", is_flag=True, help="Forget it: the next calls find out anew.")
@CONFIG
@MODELS_FILE
@output_format
@click.pass_obj
def caps(
    state: State,
    model: str | None,
    forget: bool,
    config_file: Path | None,
    models_file: Path | None,
    as_json: bool,
) -> None:
    """Show what was learned of servers, of all or of the one that serves MODEL."""
    from corerun.cli import model_facts as facts

    _, directory, _ = _read(state, config_file, models_file)
    known = facts.learners(directory, state.manager, model)
    if forget:
        count = sum(provider.forget(name) for provider, name in known)
        _print(as_json, {"forgotten": count}, [(f"{count} facts forgotten",)])
        return
    rows = facts.learned(known)
    if as_json:
        print_json(rows)
    elif rows:
        heads = tuple(rows[0])
        print_table(
            [tuple(head.upper() for head in heads), *([row.get(key) for key in heads] for row in rows)]
        )
    else:
        say("nothing was learned yet")


@group.command("prices")
@click.argument("words", nargs=-1, metavar="[MODEL | import FILE]")
@CONFIG
@MODELS_FILE
@output_format
@click.pass_obj
def prices(
    state: State,
    words: tuple[str, ...],
    config_file: Path | None,
    models_file: Path | None,
    as_json: bool,
) -> None:
    """Show what MODEL costs, or the whole table, in USD per million tokens.

    `import FILE` takes prices over from litellm's map of models into ~/.config/corerun/prices.yaml.
    """
    from corerun.llm import prices as table

    environ, directory, accounts = _read(state, config_file, models_file)
    file = table.user_prices_file(environ)
    if words[:1] == ("import",) and len(words) == 2:
        _import(Path(words[1]), file, as_json)
        return
    if len(words) > 1:
        raise UsageError(f"one model or `import FILE`, not {' '.join(words)!r}")
    if words:
        target = directory.target(words[0])
        found = accounts.price(target, directory.provider(words[0]), target.model)
        rows = [(words[0], *found)] if found else []
    else:
        rows = [(name, price, "table") for name, price in sorted(table.load_prices(file).items())]
    if not rows:
        raise UsageError(
            f"no price is known for {words[0]!r}", hint=f"give it one in {file} or under models: as prices"
        )
    shown = [(name, price.input, price.cached, price.output, source) for name, price, source in rows]
    as_rows = [{"model": name, **asdict(price), "source": source} for name, price, source in rows]
    _print(as_json, as_rows, [("MODEL", "INPUT", "CACHED", "OUTPUT", "SOURCE"), *shown])


def _import(source: Path, target: Path, as_json: bool) -> None:
    from corerun.llm.price_import import import_prices

    done = import_prices(source, target)
    kept = f"; the file as it was is {done.kept}" if done.kept else ""
    text = (
        f"{done.taken} prices written to {target}, {done.changed} of them changed, "
        f"{done.left_out} entries without a price per token left out{kept}"
    )
    facts = asdict(replace(done, kept=None)) | {"file": str(target), "kept": done.kept and str(done.kept)}
    _print(as_json, facts, [(text,)])


def _read(
    state: State, config_file: Path | None, models_file: Path | None
) -> tuple[dict[str, str], ModelDirectory, Accounts]:
    """The environment with the ``.env`` file beside the job file, the models, and what they cost."""
    import os

    from corerun.job.environment import read_env_file
    from corerun.job.plan import read_models
    from corerun.llm.accounts import Accounts
    from corerun.llm.budget import Budget
    from corerun.llm.ledger import Ledger
    from corerun.llm.models import true_value
    from corerun.llm.prices import load_prices, user_prices_file
    from corerun.redaction import remember_environment

    if config_file is not None and not config_file.is_file():
        raise UsageError(f"no such file: {config_file}", where="--config")
    environ = dict(os.environ)
    for line in read_env_file((config_file.parent if config_file else Path()) / ".env", environ):
        say(f"corerun: {line}", err=True)
    remember_environment(environ)
    if true_value(environ.get("OAIC_DEBUG")):
        _show_log()
    _, directory = read_models(
        state.manager, environ, Path.cwd(), config_file=config_file, models_file=models_file
    )
    accounts = Accounts(
        Ledger(),
        Budget(),
        prices=lambda: load_prices(user_prices_file(environ)),
        elapsed=lambda: 0.0,
        unpriced=lambda model: None,
    )
    return environ, directory, accounts


def _show_log() -> None:
    """Write what happens to stderr until the command ends, as a run writes it to its log."""
    import logging

    from corerun.redaction.logs import CleanFormatter

    handler, log = logging.StreamHandler(), logging.getLogger("corerun")
    handler.setFormatter(CleanFormatter("%(name)s: %(message)s"))
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)

    def end() -> None:
        log.removeHandler(handler)
        log.setLevel(level)

    click.get_current_context().call_on_close(end)


async def _try(
    directory: ModelDirectory,
    model: str,
    accounts: Accounts,
    environ: Mapping[str, str],
    *,
    probe: bool,
    explain: bool,
) -> dict[str, Any]:
    from corerun.llm.models import true_value
    from corerun.llm.trial import ladder, try_model

    offline = true_value(environ.get("CORERUN_OFFLINE"))
    tried = await try_model(directory, model, accounts, offline=offline, everything=explain)
    done: dict[str, Any] = {"calls": [one.to_json() for one in tried]}
    provider: Any = directory.provider(model)
    own = directory.target(model).model
    if explain:
        learned = getattr(provider, "learned", None)
        images = provider.info.vision is not False
        done["ladder"] = [
            asdict(rung) for rung in ladder(tried, learned(own) if learned else (), images=images)
        ]
    if probe:
        run = getattr(provider, "probe", None)
        done["probe"] = [asdict(row) for row in await run(own)] if run else None
    return done


def _print_calls(done: Mapping[str, Any]) -> None:
    heads = ("CALL", "ANSWERED BY", "SECONDS", "REQUESTS", "PROMPT", "ANSWER", "USD")
    keys = ("call", "answered_by", "latency_s", "requests", "prompt_tokens", "completion_tokens", "cost_usd")
    print_table([heads, *([call[key] for key in keys] for call in done["calls"])])
    for call in done["calls"]:
        for dropped in call["degradations"]:
            say(f"{call['call']}: without {dropped['feature']}: {dropped['reason']}")
        if call["problem"]:
            say(f"{call['call']}: {call['problem']}")
    for part, columns in (("ladder", LADDER), ("probe", PROBE)):
        if part not in done:
            continue
        click.echo()
        if done[part] is None:
            say("this provider has no probe")
        else:
            print_table(
                [[head.upper() for head in columns], *([row[head] for head in columns] for row in done[part])]
            )


def _closing(directory: ModelDirectory, work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` returns; the connections that it opened are closed after it."""

    async def run() -> T:
        try:
            return await work
        finally:
            await directory.aclose()

    return asyncio.run(run())


def _print(as_json: bool, value: object, rows: list[tuple[object, ...]]) -> None:
    if as_json:
        print_json(value)
    else:
        print_table(rows)
