"""The idea of a run: how it is chosen, what is loaded with it, its files, and its name as a folder's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corerun.errors import UsageError
from corerun_bfts.ideas import choose_idea, load_ideas, markdown, prose
from corerun_bfts.sdk import run_job
from tests.support import jobs

GOLDEN = jobs.DATA / "idea"
PROGRAM = "import numpy as np\n\nprint(np.zeros(3))\n"
REFERENCE = 'from datasets import load_dataset\n\nrows = load_dataset("ours")\n'


async def start(folder: Path, **settings: Any) -> tuple[dict[str, Any], Path]:
    """A run whose model refuses at its first question: everything that comes before has happened."""
    manifest = await run_job(
        settings={
            "bfts.load_ideas": "ideas.json",
            "bfts.idea_idx": 0,
            "model": "fake::fail:401",
            "sandbox.name": "local",
            "out_root": "out",
            **settings,
        },
        cwd=folder,
        environ=jobs.clean_environ(folder),
        accept_weak=True,
    )
    assert manifest["status"] == "failed" and manifest["error"]["type"] == "AuthFailed"
    return dict(manifest), Path(manifest["paths"]["idea_dir"])


# ---------------------------------------------------------------------------------------- choosing


@pytest.mark.parametrize("index", ["2", "-1", "99999999999999999999"])
def test_000_10_idea_index_out_of_range(tmp_path: Path, index: str) -> None:
    jobs.write_ideas(tmp_path, jobs.idea(), jobs.idea())
    done = jobs.bfts("--load_ideas", "ideas.json", "--idea_idx", index, cwd=tmp_path)
    assert done.code == 2 and done.stdout == ""
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("corerun: idea_idx")]
    assert index in line and "2 idea(s), 0 to 1" in line
    assert not (tmp_path / "experiments").exists()


async def test_000_10_the_index_chooses(tmp_path: Path) -> None:
    jobs.write_ideas(tmp_path, jobs.idea(Name="first"), jobs.idea(Name="second"))
    _, folder = await start(tmp_path, **{"bfts.idea_idx": 1})
    assert json.loads((folder / "idea.json").read_text())["Name"] == "second"
    assert "_second_attempt_0" in folder.name


async def test_000_10_a_single_object_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "ideas.json").write_text(json.dumps(jobs.idea(Name="alone")))
    _, folder = await start(tmp_path)
    assert folder.name.endswith("_alone_attempt_0")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "ideas.json:1: not JSON"),
        ('[{"Name": "x"},\n  {"Name": }]', "ideas.json:2: not JSON"),
        ("[]", "at least one idea"),
        ("3", "at least one idea"),
        ("[7]", "idea 0 is a int, not an object"),
        ("[" * 100_000, "nested deeper than 100 levels"),
        ('[{"Name": "x"}]', "key 'Title'"),
        (json.dumps([jobs.idea(Title=5)]), "key 'Title'"),
        (json.dumps([jobs.idea(Name="")]), "key 'Name'"),
        (json.dumps([jobs.idea(Experiments=7)]), "key 'Experiments'"),
        ("\ud800", "ideas.json:1: not UTF-8"),
    ],
)
def test_000_10_a_wrong_ideas_file_says_what_is_wrong(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "ideas.json"
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(UsageError) as caught:
        choose_idea(load_ideas(path), 0, str(path))
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_000_10_any_bytes_are_ideas_or_a_usage_error(content: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ideas.json"
        path.write_bytes(content)
        try:
            idea, raw = choose_idea(load_ideas(path), 0, str(path))
        except UsageError:
            return
        assert idea.name == raw["Name"]


def test_000_10_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "ideas.json"
    path.write_text(json.dumps([jobs.idea()]), encoding="utf-8-sig")
    assert choose_idea(load_ideas(path), 0, str(path))[0].name == "ridge"


# ---------------------------------------------------------------------------------------- its files


async def test_000_11_idea_md_and_idea_json_are_written(tmp_path: Path) -> None:
    chosen = jobs.idea(
        **{
            "Related Work": "Hoerl and Kennard, 1970. Größe ≠ Güte.",
            "Risk Factors and Limitations": [{"risk": "few rows", "answer": "several seeds"}],
            "extra_notes": {"first_note": "keep me", "second": 2},
            "Interestingness": 7,
        }
    )
    jobs.write_ideas(tmp_path, chosen)
    manifest, folder = await start(tmp_path)
    assert (folder / "idea.md").read_text() == (GOLDEN / "plain.md").read_text()
    text = (folder / "idea.json").read_text()
    assert json.loads(text) == chosen
    assert text == json.dumps(chosen, indent=4, ensure_ascii=False) + "\n"
    assert manifest["paths"]["idea_md"] == str(folder / "idea.md")
    assert manifest["paths"]["idea_json"] == str(folder / "idea.json")


CODE = {
    "neither": (False, False, None),
    "program": (True, False, PROGRAM),
    "reference": (False, True, REFERENCE),
    "both": (True, True, REFERENCE + "\n" + PROGRAM),
}


@pytest.mark.parametrize("case", CODE)
async def test_000_13_code_is_reference_and_program_whichever_exist(tmp_path: Path, case: str) -> None:
    load_code, add_reference, expected = CODE[case]
    jobs.write_ideas(tmp_path / "ideas")
    (tmp_path / "ideas/ideas.py").write_text(PROGRAM)
    (tmp_path / "hf_dataset_reference.py").write_text(REFERENCE)
    manifest, folder = await start(
        tmp_path,
        **{
            "bfts.load_ideas": "ideas/ideas.json",
            "bfts.load_code": load_code,
            "bfts.add_dataset_ref": add_reference,
        },
    )
    written = json.loads((folder / "idea.json").read_text())
    assert written.get("Code") == expected
    assert {key: value for key, value in written.items() if key != "Code"} == jobs.idea()
    text = (folder / "idea.md").read_text()
    if expected is None:
        assert "## Code" not in text
    else:
        assert text.endswith(f"## Code To Potentially Use\n\n```python\n{expected}```\n")
    assert not any("going on without" in text for text in manifest["warnings"])


async def test_000_13_idea_md_with_code_is_the_golden_file(tmp_path: Path) -> None:
    jobs.write_ideas(tmp_path)
    (tmp_path / "ideas.py").write_text(PROGRAM)
    _, folder = await start(tmp_path, **{"bfts.load_code": True})
    assert (folder / "idea.md").read_text() == (GOLDEN / "code.md").read_text()


async def test_000_13_missing_files_warn_and_the_run_goes_on(tmp_path: Path) -> None:
    jobs.write_ideas(tmp_path)
    manifest, folder = await start(tmp_path, **{"bfts.load_code": True, "bfts.add_dataset_ref": True})
    named = [text for text in manifest["warnings"] if "going on without it" in text]
    assert len(named) == 2
    assert any(str(tmp_path / "ideas.py") in text for text in named)
    assert any(str(tmp_path / "hf_dataset_reference.py") in text for text in named)
    assert "Code" not in json.loads((folder / "idea.json").read_text())


async def test_000_13_another_dataset_reference_can_be_named(tmp_path: Path) -> None:
    jobs.write_ideas(tmp_path)
    (tmp_path / "mine.py").write_text(REFERENCE)
    (tmp_path / "hf_dataset_reference.py").write_text("not this one")
    _, folder = await start(tmp_path, **{"bfts.dataset_ref": "mine.py"})
    assert json.loads((folder / "idea.json").read_text())["Code"] == REFERENCE


async def test_000_13_only_the_last_extension_is_replaced(tmp_path: Path) -> None:
    jobs.write_ideas(tmp_path, name="my.ideas.v2.json")
    (tmp_path / "my.ideas.v2.py").write_text(PROGRAM)
    ideas = tmp_path / "my.ideas.v2.json"
    _, folder = await start(tmp_path, **{"bfts.load_ideas": str(ideas), "bfts.load_code": True})
    assert json.loads((folder / "idea.json").read_text())["Code"] == PROGRAM


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("plain", "plain"),
        (["one", "two"], "one\ntwo"),
        ([{"a": 1, "b": "x"}, {"c": []}], "a: 1\nb: x\nc: []"),
    ],
)
def test_prose_of_each_form(value: Any, expected: str) -> None:
    assert prose(value) == expected


@given(st.dictionaries(st.text(min_size=1), st.text() | st.lists(st.text()) | st.none() | st.integers()))
def test_000_11_idea_md_has_one_section_per_key_in_order(raw: dict[str, Any]) -> None:
    raw.pop("Code", None)
    titles = [f"## {key.replace('_', ' ').title()}" for key in raw]
    text = markdown(raw)
    place = 0
    for title in titles:
        place = text.index(title, place) + len(title)


# ---------------------------------------------------------------------------------- the directory

HOSTILE = {
    "slashes": ("../../etc/passwd", "etc_passwd-3754d6cb"),
    "long": ("n" * 500, "n" * 71 + "-2c62ce96"),
    "dots": ("...", "unnamed-ab5df625"),
    "colon": ("C:\\temp\\x", "C_temp_x-86644e25"),
    "unicode": ("Größe 数", "Gr_e-dba25b59"),
    "newline": ("a\nb\x00c", "a_b_c-896144d1"),
    "dash": ("--help", "help-0bdbc8fb"),
}


@pytest.mark.parametrize("case", HOSTILE)
async def test_000_14_a_hostile_name_is_one_harmless_folder(tmp_path: Path, case: str) -> None:
    name, expected = HOSTILE[case]
    jobs.write_ideas(tmp_path, jobs.idea(Name=name))
    _, folder = await start(tmp_path, run_id="here", **{"bfts.attempt_id": 12})
    assert folder == (tmp_path / "out/experiments" / f"here_{expected}_attempt_12").resolve()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ideas.json", "out"]
    assert json.loads((folder / "idea.json").read_text())["Name"] == name


async def test_000_14_the_directory_begins_with_the_run_id_or_a_timestamp(tmp_path: Path) -> None:
    jobs.write_ideas(tmp_path)
    _, by_time = await start(tmp_path)
    assert by_time.parent == tmp_path / "out/experiments"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_ridge_attempt_0", by_time.name)
    _, named = await start(tmp_path, run_id="night/7")
    assert named.name == "night_7-1fee3c36_ridge_attempt_0"


async def test_000_12_attempts_are_told_apart_by_their_number(tmp_path: Path) -> None:
    jobs.write_ideas(tmp_path)
    _, first = await start(tmp_path, run_id="same", **{"bfts.attempt_id": 1})
    _, second = await start(tmp_path, run_id="same", **{"bfts.attempt_id": 2})
    assert (first.name, second.name) == ("same_ridge_attempt_1", "same_ridge_attempt_2")


async def test_000_14_two_starts_in_one_second_are_two_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("corerun_bfts.job.time.strftime", lambda form, *_: "2026-01-02_03-04-05")
    jobs.write_ideas(tmp_path)
    _, first = await start(tmp_path)
    _, second = await start(tmp_path)
    assert first.name == "2026-01-02_03-04-05_ridge_attempt_0"
    assert second.name == "2026-01-02_03-04-05_ridge_attempt_0-2"
    for folder in (first, second):
        types = [json.loads(line)["type"] for line in (folder / "events.jsonl").read_text().splitlines()]
        assert types.count("run_started") == 1 and "run_resumed" not in types


# ---------------------------------------------------------------------------------------- recipes


def test_an_idea_without_a_recipe_and_without_a_model_is_refused_before_a_folder_is_made(
    tmp_path: Path,
) -> None:
    jobs.write_ideas(tmp_path)
    done = jobs.bfts("--load_ideas", "ideas.json", "--idea_idx", "0", cwd=tmp_path)
    assert done.code == 2 and "few_labels, calibration, regression" in done.stderr
    assert not (tmp_path / "experiments").exists()
