"""A corpus of bad files, each named by what is wrong with it, and the commands that are given them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import bad_journals, jobs
from tests.support.bad_documents import FILES, JSON, MEGABYTE, YAML, Content, loop, pipe, sized


@dataclass(frozen=True)
class Case:
    """One bad file. ``says`` is part of the message, which names the file in any case."""

    name: str
    file: str
    content: Content
    arguments: tuple[str, ...]
    says: str = ""
    code: int = 2

    def make(self, folder: Path) -> None:
        """Write the file into its own, empty ``folder``."""
        path = folder / self.file
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(self.content):
            self.content(path)
        else:
            path.write_bytes(self.content.encode() if isinstance(self.content, str) else self.content)


SETTINGS: Mapping[str, tuple[str, str]] = {
    "unknown key": ("wrkers: 2\n", ":1: unknown key 'wrkers'"),
    "unknown key without a value": ("job:\n  idea: null\n", ":2: unknown key"),
    "unknown inner key": ("llm:\n  retry: 3\n", ":2: unknown key 'llm.retry'"),
    "job is a list": ("job: [a]\n", ":1: 'job' must be a mapping"),
    "workers in words": ("workers: many\n", ":1: workers: "),
    "no workers": ("workers: 0\n", ":1: workers: "),
    "half a worker": ("workers: 1.5\n", ":1: workers: "),
    "workers beyond any machine": ("workers: 99999999999\n", ":1: workers: "),
    "workers are a list": ("workers: [2]\n", ":1: workers: "),
    "workers are a mapping": ("workers: {a: 2}\n", ":1: workers: "),
    "seed is a date": ("seed: 2024-02-30\n", ":1: seed: "),
    "seed is a time": ("seed: 12:30\n", ":1: seed: "),
    "scheduler unknown": ("scheduler: sometimes\n", ":1: scheduler: "),
    "budget below zero": ("budget:\n  usd: -1\n", ":2: budget.usd: "),
    "budget is no number": ("budget:\n  usd: nan\n", ":2: budget.usd: "),
    "budget without end": ("budget:\n  seconds: inf\n", ":2: budget.seconds: "),
    "budget is a number": ("budget: 5\n", ":1: budget: "),
    "cache is on": ("llm:\n  cache: on\n", ":2: llm.cache: "),
    "retries below zero": ("llm:\n  retries: -1\n", ":2: llm.retries: "),
    "sandbox is a list": ("sandbox: [bwrap]\n", ":1: sandbox: "),
    "model is a number": ("model: 5\n", ":1: model: "),
    "model is a list": ("model: [a, b]\n", ":1: model: "),
    "model without a provider": ("model: '::x'\n", "::x"),
    "provider unknown": ("model: nobody::x\n", "nobody"),
    "executor unknown": ("executor: cloud\n", "cloud"),
    "strategy unknown": ("strategy: luck\n", "luck"),
    "observer unknown": ("observers: [nobody]\n", "nobody"),
    "plugin unknown": ("plugins:\n  required: [nobody]\n", "nobody"),
    "out_root is a list": ("out_root: [a]\n", ":1: out_root: "),
    "home that nobody has": ("out_root: ~nobody_at_all/x\n", ":1: out_root: "),
    "run_id is a list": ("run_id: [a]\n", ":1: run_id: "),
    "attempt below zero": ("job:\n  attempt_id: -3\n", ":2: bfts.attempt_id: "),
    "attempt in words": ("job:\n  attempt_id: first\n", ":2: bfts.attempt_id: "),
    "data that are not there": ("job:\n  data_dir: nowhere\n", "nowhere"),
    "search file that is not there": ("job:\n  bfts_config: none.yaml\n", ":2: no such file"),
    "models file that is not there": ("models_file: none.yaml\n", ":1: models_file: no such file"),
    "alias with an unknown key": ("models:\n  a: {mdel: x}\n", ":2: unknown key 'models.a.mdel'"),
    "alias without requests": ("models:\n  a:\n    rpm: 0\n", ":3: models.a.rpm: "),
    "expression that is none": ("models:\n  a:\n    wording: {tools: '('}\n", ":3: models.a.wording: "),
    "price below zero": (
        "models:\n  a:\n    prices: {input: -1, output: 1}\n",
        ":3: models.a.prices.input: ",
    ),
    "capability in words": ("models:\n  a:\n    caps: {tools: perhaps}\n", ":3: models.a.caps.tools: "),
}

CHOICES: Mapping[str, tuple[str, str]] = {
    "ideas that are not there": ("job: {idea_idx: 0, load_ideas: none.json}\n", "none.json"),
    "ideas are a folder": ("job: {idea_idx: 0, load_ideas: .}\n", "it is a folder"),
    "ideas with a NUL in their name": ('job: {idea_idx: 0, load_ideas: "a\\0b"}\n', "load_ideas"),
    "idea beyond the list": (f"job: {{idea_idx: 99, load_ideas: {jobs.IDEAS}}}\n", "idea_idx"),
    "idea before the list": (f"job: {{idea_idx: -1, load_ideas: {jobs.IDEAS}}}\n", "idea_idx"),
    "idea of 4,000 digits": (f"job: {{idea_idx: {'9' * 4000}, load_ideas: {jobs.IDEAS}}}\n", "idea_idx"),
}

SEARCH: Mapping[str, tuple[str, str]] = {
    "unknown stage": ("agent:\n  stages: {order: [1, 9]}\n", ":2: bfts.agent.stages.order: "),
    "no stage": ("agent:\n  stages: {order: []}\n", ":2: bfts.agent.stages.order: "),
    "probability of two": ("agent:\n  search: {debug_prob: 2}\n", ":2: bfts.agent.search.debug_prob: "),
    "no time": ("exec:\n  timeout: 0\n", ":2: bfts.exec.timeout: "),
    "time without end": ("exec:\n  timeout: inf\n", ":2: bfts.exec.timeout: "),
    "file outside": ("exec:\n  agent_file_name: ../x.py\n", ":2: bfts.exec.agent_file_name: "),
    "goals of no stage": ("agent:\n  stages:\n    goals: {one: x}\n", ":3: bfts.agent.stages.goals.one"),
    "vision unknown": ("agent:\n  vision: on\n", ":2: bfts.agent.vision: "),
    "metric without a name": ("metric:\n  maximize: yes\n", "metric.name: "),
    "stages are a list": ("agent:\n  stages: [1]\n", ":2: bfts.agent.stages: "),
}

PRICES: Mapping[str, tuple[str, str]] = {
    "models are a list": ("models: [a]\n", ":1: the prices have the wrong shape"),
    "entry is a number": ("models:\n  a: 5\n", ":2: the prices have the wrong shape"),
    "no output price": ("models:\n  a: {in: 1}\n", ":2: the prices have the wrong shape"),
    "price in words": ("models:\n  a: {in: free, out: 1}\n", ":2: the prices have the wrong shape"),
    "price below zero": ("models:\n  b: {in: 1, out: 1}\n  a: {in: -1, out: 1}\n", ":3: the prices"),
    "price without end": ("models:\n  a: {in: inf, out: 1}\n", ":2: the prices have the wrong shape"),
    "price is no number": ("models:\n  a: {in: nan, out: 1}\n", ":2: the prices have the wrong shape"),
    "price of 4,000 digits": (f"models:\n  a: {{in: {'9' * 4000}, out: 1}}\n", ":2: the prices"),
}

IDEAS: Mapping[str, tuple[str, str]] = {
    "no idea": ("[]", "at least one idea"),
    "a number": ("3", "at least one idea"),
    "null": ("null", "at least one idea"),
    "idea is a text": ('["x"]', "idea 0 is a str"),
    "idea is a list": ("[[]]", "idea 0 is a list"),
    "idea without a title": ('[{"Name": "x"}]', "key 'Title'"),
    "title is a number": (json.dumps([jobs.idea(Title=5)]), "key 'Title'"),
    "title is null": (json.dumps([jobs.idea(Title=None)]), "key 'Title'"),
    "empty name": (json.dumps([jobs.idea(Name="")]), "key 'Name'"),
    "name is a list": (json.dumps([jobs.idea(Name=["x"])]), "key 'Name'"),
    "experiments are a number": (json.dumps([jobs.idea(Experiments=7)]), "key 'Experiments'"),
    "risks hold numbers": (
        json.dumps([jobs.idea(**{"Risk Factors and Limitations": [1, 2]})]),
        "key 'Risk Factors and Limitations",
    ),
    "program is a list": (json.dumps([jobs.idea(Code=["x"])]), "key 'Code'"),
}

MAPS: Mapping[str, tuple[str, str]] = {
    "a list": ("[]", "expected a JSON object"),
    "no price": ('{"a": {"mode": "chat"}}', "no model in it has a price"),
    "prices in words": ('{"a": {"input_cost_per_token": "x", "output_cost_per_token": 1}}', "no model in it"),
}

LINES: Mapping[str, tuple[Content, str]] = {
    "not JSON": ('{"text": "x"}\n{"text": \n', ":2: not JSON"),
    "a list": ('\n{"text": "x"}\n[]\n', ":3: "),
    "nothing to say": ('{"purpose": "x"}\n', ":1: a line needs text"),
    "unknown fault": ('{"text": "x"}\n{"fault": "999"}\n', ":2: unknown fault"),
    "NaN": ('{"json": NaN}\n', ":1: not JSON: NaN"),
    "nested a thousand deep": ('{"json": ' + "[" * 1000 + "]" * 1000 + "}\n", ":1: not JSON: nested deeper"),
    "number of 5,000 digits": (f'{{"json": {"9" * 5000}}}\n', ":1: not JSON: a number has more"),
    "Latin-1": ('{"text": "x"}\n{"text": "ö"}\n'.encode("latin-1"), ":2: not UTF-8"),
    "UTF-16": ('{"text": "x"}\n'.encode("utf-16"), ":1: not UTF-8 but UTF-16"),
    "NUL": ('{"text": "x"}\n\0\n', ":2: not text"),
}

ENVIRONMENT: Mapping[str, tuple[Content, str]] = {
    "not there": (lambda path: None, "no such file"),
    "a folder": (lambda path: path.mkdir(), "no such file"),
    "a pipe that nobody fills": (pipe, "no such file"),
    "too large": (sized(b"A=1\n", 60 * MEGABYTE), "it is larger than"),
}

PROGRAMS: Mapping[str, tuple[Content, str]] = {
    "not there": (lambda path: None, "no such file"),
    "a folder": (lambda path: path.mkdir(), ""),
    "a pipe that nobody fills": (pipe, ""),
    "a link to itself": (loop, ""),
    "a link to nothing": (lambda path: path.symlink_to("nothing"), ""),
    "too large": (sized(b"pass\n", 60 * MEGABYTE), "larger than"),
    "Latin-1": ("# Größe\n".encode("latin-1"), "UTF-8"),
    "picture": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "UTF-8"),
}

_RUN = ("--plugin", "bfts", "run")


def _named(kind: str, table: Mapping[str, tuple[Any, str]], **how: Any) -> Iterator[Case]:
    for name, (content, says) in table.items():
        yield Case(f"{kind}, {name}", content=content, says=says, **how)


def corpus() -> list[Case]:
    """Every bad file with the command that is given it; paths are relative to the file's own folder."""
    job = {"file": "job.yaml", "arguments": ("config", "show", "bfts", "--config", "job.yaml")}
    run = {"file": "job.yaml", "arguments": (*_RUN, "--config", "job.yaml")}
    with_idea = run | {"arguments": (*run["arguments"], "--load_ideas", str(jobs.IDEAS), "--idea_idx", "0")}
    search = {"file": "search.yaml", "arguments": (*_RUN, "--bfts_config", "search.yaml", "--dry-run")}
    models = {"file": "models.yaml", "arguments": ("models", "list", "--models-file", "models.yaml")}
    prices = {"file": "home/.config/corerun/prices.yaml", "arguments": ("models", "prices")}
    ideas = {"file": "ideas.json", "arguments": (*_RUN, "--load_ideas", "ideas.json", "--idea_idx", "0")}
    price_map = {"file": "map.json", "arguments": ("models", "prices", "import", "map.json")}
    script = {"file": "answers.jsonl", "arguments": ("models", "test", "fake::script:answers.jsonl")}
    cases = [
        *_named("job file", YAML, **job),
        *_named("job file", FILES, **job),
        *_named("job of a run", CHOICES, **run),
        *_named("job of a run", SETTINGS, **with_idea),
        *_named("search file", YAML, **search),
        *_named("search settings", SEARCH, **search),
        *_named("models file", YAML, **models),
        *_named("prices", YAML, **prices),
        *_named("prices", PRICES, **prices),
        *_named("ideas", JSON, **ideas),
        *_named("ideas", FILES, **ideas),
        *_named("ideas", IDEAS, **ideas),
        *_named("map of prices", JSON, **price_map),
        *_named("map of prices", FILES, **price_map),
        *_named("map of prices", MAPS, **price_map),
        *_named("answers", LINES, **script),
        *_named("answers", FILES, **script),
    ]
    environment = {"file": "keys.env", "arguments": (*_RUN, "--env-file", "keys.env")}
    program = {"file": "program.py", "arguments": ("exec", "program.py")}
    cases += _named("variables", ENVIRONMENT, **environment)
    cases += _named("program", PROGRAMS, **program)
    for name, (content, says) in bad_journals.MISFITS.items():
        cases.append(
            Case(
                f"records, {name}", bad_journals.FILE, content, ("runs", "rebuild", "runs/bfts/one"), says, 4
            )
        )
    for name, (content, says) in bad_journals.JOURNALS.items():
        for command in bad_journals.COMMANDS:
            arguments = tuple(command.split())
            cases.append(
                Case(
                    f"journal, {name}, {arguments[0]} {arguments[1]}",
                    bad_journals.FILE,
                    content,
                    arguments,
                    says,
                    4,
                )
            )
    return cases
