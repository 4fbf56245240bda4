"""The tree's views, and the driver: order, limits, faults, resume after a kill at any record."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corerun import errors
from corerun.interfaces import Expansion, Node, Outcome, Strategy
from corerun.search import (
    SearchTree,
    carry_root,
    derived_rng,
    finished_before,
    node_id,
    running_at,
    search,
)
from tests.support.toy import (
    AnyOpen,
    Fixed,
    GatedDomain,
    Killed,
    ToyDomain,
    ToyRun,
    drafts,
    picture,
)

GOOD = Outcome("good", score=1.0)


# ---------------------------------------------------------------------------------- identities


def test_node_ids_depend_on_seed_scope_and_number_alone() -> None:
    ids = {node_id(seed, scope, number) for seed in (0, 1) for scope in ("a", "b") for number in range(9)}
    assert len(ids) == 36
    assert all(len(name) == 16 and set(name) <= set("0123456789abcdef") for name in ids)
    # Fixed for ever: a changed id would orphan the nodes of every existing journal.
    assert node_id(0, "stage_1", 0) == "a2ea4cd33f0af3b0"


@given(st.lists(st.integers() | st.text() | st.none() | st.booleans(), max_size=4))
def test_derived_generators_follow_from_their_parts(parts: list[Any]) -> None:
    draws = derived_rng(*parts).random()
    assert derived_rng(*parts).random() == draws
    assert derived_rng(*parts, "more").random() != draws


# -------------------------------------------------------------------------------------- the tree


@st.composite
def grown_trees(draw: st.DrawFn) -> SearchTree:
    """Trees as a driver grows them, each step one journal record."""
    tree = SearchTree("s")
    for record in range(1, draw(st.integers(1, 40))):
        grow = not tree.running or draw(st.booleans())
        if grow:
            parents = [None, *(node.id for node in tree.nodes.values() if node.status != "running")]
            number = len(tree.nodes)
            node = Node(f"n{number}", draw(st.sampled_from(parents)), "", 0, number, asked_at=record)
            node.counted = draw(st.booleans())
            tree.ask(node)
        else:
            status = draw(st.sampled_from(["good", "failed"]))
            score = draw(st.none() | st.sampled_from([0.0, 1.0, 2.0])) if status == "good" else None
            outcome = Outcome(status, score, open=draw(st.booleans()))
            tree.finish(draw(st.sampled_from(list(tree.running))), outcome, record)
    return tree


@given(grown_trees())
def test_views_equal_what_a_scan_of_all_nodes_finds(tree: SearchTree) -> None:
    nodes = list(tree.nodes.values())
    good = [node for node in nodes if node.status == "good"]
    failed = [node for node in nodes if node.status == "failed" and node.open and not node.children]
    assert list(tree.running.values()) == [node for node in nodes if node.status == "running"]
    assert sorted(tree.good) == sorted(node.id for node in good)
    assert sorted(tree.open_failed) == sorted(node.id for node in failed)
    assert tree.roots == [node.id for node in nodes if node.parent is None]
    assert tree.asked == sum(node.counted for node in nodes)
    assert tree.done == sum(node.counted for node in nodes if node.status != "running")
    scored = [node for node in good if node.score is not None] or good
    top = min(scored, key=lambda node: (-(node.score or 0.0), node.seq), default=None)
    assert tree.best is top
    for node in nodes:
        assert node.children == [child.id for child in nodes if child.parent == node.id]
        parent = tree.nodes[node.parent] if node.parent else None
        assert (node.root, node.depth) == ((parent.root, parent.depth + 1) if parent else (node.id, 0))
        chained = parent is not None and parent.status == "failed"
        assert node.debug_depth == (parent.debug_depth + 1 if parent and chained else 0)


@given(grown_trees())
def test_what_was_finished_and_running_at_any_record(tree: SearchTree) -> None:
    nodes = list(tree.nodes.values())
    for seq in range(50):
        finished = [node for node in nodes if node.done_at is not None and node.done_at < seq]
        asked = [node for node in nodes if node.asked_at < seq]
        assert finished_before(tree, seq) == finished
        assert running_at(tree, seq) == [node for node in asked if node not in finished]


def test_a_tree_refuses_impossible_updates() -> None:
    tree = SearchTree("s")
    tree.ask(Node("a", None, "", 0, 0))
    for node in (Node("a", None, "", 0, 1), Node("b", "a", "", 0, 1), Node("b", "z", "", 0, 1)):
        with pytest.raises(errors.StateError):
            tree.ask(node)
    tree.finish("a", GOOD, 2)
    with pytest.raises(errors.StateError):
        tree.finish("a", GOOD, 3)
    assert list(tree.nodes) == ["a"]


# ------------------------------------------------------------------------------------ the driver


async def go(run: ToyRun, domain: Any, strategy: Strategy, **options: Any) -> SearchTree:
    options = {"scope": "s", "max_nodes": 20, "in_flight": 1, **options}
    return await search(run, domain, strategy, **options)  # type: ignore[arg-type]


def records(run: ToyRun, kind: str) -> list[dict[str, Any]]:
    return [dict(event.data) for event in run.journal if event.type == kind]


def bodies(run: ToyRun) -> list[tuple[str, dict[str, Any]]]:
    return [(event.type, dict(event.data)) for event in run.journal]


async def started(domain: GatedDomain, count: int) -> list[int]:
    return [await domain.started.get() for _ in range(count)]


async def test_a_node_is_recorded_before_it_starts_and_before_it_is_told() -> None:
    run = ToyRun()
    seen: list[tuple[str, int, int]] = []

    class Domain(ToyDomain):
        async def expand(self, run: Any, tree: Any, node: Node) -> Outcome:
            assert run.journal[node.asked_at - 1].data["node"] == node.id
            seen.append(("expand", node.seq, len(run.journal)))
            return GOOD

    class Told(Fixed):
        def tell(self, tree: Any, node: Node) -> None:
            assert run.journal[node.done_at - 1].type == "node_done"
            seen.append(("tell", node.seq, len(run.journal)))

    await go(run, Domain(), Told(drafts), max_nodes=2)
    assert seen == [("expand", 0, 1), ("tell", 0, 2), ("expand", 1, 3), ("tell", 1, 4)]
    assert records(run, "node_asked")[1] == {
        "scope": "s",
        "node": node_id(0, "s", 1),
        "parent": None,
        "seq": 1,
        "hint": {},
        "attempt": 0,
        "counted": True,
        "batch": None,
    }
    assert records(run, "node_done")[1] == {
        "scope": "s",
        "node": node_id(0, "s", 1),
        "seq": 1,
        "attempt": 0,
        "status": "good",
        "score": 1.0,
        "reason": "",
        "open": True,
        "data": {},
    }


async def test_a_slow_node_holds_nothing_up() -> None:
    domain, strategy = GatedDomain(), Fixed(drafts)
    task = asyncio.create_task(go(ToyRun(), domain, strategy, max_nodes=8, in_flight=2))
    assert await started(domain, 2) == [0, 1]
    for number in range(1, 7):
        domain.open(number, GOOD)
        assert await started(domain, 1) == [number + 1]
    domain.open(7, GOOD)
    domain.open(0, GOOD)
    tree = await task
    assert strategy.told == [1, 2, 3, 4, 5, 6, 0, 7]
    assert tree.asked == tree.done == 8


async def test_nodes_that_end_together_are_told_by_ask_number() -> None:
    domain, strategy, run = GatedDomain(), Fixed(drafts), ToyRun()
    task = asyncio.create_task(go(run, domain, strategy, max_nodes=4, in_flight=4))
    await started(domain, 4)
    for number in (3, 1, 2, 0):
        domain.open(number, GOOD)
    await task
    assert strategy.told == [0, 1, 2, 3]
    assert [record["seq"] for record in records(run, "node_done")] == [0, 1, 2, 3]


@given(st.integers(0, 30), st.integers(1, 7), st.booleans(), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_limits_hold(max_nodes: int, in_flight: int, batch: bool, seed: int) -> None:
    under_way: list[int] = []

    class Domain(ToyDomain):
        async def expand(self, run: Any, tree: Any, node: Node) -> Outcome:
            under_way.append(len(tree.running))
            return await super().expand(run, tree, node)

    run = ToyRun(seed)
    limits = {"max_nodes": max_nodes, "in_flight": in_flight, "batch": batch}
    tree = asyncio.run(go(run, Domain(lose=0.3), AnyOpen(), **limits))
    assert tree.asked == tree.done == max_nodes
    assert max(under_way, default=0) <= in_flight
    assert Counter(record["node"] for record in records(run, "node_done")) == Counter(list(tree.nodes))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (ValueError("no  such\nthing"), "ValueError: no such thing"),
        (errors.BadAnswer("not JSON", raw="x"), "BadAnswer: not JSON"),
        (Outcome("splendid"), "ValueError: a domain can't answer with status 'splendid'"),
        (Outcome("good", score="high"), None),  # type: ignore[arg-type]
    ],
)
async def test_a_fault_of_an_expansion_is_a_failed_node(fault: Any, reason: str | None) -> None:
    domain, run = GatedDomain(), ToyRun()
    task = asyncio.create_task(go(run, domain, Fixed(drafts), max_nodes=2))
    await started(domain, 1)
    domain.open(0, fault)
    await started(domain, 1)
    domain.open(1, Outcome("good", score=float("nan")))
    tree = await task
    first, second = tree.nodes.values()
    assert (first.status, first.score) == ("failed", None)
    assert first.reason == reason or (reason is None and first.reason.startswith("TypeError: "))
    assert (second.status, second.score) == ("good", None)


@pytest.mark.parametrize(
    "fault",
    [
        errors.AuthFailed("no key"),
        errors.BudgetExceeded("money"),
        errors.SandboxUnavailable("none"),
        errors.StateError("disk"),
        errors.ConfigError("bad"),
        errors.Interrupted("ctrl-c"),
    ],
)
async def test_what_ends_the_run_ends_the_search(fault: Exception) -> None:
    domain, run = GatedDomain(), ToyRun()
    task = asyncio.create_task(go(run, domain, Fixed(drafts), in_flight=3))
    await started(domain, 3)
    domain.open(2, GOOD)
    domain.open(1, fault)
    with pytest.raises(type(fault)):
        await task
    assert domain.cancelled == [0]
    assert asyncio.all_tasks() == {asyncio.current_task()}
    # A node that ended in the same moment is not lost.
    assert [record["seq"] for record in records(run, "node_done")] == [2]


async def test_cancelling_the_search_ends_its_tasks() -> None:
    domain = GatedDomain()
    task = asyncio.create_task(go(ToyRun(), domain, Fixed(drafts), in_flight=3))
    await started(domain, 3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(domain.cancelled) == [0, 1, 2]
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("fault", [errors.InfrastructureError("lost"), Outcome("infra", reason="lost")])
@pytest.mark.parametrize("batch", [False, True])
async def test_infrastructure_gets_one_more_attempt(fault: Any, batch: bool) -> None:
    domain, run, strategy = GatedDomain(), ToyRun(), Fixed(drafts)
    task = asyncio.create_task(go(run, domain, strategy, max_nodes=2, in_flight=2, batch=batch))
    await started(domain, 2)
    domain.open(0, fault)
    assert await started(domain, 1) == [0]
    domain.open(0, GOOD)
    domain.open(1, fault)
    assert await started(domain, 1) == [1]
    domain.open(1, fault)
    tree = await task
    first, second = tree.nodes.values()
    assert (first.status, first.attempt, tree.asked) == ("good", 1, 2)
    assert (second.status, second.reason, second.score) == ("failed", "infra: lost", None)
    assert not second.open
    asked = [(r["seq"], r["attempt"], r["batch"]) for r in records(run, "node_asked")]
    number = 1 if batch else None
    assert asked == [(0, 0, number), (1, 0, number), (0, 1, number), (1, 1, number)]
    assert len(records(run, "node_done")) == 2 == len(strategy.told)


async def test_without_retries_the_first_loss_counts() -> None:
    run = ToyRun()
    tree = await go(run, ToyDomain(lose=1.0), Fixed(drafts), max_nodes=3, infra_retries=0)
    assert {node.reason for node in tree.nodes.values()} == {"infra: a worker was lost"}
    assert len(records(run, "node_asked")) == 3


async def test_bad_parents_are_refused_with_one_warning_each() -> None:
    def wishes(tree: Any, slots: int) -> list[Expansion]:
        bad = [Expansion("nobody"), *(Expansion(node) for node in tree.nodes)]
        return [*bad, Expansion()]

    run = ToyRun()
    tree = await go(run, ToyDomain(close=1.0), Fixed(wishes), max_nodes=12, in_flight=2)
    assert tree.asked == len(tree.roots) == 12
    said = sorted(message.split(" that is ")[1] for message in run.warnings)
    assert said == ["closed; refused", "still running; refused", "unknown; refused"]


async def test_a_strategy_with_only_refused_wishes_ends_the_search() -> None:
    run = ToyRun()
    tree = await go(run, ToyDomain(), Fixed(lambda tree, slots: [Expansion("nobody")]))
    assert not tree.nodes
    assert len(run.warnings) == 1


async def test_an_empty_answer_waits_while_something_runs_and_ends_the_search_after() -> None:
    domain = GatedDomain()
    strategy = Fixed(lambda tree, slots: [Expansion()] if tree.done == len(tree.nodes) < 3 else [])
    task = asyncio.create_task(go(ToyRun(), domain, strategy, in_flight=4))
    for number in range(3):
        assert await started(domain, 1) == [number]
        domain.open(number, GOOD)
    assert (await task).done == 3
    # It was asked for the three other places while a node ran, had nothing, and that ended nothing.
    assert (3, 3) in strategy.asked
    assert strategy.asked[-1] == (3, 4)


async def test_an_answer_that_is_too_long_is_cut() -> None:
    tree = await go(
        ToyRun(), ToyDomain(), Fixed(lambda tree, slots: [Expansion()] * 50), max_nodes=5, in_flight=3
    )
    assert tree.asked == 5


class Asking(GatedDomain):
    """A gated domain whose question whether it is finished waits for the test, too."""

    def __init__(self) -> None:
        super().__init__()
        self.questions: asyncio.Queue[asyncio.Future[bool]] = asyncio.Queue()

    async def finished(self, run: Any, tree: Any) -> bool:
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.questions.put_nowait(answer)
        return await answer


async def test_the_question_runs_beside_nodes_and_stops_new_asks() -> None:
    domain, run = Asking(), ToyRun()
    task = asyncio.create_task(go(run, domain, Fixed(drafts), in_flight=2))
    await started(domain, 2)
    domain.open(0, GOOD)
    question = await domain.questions.get()
    assert await started(domain, 1) == [2]
    domain.open(1, GOOD)
    domain.open(2, GOOD)
    assert await started(domain, 2) == [3, 4]
    assert domain.questions.empty()
    question.set_result(False)
    # Two nodes were told meanwhile: that is one more question.
    question = await domain.questions.get()
    question.set_result(True)
    await asyncio.sleep(0)
    domain.open(3, GOOD)
    domain.open(4, GOOD)
    tree = await task
    assert tree.asked == tree.done == 5 == len(records(run, "node_done"))
    assert domain.questions.empty()


async def test_in_order_the_question_comes_after_every_node() -> None:
    domain = ToyDomain()
    await go(ToyRun(), domain, Fixed(drafts), max_nodes=4)
    assert domain.questions == [1, 2, 3, 4]
    domain = ToyDomain()
    await go(ToyRun(), domain, Fixed(drafts), max_nodes=4, in_flight=3, batch=True)
    assert domain.questions == [1, 2, 3, 4]


async def test_an_error_of_the_question_ends_the_search() -> None:
    domain = Asking()
    task = asyncio.create_task(go(ToyRun(), domain, Fixed(drafts), in_flight=2))
    await started(domain, 2)
    domain.open(1, GOOD)
    (await domain.questions.get()).set_exception(errors.BadAnswer("no"))
    with pytest.raises(errors.BadAnswer):
        await task
    assert 0 in domain.cancelled


async def test_a_batch_is_told_by_ask_number_when_all_of_it_is_done() -> None:
    domain, strategy, run = GatedDomain(), Fixed(drafts), ToyRun()
    task = asyncio.create_task(go(run, domain, strategy, max_nodes=5, in_flight=3, batch=True))
    assert await started(domain, 3) == [0, 1, 2]
    done_first = asyncio.Event()
    run.on_emit = lambda event: done_first.set()
    domain.open(2, GOOD)
    await done_first.wait()
    assert [record["seq"] for record in records(run, "node_done")] == [2]
    assert strategy.told == []
    domain.open(1, GOOD)
    domain.open(0, GOOD)
    assert await started(domain, 2) == [3, 4]
    assert strategy.told == [0, 1, 2]
    domain.open(3, GOOD)
    domain.open(4, GOOD)
    await task
    assert [record["batch"] for record in records(run, "node_asked")] == [1, 1, 1, 2, 2]


async def test_a_batch_that_is_short_is_not_topped_up() -> None:
    domain, run = GatedDomain(), ToyRun()
    strategy = Fixed(lambda tree, slots: [Expansion()] * 2)
    task = asyncio.create_task(go(run, domain, strategy, max_nodes=4, in_flight=3, batch=True))
    for first in (0, 2):
        assert await started(domain, 2) == [first, first + 1]
        recorded = asyncio.Event()
        run.on_emit = lambda event, recorded=recorded: recorded.set()
        domain.open(first + 1, GOOD)
        await recorded.wait()
        domain.open(first, GOOD)
    await task
    assert strategy.asked == [(0, 3), (2, 2)]
    assert [record["batch"] for record in records(run, "node_asked")] == [1, 1, 2, 2]


async def test_draws_follow_from_seed_scope_and_ask_number() -> None:
    draws: list[float] = []

    class Drawing(Fixed):
        def ask(self, tree: Any, slots: int, rng: Any) -> Any:
            draws.append(rng.random())
            return [Expansion()]

    await go(ToyRun(seed=8), ToyDomain(), Drawing(drafts), max_nodes=3)
    assert draws == [derived_rng(8, "s", number).random() for number in range(3)]


@pytest.mark.parametrize("options", [{"in_flight": 0}, {"tree": SearchTree("another")}])
async def test_nonsense_is_refused(options: dict[str, Any]) -> None:
    run = ToyRun()
    with pytest.raises(errors.UsageError):
        await go(run, ToyDomain(), Fixed(drafts), **options)
    assert not run.journal


async def test_a_caller_may_hold_the_tree() -> None:
    tree = SearchTree("s")
    assert await go(ToyRun(), ToyDomain(), Fixed(drafts), tree=tree) is tree
    with pytest.raises(errors.UsageError):
        await go(ToyRun(), ToyDomain(), Fixed(drafts), tree=tree)


# --------------------------------------------------------------------------------------- resuming


def interrupted(seed: int, kills: list[int], domain: dict[str, Any], **options: Any) -> Any:
    """Search, killed again and again after that many more records; the last try goes to the end."""
    journal: list[Any] = []
    for more in kills:
        run = ToyRun(seed, journal, kill_after=len(journal) + more)
        try:
            asyncio.run(go(run, ToyDomain(**domain), AnyOpen(), **options))
        except Killed:
            journal = run.journal
    run, last, strategy = ToyRun(seed, journal), ToyDomain(**domain), AnyOpen()
    tree = asyncio.run(go(run, last, strategy, **options))
    return run, tree, last, strategy


DOMAINS = st.fixed_dictionaries(
    {
        "fail": st.sampled_from([0.0, 0.4]),
        "close": st.sampled_from([0.0, 0.4]),
        "lose": st.sampled_from([0.0, 0.3]),
        "goal": st.sampled_from([None, -60.0, -10.0]),
    }
)
KILLS = st.lists(st.integers(1, 60), min_size=1, max_size=4)


@given(st.integers(0, 50), KILLS, DOMAINS)
@settings(max_examples=150, deadline=None)
def test_one_place_killed_anywhere_gives_the_same_journal(
    seed: int, kills: list[int], domain: dict[str, Any]
) -> None:
    whole, tree, _, told = interrupted(seed, [], domain)
    again, resumed, _, told_again = interrupted(seed, kills, domain)
    assert again.journal == whole.journal
    assert picture(resumed) == picture(tree)
    assert told_again.told == told.told


@given(st.integers(0, 50), KILLS, DOMAINS, st.integers(2, 5))
@settings(max_examples=150, deadline=None)
def test_batches_killed_anywhere_give_the_same_tree(
    seed: int, kills: list[int], domain: dict[str, Any], in_flight: int
) -> None:
    options = {"in_flight": in_flight, "batch": True, "max_nodes": 17}
    whole, tree, asked, told = interrupted(seed, [], domain, **options)
    again, resumed, asked_again, told_again = interrupted(seed, kills, domain, **options)
    assert picture(resumed) == picture(tree)
    assert told_again.told == told.told
    assert asked_again.questions == asked.questions
    # Neither the order of arrival within a batch nor the kills change what is recorded, or how often.
    assert sorted(map(repr, bodies(again))) == sorted(map(repr, bodies(whole)))


@given(st.integers(0, 50), KILLS, DOMAINS, st.integers(2, 5), st.lists(st.booleans(), min_size=5, max_size=5))
@settings(max_examples=150, deadline=None)
def test_free_workers_lose_no_finished_node(
    seed: int, kills: list[int], domain: dict[str, Any], in_flight: int, batches: list[bool]
) -> None:
    """Whatever the scheduler of each try was."""
    journal: list[Any] = []
    finished: dict[str, Any] = {}
    for more, batch in zip([*kills, 10**6], batches, strict=False):
        run, toy = ToyRun(seed, journal, kill_after=len(journal) + more), ToyDomain(**domain)
        tree = SearchTree("s")
        with contextlib.suppress(Killed):
            asyncio.run(go(run, toy, AnyOpen(), in_flight=in_flight, batch=batch, tree=tree))
        journal = run.journal
        assert not toy.expanded.keys() & finished.keys()
        finished = {e.data["node"]: e.data for e in journal if e.type == "node_done"}
        assert len(finished) == len(records(run, "node_done"))
    assert tree.done == tree.asked == len(finished) == len(tree.nodes)
    assert tree.asked == 20 or domain["goal"] is not None
    for node in tree.nodes.values():
        assert (node.status, node.score, node.data) == (
            finished[node.id]["status"],
            finished[node.id]["score"],
            finished[node.id]["data"],
        )


def test_a_partly_finished_batch_runs_only_what_is_left() -> None:
    options = {"in_flight": 4, "batch": True, "max_nodes": 8}
    whole, _, _, _ = interrupted(3, [], {}, **options)
    # Four asks, then two of the batch are done.
    _, tree, domain, _ = interrupted(3, [6], {}, **options)
    done = {event.data["node"] for event in whole.journal[4:6]}
    assert len(done) == 2 and not done & domain.expanded.keys()
    assert domain.expanded.total() == 6 and tree.done == 8


def test_a_search_that_was_finished_stays_finished() -> None:
    for options in ({"in_flight": 1}, {"in_flight": 3}, {"in_flight": 3, "batch": True}):
        run, tree, _, _ = interrupted(1, [], {"goal": -200.0}, max_nodes=200, **options)
        assert tree.asked < 200
        again = ToyRun(1, run.journal)
        after = asyncio.run(go(again, ToyDomain(goal=-200.0), AnyOpen(), max_nodes=200, **options))
        assert picture(after) == picture(tree)
        assert again.journal == run.journal


def test_a_second_attempt_stays_a_second_attempt() -> None:
    run, tree, _, _ = interrupted(0, [2], {"lose": 1.0}, max_nodes=1)
    assert [record["attempt"] for record in records(run, "node_asked")] == [0, 1]
    assert [node.attempt for node in tree.nodes.values()] == [1]


def test_scopes_do_not_see_each_other() -> None:
    run = ToyRun()
    first = asyncio.run(go(run, ToyDomain(), AnyOpen(), scope="a", max_nodes=5))
    second = asyncio.run(go(run, ToyDomain(), AnyOpen(), scope="b", max_nodes=6))
    assert (first.asked, second.asked) == (5, 6)
    assert not first.nodes.keys() & second.nodes.keys()


@pytest.mark.parametrize("kill_after", [None, 1, 2, 3])
async def test_a_carried_root_is_planted_once(kill_after: int | None) -> None:
    outcome = Outcome("good", score=5.0, data={"number": 7})
    strategy = Fixed(lambda tree, slots: [Expansion(tree.roots[0])])
    run = ToyRun(kill_after=kill_after)
    try:
        carry_root(run, "s", outcome, {"from": "x"})
        await go(run, ToyDomain(), strategy, max_nodes=2)
    except Killed:
        run = ToyRun(journal=run.journal)
    root = carry_root(run, "s", outcome, {"from": "x"})
    strategy = Fixed(lambda tree, slots: [Expansion(tree.roots[0])])
    tree = await go(run, ToyDomain(), strategy, max_nodes=2)
    assert tree.roots == [root] and strategy.told == [0, 1, 2]
    node = tree.nodes[root]
    assert (node.score, node.counted, node.hint, tree.asked) == (5.0, False, {"from": "x"}, 2)
    assert len(records(run, "node_done")) == 3


def test_a_journal_with_an_unknown_node_is_corrupt() -> None:
    run, _, _, _ = interrupted(0, [], {}, max_nodes=1)
    with pytest.raises(errors.StateError):
        asyncio.run(go(ToyRun(0, run.journal[1:]), ToyDomain(), AnyOpen()))


# ------------------------------------------------------------------------------------------- cost


def test_the_work_per_node_does_not_grow() -> None:
    calls, per_node = 0, []

    def count(frame: Any, kind: str, argument: Any) -> None:
        nonlocal calls
        calls += kind in ("call", "c_call")

    class Flat(ToyDomain):
        async def expand(self, run: Any, tree: Any, node: Node) -> Outcome:
            per_node.append(calls)
            running_at(tree, node.asked_at)
            return GOOD

    def wishes(tree: Any, slots: int) -> list[Expansion]:
        return [Expansion(tree.best.id if tree.best else None)] * slots

    sys.setprofile(count)
    try:
        asyncio.run(go(ToyRun(), Flat(), Fixed(wishes), max_nodes=1001, in_flight=4))
    finally:
        sys.setprofile(None)
    early, late = per_node[100] - per_node[50], per_node[1000] - per_node[950]
    assert late == pytest.approx(early, rel=0.2)


# --------------------------------------------------------------- nothing to expand, and stopping


class VoidAfter:
    """Has ``count`` candidates; every expansion beyond them finds nothing to do."""

    def __init__(self, count: int) -> None:
        self.count = count

    async def expand(self, run: Any, tree: Any, node: Node) -> Outcome:
        return GOOD if node.seq < self.count else Outcome("void", reason="nothing is left")

    async def finished(self, run: Any, tree: Any) -> bool:
        return any(node.status == "void" for node in tree.nodes.values())


async def test_a_void_expansion_counts_nowhere_and_resumes_the_same() -> None:
    run = ToyRun()
    tree = await search(run, VoidAfter(3), Fixed(drafts), scope="s", max_nodes=20, in_flight=1)
    assert [node.status for node in tree.nodes.values()] == ["good"] * 3 + ["void"]
    assert (tree.asked, tree.done, len(tree.good), len(tree.open_failed)) == (3, 3, 3, 0)
    again = await search(
        ToyRun(journal=run.journal), VoidAfter(3), Fixed(drafts), scope="s", max_nodes=20, in_flight=1
    )
    assert picture(again) == picture(tree)


async def test_a_stopping_run_asks_for_nothing_new_waits_and_ends_as_interrupted() -> None:
    run, domain = ToyRun(), GatedDomain()
    task = asyncio.create_task(search(run, domain, Fixed(drafts), scope="s", max_nodes=20, in_flight=2))
    assert [await domain.started.get(), await domain.started.get()] == [0, 1]
    run.stopping = True
    domain.gates[1].set_result(GOOD)
    domain.gates[0].set_result(GOOD)
    with pytest.raises(errors.Interrupted):
        await task
    assert Counter(event.type for event in run.journal) == {"node_asked": 2, "node_done": 2}
