"""The strategies `bfts` and `greedy`: their rules, one by one, and what holds for any domain."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corerun.errors import ConfigError
from corerun.interfaces import Node, Outcome, Strategy
from corerun.search import SearchTree, derived_rng, search
from corerun.search.debugging import DebugLeaves, DebugSettings
from corerun_bfts.strategy import Bfts
from corerun_strategies import corerun_strategies
from corerun_strategies.greedy import Greedy
from tests.support.toy import Killed, ToyDomain, ToyRun, picture

Make = Callable[[dict[str, Any]], Any]
BOTH = pytest.mark.parametrize("make", [Bfts, Greedy])


class World:
    """A tree that grows by hand, and a strategy that is told of it."""

    def __init__(self, strategy: Strategy) -> None:
        self.strategy, self.tree, self.record = strategy, SearchTree("s"), 0

    def run(self, name: str, parent: str | None = None) -> World:
        self.record += 1
        number = len(self.tree.nodes)
        self.tree.ask(Node(name, parent, "", 0, number, asked_at=self.record))
        return self

    def end(self, name: str, status: str, score: float | None = None, open: bool = True) -> World:
        self.record += 1
        outcome = Outcome(status, score, open=open)
        self.strategy.tell(self.tree, self.tree.finish(name, outcome, self.record))
        return self

    def good(self, name: str, score: float, parent: str | None = None, open: bool = True) -> World:
        return self.run(name, parent).end(name, "good", score, open)

    def failed(self, name: str, parent: str | None = None, open: bool = True) -> World:
        return self.run(name, parent).end(name, "failed", open=open)

    def ask(self, slots: int = 1, seed: int = 0) -> list[str | None]:
        """The parents that are asked for; the answer must not depend on having asked before."""
        first = list(self.strategy.ask(self.tree, slots, random.Random(seed)))
        assert list(self.strategy.ask(self.tree, slots, random.Random(seed))) == first
        return [wish.parent for wish in first]

    def possible(self) -> set[str | None]:
        """What one slot is given over many draws."""
        return {parent for seed in range(60) for parent in self.ask(1, seed)}


# ---------------------------------------------------------------------------------------- drafts


@BOTH
def test_drafts_come_first_and_running_ones_count(make: Make) -> None:
    world = World(make({"num_drafts": 3}))
    assert world.ask(2) == [None, None]
    world.run("a").run("b")
    assert world.ask(1) == [None]
    world.good("c", 1.0)
    assert None not in world.possible()


@BOTH
def test_drafts_of_one_answer_count(make: Make) -> None:
    world = World(make({"num_drafts": 3, "debug_prob": 0.0})).good("a", 1.0)
    assert world.ask(4) == [None, None, "a", "a"]


def test_bfts_does_not_replace_a_draft_that_worked() -> None:
    world = World(Bfts({"num_drafts": 2})).good("a", 2.0, open=False).good("b", 1.0)
    assert world.possible() == {"b"}


def test_bfts_waits_beside_its_drafts() -> None:
    world = World(Bfts({}))
    assert world.ask(6) == [None] * 3
    world.run("a").run("b").run("c")
    assert world.ask(3) == []


def test_bfts_replaces_a_draft_that_was_given_up() -> None:
    world = World(Bfts({"max_debug_depth": 1, "debug_prob": 1.0, "num_drafts": 2}))
    world.good("a", 1.0).failed("b")
    assert world.ask() == ["b"]
    world.run("c", "b")
    assert world.ask(2) == ["a", "a"]
    world.end("c", "failed")
    assert world.ask(2) == [None, "a"]
    # A root that the domain closed, or that nobody may debug, is given up at once.
    world = World(Bfts({"num_drafts": 1})).failed("a", open=False)
    assert world.ask() == [None]
    world = World(Bfts({"num_drafts": 1, "debug_prob": 0})).failed("a")
    assert world.ask() == [None]


@BOTH
def test_without_drafts_nothing_possible_means_nothing_asked(make: Make) -> None:
    world = World(make({"num_drafts": 0, "debug_prob": 0.0}))
    assert world.ask(3) == []
    world.good("a", 1.0, open=False).failed("b", open=False).failed("c")
    assert world.ask(3) == []


@BOTH
def test_with_drafts_a_search_never_stalls(make: Make) -> None:
    world = World(make({"num_drafts": 1})).good("a", 1.0, open=False)
    assert world.ask()[:1] == [None]


# --------------------------------------------------------------------------------------- debugs


@BOTH
def test_a_chain_has_at_most_so_many_debugs(make: Make) -> None:
    world = World(make({"max_debug_depth": 2, "debug_prob": 1.0, "num_drafts": 1}))
    world.failed("a")
    assert world.ask() == ["a"]
    world.failed("b", "a")
    assert world.ask() == ["b"]
    world.failed("c", "b")
    assert world.ask() == [None]


@BOTH
def test_a_good_node_begins_a_new_chain(make: Make) -> None:
    world = World(make({"max_debug_depth": 1, "debug_prob": 1.0, "num_drafts": 1}))
    world.failed("a").good("b", 1.0, "a").failed("c", "b")
    assert world.ask() == ["c"]


@BOTH
def test_no_leaf_is_debugged_twice(make: Make) -> None:
    world = World(make({"debug_prob": 1.0, "num_drafts": 2})).good("a", 1.0).failed("b")
    assert world.ask(3) == ["b", "a", "a"]
    world.run("c", "b")
    assert world.ask(3) == ["a", "a", "a"]
    world.end("c", "good", 0.5)
    assert "b" not in world.possible()


@BOTH
def test_closed_failures_are_left_alone(make: Make) -> None:
    world = World(make({"debug_prob": 1.0, "num_drafts": 2})).good("a", 1.0).failed("b", open=False)
    world.failed("c", "a")
    assert "b" not in world.possible()


@BOTH
def test_the_draw_decides_between_debug_and_improve(make: Make) -> None:
    world = World(make({"debug_prob": 0.5, "num_drafts": 2})).good("a", 1.0).failed("b")
    counts = [world.ask(1, seed)[0] for seed in range(400)]
    assert 140 < counts.count("b") < 260
    assert counts.count("a") + counts.count("b") == 400


@BOTH
def test_each_leaf_is_equally_likely(make: Make) -> None:
    world = World(make({"debug_prob": 1.0, "num_drafts": 5}))
    for name in "abcde":
        world.failed(name)
    world.run("x", "b").run("y", "d")
    counts = [world.ask(1, seed)[0] for seed in range(600)]
    assert {name: 150 < counts.count(name) < 250 for name in "ace"} == dict.fromkeys("ace", True)
    assert counts.count("b") == counts.count("d") == 0


def test_bfts_debugs_a_busy_tree_only_if_every_viable_tree_is_busy() -> None:
    world = World(Bfts({"debug_prob": 1.0, "num_drafts": 2}))
    world.good("a", 2.0).good("b", 1.0).failed("c", "a").run("d", "a")
    # Tree a is busy and b is free: improve b, though c could be debugged.
    assert world.ask() == ["b"]
    world.run("e", "b")
    assert world.ask() == ["c"]


def test_bfts_debugs_when_nothing_else_helps() -> None:
    world = World(Bfts({"debug_prob": 0.01, "num_drafts": 1})).failed("a")
    assert world.possible() == {"a"}
    world.run("b", "a")
    assert world.ask(2) == []


# ------------------------------------------------------------------------------------ improving


def test_bfts_spreads_over_trees_then_takes_the_best() -> None:
    world = World(Bfts({"debug_prob": 0.0, "num_drafts": 3}))
    world.good("a", 1.0).good("b", 3.0).good("c", 2.0).good("d", 4.0, "a")
    assert world.ask(5) == ["d", "b", "c", "d", "d"]
    world.run("e", "d")
    assert world.ask(2) == ["b", "c"]


def test_greedy_takes_the_best() -> None:
    world = World(Greedy({"debug_prob": 0.0, "num_drafts": 2}))
    world.good("a", 1.0).good("b", 3.0)
    assert world.ask(3) == ["b", "b", "b"]


@BOTH
def test_ties_go_to_the_earlier_and_closed_nodes_are_not_improved(make: Make) -> None:
    world = World(make({"debug_prob": 0.0, "num_drafts": 1}))
    world.good("a", 1.0).good("b", 1.0, "a").good("c", 9.0, "a", open=False)
    assert world.ask() == ["a"]
    world.good("d", 2.0, "b")
    assert world.ask() == ["d"]


@BOTH
def test_a_missing_score_is_worse_than_any(make: Make) -> None:
    world = World(make({"debug_prob": 0.0, "num_drafts": 1}))
    world.run("a").end("a", "good", None)
    assert world.ask() == ["a"]
    world.good("b", -1e9, "a")
    assert world.ask() == ["b"]


# ------------------------------------------------------------------------------------- settings


@BOTH
@pytest.mark.parametrize(
    "wrong",
    [
        {"num_draft": 3},
        {"num_drafts": -1},
        {"num_drafts": 1.5},
        {"num_drafts": True},
        {"debug_prob": 1.1},
        {"debug_prob": "often"},
        {"debug_prob": float("nan")},
        {"max_debug_depth": None},
    ],
)
def test_wrong_settings_are_refused(make: Make, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        make(wrong)


def test_defaults() -> None:
    assert Bfts({}).settings == DebugSettings(max_debug_depth=3, debug_prob=0.5, num_drafts=3)
    assert Greedy({}).settings == DebugSettings(max_debug_depth=3, debug_prob=0.5, num_drafts=5)


def test_greedy_is_offered() -> None:
    offered = {component.name: component.target for component in corerun_strategies()}
    assert offered["greedy"] == f"{Greedy.__module__}:{Greedy.__name__}"


# ------------------------------------------------------------------------------- for any domain


class Watched:
    """Checks every answer of a strategy against what no strategy may do."""

    def __init__(self, strategy: Any) -> None:
        self.strategy, self.choices = strategy, []  # type: ignore[var-annotated]

    def ask(self, tree: Any, slots: int, rng: random.Random) -> Any:
        state = rng.getstate()
        before = picture(tree)
        wishes = list(self.strategy.ask(tree, slots, rng))
        rng.setstate(state)
        assert list(self.strategy.ask(tree, slots, rng)) == wishes
        assert picture(tree) == before
        assert len(wishes) <= slots
        parents = [tree.nodes[wish.parent] for wish in wishes if wish.parent is not None]
        assert all(parent.open and parent.status != "running" for parent in parents)
        debugs = [parent.id for parent in parents if parent.status == "failed"]
        assert len(set(debugs)) == len(debugs)
        assert not any(tree.nodes[leaf].children for leaf in debugs)
        limit = self.strategy.settings.max_debug_depth
        assert all(tree.nodes[leaf].debug_depth < limit for leaf in debugs)
        if not wishes and not tree.running:
            assert self.strategy.settings.num_drafts == 0, "a search with drafts never stalls"
        self.choices.append([wish.parent for wish in wishes])
        return wishes

    def tell(self, tree: Any, node: Node) -> None:
        self.strategy.tell(tree, node)


SETTINGS = st.fixed_dictionaries(
    {
        "max_debug_depth": st.integers(0, 3),
        "debug_prob": st.sampled_from([0.0, 0.5, 1.0]),
        "num_drafts": st.integers(0, 4),
    }
)
DOMAINS = st.fixed_dictionaries(
    {"fail": st.sampled_from([0.0, 0.5, 0.9]), "close": st.sampled_from([0.0, 0.4])}
)


def searched(run: ToyRun, domain: dict[str, Any], strategy: Any, **options: Any) -> SearchTree:
    options = {"scope": "s", "max_nodes": 25, "in_flight": 4, **options}
    return asyncio.run(search(run, ToyDomain(**domain), strategy, **options))  # type: ignore[arg-type]


@BOTH
@given(st.integers(0, 99), SETTINGS, DOMAINS, st.integers(1, 6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_no_strategy_does_what_it_may_not(
    make: Make, seed: int, config: dict[str, Any], domain: dict[str, Any], in_flight: int, batch: bool
) -> None:
    run = ToyRun(seed)
    tree = searched(run, domain, Watched(make(config)), in_flight=in_flight, batch=batch)
    assert not run.warnings
    assert tree.asked == tree.done == (25 if config["num_drafts"] else 0)


@BOTH
@given(st.integers(0, 99), SETTINGS, DOMAINS, st.integers(1, 6), st.integers(1, 45))
@settings(max_examples=40, deadline=None)
def test_choices_are_the_same_after_all_state_was_rebuilt(
    make: Make, seed: int, config: dict[str, Any], domain: dict[str, Any], in_flight: int, kill: int
) -> None:
    config = {**config, "num_drafts": max(1, config["num_drafts"])}
    whole = searched(ToyRun(seed), domain, make(config), in_flight=in_flight, batch=True)
    killed = ToyRun(seed, kill_after=kill)
    with pytest.raises(Killed):
        searched(killed, domain, make(config), in_flight=in_flight, batch=True)
    resumed = searched(ToyRun(seed, killed.journal), domain, make(config), in_flight=in_flight, batch=True)
    assert picture(resumed) == picture(whole)


@BOTH
def test_equal_choices_of_one_told_live_and_one_told_later(make: Make) -> None:
    for seed in range(20):
        live, tree = make({}), SearchTree("s")
        searched(ToyRun(seed), {"fail": 0.5, "close": 0.2}, live, tree=tree)
        later = make({})
        for node in sorted(tree.nodes.values(), key=lambda node: node.done_at or 0):
            later.tell(tree, node)
        for number in range(30):
            answers = [s.ask(tree, 4, derived_rng(seed, number)) for s in (live, later)]
            assert answers[0] == answers[1]


@BOTH
def test_a_search_finds_better_numbers(make: Make) -> None:
    tree = searched(ToyRun(5), {"fail": 0.3}, make({}), max_nodes=60)
    roots = [tree.nodes[root].score for root in tree.roots if tree.nodes[root].status == "good"]
    assert tree.best is not None and tree.best.score is not None
    assert tree.best.score > max(score for score in roots if score is not None)


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.data())
@settings(max_examples=60, deadline=None)
def test_a_pick_is_a_free_leaf_and_reaches_all(fails: list[bool], data: st.DataObject) -> None:
    leaves, tree = DebugLeaves(DebugSettings()), SearchTree("s")
    for number, fail in enumerate(fails):
        tree.ask(Node(f"n{number}", None, "", 0, number))
        leaves.tell(tree.finish(f"n{number}", Outcome("failed" if fail else "good"), number))
    failed = [f"n{number}" for number, fail in enumerate(fails) if fail]
    taken = data.draw(st.sets(st.sampled_from(failed))) if failed else set()
    free = set(failed) - taken
    picks = [leaves.pick(taken, random.Random(seed)) for seed in range(40)]
    assert {leaf.id for leaf in picks if leaf is not None} <= free
    assert (None in picks) == (not free)
    if len(free) < 6:
        assert {leaf.id for leaf in picks if leaf is not None} == free
    assert leaves.by_root == dict.fromkeys(failed, 1)


# ------------------------------------------------------------------------------------------ cost


class Metered:
    """Counts the Python and C calls within one strategy's ask and tell."""

    def __init__(self, strategy: Any) -> None:
        self.strategy, self.calls, self.asks = strategy, 0, []  # type: ignore[var-annotated]

    def _count(self, frame: Any, kind: str, argument: Any) -> None:
        self.calls += kind in ("call", "c_call")

    def ask(self, tree: Any, slots: int, rng: random.Random) -> Any:
        self.asks.append((len(tree.nodes), self.calls))
        sys.setprofile(self._count)
        try:
            return self.strategy.ask(tree, slots, rng)
        finally:
            sys.setprofile(None)

    def tell(self, tree: Any, node: Node) -> None:
        sys.setprofile(self._count)
        try:
            self.strategy.tell(tree, node)
        finally:
            sys.setprofile(None)


@BOTH
def test_the_work_per_ask_does_not_grow(make: Make) -> None:
    metered = Metered(make({"num_drafts": 6}))
    searched(ToyRun(1), {"fail": 0.4}, metered, max_nodes=1100, in_flight=4)
    until = {
        size: next(calls for nodes, calls in metered.asks if nodes >= size) for size in (50, 250, 850, 1050)
    }
    assert until[1050] - until[850] == pytest.approx(until[250] - until[50], rel=0.2)
