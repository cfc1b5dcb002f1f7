"""The kinds of questions by name, in the order of tables."""

from __future__ import annotations

from nld_train.data.tasks.follow_up import FollowUp
from nld_train.data.tasks.kind import Kind
from nld_train.data.tasks.letters import Copy, Reverse, Upper
from nld_train.data.tasks.lookup import Lookup
from nld_train.data.tasks.numbers import Add, Count, Sort

KINDS: dict[str, Kind] = {
    kind.name: kind for kind in (Copy(), Reverse(), Sort(), Upper(), Add(), Count(), Lookup(), FollowUp())
}
