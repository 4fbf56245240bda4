from __future__ import annotations

from corerun_myreward.length import Length

from corerun.interfaces import Reward, Rollout


def test_short_answers_score_higher() -> None:
    reward = Length()
    assert isinstance(reward, Reward)
    scores = [reward.score(Rollout(problem=None, answer="x" * size)) for size in (0, 200, 2000)]
    assert scores == [1.0, 0.5, 200 / 2200]


def test_no_answer_no_opinion() -> None:
    assert Length().score(Rollout(problem=None)) is None
