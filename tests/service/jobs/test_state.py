"""The table of moves is a sound graph."""

from __future__ import annotations

from jenga_core.service.jobs.state import ALLOWED, JobState


def test_every_state_has_a_row_and_none_leads_to_itself() -> None:
    assert set(ALLOWED) == set(JobState)
    assert all(state not in targets for state, targets in ALLOWED.items())


def test_only_three_states_are_final() -> None:
    final = {state for state in JobState if state.is_terminal}
    assert final == {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}


def test_every_state_can_be_reached_and_every_other_can_end() -> None:
    reached = {JobState.QUEUED}
    for _ in JobState:
        reached |= {target for state in reached for target in ALLOWED[state]}
    assert reached == set(JobState)
    ends = {state for state in JobState if state.is_terminal}
    for _ in JobState:
        ends |= {state for state in JobState if ALLOWED[state] & ends}
    assert ends == set(JobState)
