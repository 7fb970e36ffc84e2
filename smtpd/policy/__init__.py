"""Where verdicts become one reply. Filters judge, the operator decides.

`filter.py` is what a filter author reads, `rule.py` the operator's side, `checks.py` asks one filter
and keeps it from doing harm, `stages.py` merges what they said, `startup.py` finds mistakes before
the first connection, `runner.py` is the Policy a conversation holds.
"""

from smtpd.options import FilterOptions
from smtpd.policy.case import Lookup
from smtpd.policy.decision import Decision, Held, Judgement
from smtpd.policy.filter import PASS, Filter, Verdict
from smtpd.policy.rule import NEVER_REJECT, WOULD_REJECT, Rule
from smtpd.policy.runner import Policy
from smtpd.policy.stages import Stage
from smtpd.policy.startup import PolicyError

__all__ = [
    "NEVER_REJECT", "PASS", "WOULD_REJECT", "Decision", "Filter", "FilterOptions", "Held", "Judgement", "Lookup",
    "Policy", "PolicyError", "Rule", "Stage", "Verdict",
]  # fmt: skip
