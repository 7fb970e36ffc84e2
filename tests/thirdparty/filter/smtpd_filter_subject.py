"""Refuse messages whose subject holds a word the operator does not want to see.

An example of a filter that lives in a distribution of its own: one class, one entry point in the
group `smtpd.filters`. It is switched on by a table `[smtpd.filters.subject]` with `words`.
"""

from smtpd.model import Message, Transaction
from smtpd.options import FilterOptions, Strings
from smtpd.policy import PASS, Filter, Verdict
from smtpd.replies import BAD_HEADER


class Options(FilterOptions):
    """Options of the filter `subject`."""

    words: Strings = ()
    """Words that no subject may hold, in any case."""


class Subject(Filter):
    """Looks at the Subject field, nothing else."""

    name = "subject"
    Options = Options
    options: Options

    async def on_message(self, mail: Transaction, message: Message) -> Verdict:
        """Compare the subject with the words."""
        subject = b" ".join(message.field_values("subject")).decode("utf-8", "replace").lower()
        for word in self.options.words:
            if word.lower() in subject:
                return Verdict(BAD_HEADER(problem=f"Nobody here wants to read about {word}"))
        return PASS
