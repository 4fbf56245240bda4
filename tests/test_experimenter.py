"""The tests' researcher: its answers fit the questions and its programs run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corerun.interfaces import CallContext, ChatRequest, Connection, Message
from corerun_openai_router.provider import OpenAIRouter
from tests.support.experimenter import Experimenter, smallest_instance
from tests.support.openai_server import OpenAIServer

WRITE = "Write an experiment. Answer with a plan and one ```python fence."


def ask(experimenter: Experimenter, question: str) -> str:
    body = {"model": "test-model", "messages": [{"role": "user", "content": question}]}
    return str(experimenter(body).content)


def program_of(answer: str) -> str:
    fences = re.findall(r"```python\n(.*?)```", answer, re.DOTALL)
    assert len(fences) == 1
    return str(fences[0])


def run(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "MPLCONFIGDIR": str(folder)}
    return subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environ, capture_output=True, text=True, check=False
    )


def test_programs_differ_and_do_what_the_search_needs(tmp_path: Path) -> None:
    experimenter = Experimenter()
    last = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        done = run(program_of(ask(experimenter, WRITE)), folder)
        assert done.returncode == 0, done.stderr
        data = np.load(folder / "working/experiment_data.npy", allow_pickle=True).item()
        assert list(data) == ["synth_a", "synth_b", "synth_c"]
        record = data["synth_a"]
        assert len(record["metrics"]["val"]) == len(record["losses"]["train"]) == 10
        assert len(record["metrics"]["test"]) == 1
        assert record["predictions"].shape == record["ground_truth"].shape
        last.append(record["metrics"]["val"][-1])
    assert last[0] != last[1]

    plots = run(program_of(ask(experimenter, "Write a plotting program as ```python")), tmp_path / "0")
    assert plots.returncode == 0, plots.stderr
    assert len(list((tmp_path / "0/working").glob("*.png"))) == 2

    files = [str(tmp_path / str(number) / "working/experiment_data.npy") for number in range(2)]
    (tmp_path / "plot_agg_manifest.json").write_text(json.dumps({"base_dir": "", "npy_files": files}))
    question = "Write a ```python script that reads plot_agg_manifest.json"
    figures = run(program_of(ask(experimenter, question)), tmp_path)
    assert figures.returncode == 0, figures.stderr
    assert len(list((tmp_path / "figures").glob("*.png"))) == 3


def test_the_same_seed_writes_the_same_programs() -> None:
    first, second = Experimenter(3), Experimenter(3)
    assert [ask(first, WRITE) for _ in range(3)] == [ask(second, WRITE) for _ in range(3)]
    assert ask(Experimenter(3), WRITE) != ask(Experimenter(4), WRITE)


def test_every_nth_program_can_be_faulty(tmp_path: Path) -> None:
    experimenter = Experimenter(faulty=2)
    programs = [program_of(ask(experimenter, WRITE)) for _ in range(2)]
    assert run(programs[0], tmp_path).returncode == 0
    failed = run(programs[1], tmp_path)
    assert failed.returncode == 1 and "ValueError" in failed.stderr


def structured(name: str, schema: dict[str, Any], content: Any) -> Any:
    body = {
        "model": "test-model",
        "messages": [{"role": "user", "content": content}],
        "tools": [{"type": "function", "function": {"name": name, "parameters": schema}}],
        "tool_choice": {"type": "function", "function": {"name": name}},
    }
    (called, arguments), *rest = Experimenter()(body).calls
    assert called == name and not rest
    jsonschema.validate(arguments, schema)
    return arguments


def an_object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def test_a_review_believes_a_traceback() -> None:
    schema = an_object(is_bug={"type": "boolean"}, summary={"type": "string"})
    assert structured("submit_review", schema, "all well")["is_bug"] is False
    assert structured("submit_review", schema, "Traceback (most recent call last):")["is_bug"] is True


def test_metrics_are_read_from_the_output() -> None:
    schema = an_object(valid_metrics_received={"type": "boolean"}, metric_names={"type": "array"})
    found = structured("parse_metrics", schema, "synth_a validation_rmse 1.25\nsynth_b validation_rmse 0.5")
    assert found["valid_metrics_received"] is True
    rows = found["metric_names"][0]["data"]
    assert [(row["dataset_name"], row["final_value"]) for row in rows] == [
        ("synth_a", 1.25),
        ("synth_b", 0.5),
    ]
    assert structured("parse_metrics", schema, "nothing")["valid_metrics_received"] is False


def test_one_analysis_per_image() -> None:
    schema = an_object(
        plot_analyses={"type": "array"},
        valid_plots_received={"type": "boolean"},
        vlm_feedback_summary={"type": "string"},
    )
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    found = structured("analyze_experiment_plots", schema, [{"type": "text", "text": "look"}, image, image])
    assert len(found["plot_analyses"]) == 2 and found["valid_plots_received"] is True
    assert "datasets_successfully_tested" not in found


def test_any_other_question_gets_the_smallest_fitting_answer() -> None:
    schema = an_object(
        name={"type": "string", "minLength": 3},
        setting={"type": "object"},
        exhausted={"type": "boolean"},
        level={"enum": ["low", "high"]},
        steps={"type": "array", "minItems": 2, "items": {"type": "integer", "minimum": 4}},
    )
    found = structured("propose_idea", schema, "?")
    assert found["exhausted"] is False and found["steps"] == [4, 4] and found["name"]


async def test_the_router_understands_the_researcher() -> None:
    schema = an_object(is_bug={"type": "boolean"}, summary={"type": "string"})
    plain = ChatRequest("test-model", (Message("user", WRITE),))
    async with OpenAIServer(Experimenter()) as server:
        router = OpenAIRouter(Connection(environ=server.environ()))
        written = await router.complete(plain, CallContext("test.write"))
        assert "np.save" in program_of(written.text)
        review = replace(plain, schema=schema, schema_name="submit_review")
        answer = await router.complete(review, CallContext("test.review"))
        jsonschema.validate(json.loads(answer.text), schema)
        await router.aclose()


@given(
    st.recursive(
        st.sampled_from(
            [
                {"type": "string", "minLength": 9},
                {"type": "string", "maxLength": 2},
                {"type": "boolean"},
                {"type": "integer", "exclusiveMinimum": 3},
                {"type": "number", "minimum": -1.5},
                {"enum": ["x"]},
                {"type": ["string", "null"]},
                {"type": "null"},
            ]
        ),
        lambda inner: (
            st.builds(lambda item: {"type": "array", "items": item, "minItems": 1}, inner)
            | st.builds(lambda item: {"anyOf": [item, {"type": "null"}]}, inner)
            | st.dictionaries(st.sampled_from(["name", "a", "b"]), inner).map(
                lambda known: an_object(**known)
            )
        ),
        max_leaves=6,
    )
)
def test_the_smallest_instance_fits_its_schema(schema: dict[str, Any]) -> None:
    jsonschema.validate(smallest_instance(schema), schema)


@pytest.mark.parametrize("name", ["submit_review", None])
def test_nonsense_is_of_four_kinds_and_never_right(name: str | None) -> None:
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": WRITE}]}
    if name:
        body["tool_choice"] = {"type": "function", "function": {"name": name}}
    experimenter = Experimenter(nonsense=True)
    replies = [experimenter(body) for _ in range(4)]
    assert len({repr(reply) for reply in replies}) == 4
    for reply in replies:
        assert "```" not in (reply.content or "")
        for called, arguments in reply.calls:
            assert called != name or not arguments.endswith("}")
