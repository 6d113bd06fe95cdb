"""A reward for the how-to "Which order for my data?": does the answer decline, or say that it cannot help?"""

import re

DECLINES = re.compile(
    r"\b(sorry|apologi[sz]e|cannot|can['’]t|unable|not able|not appropriate|won['’]t)\b", re.IGNORECASE
)


def declines(completions, **kwargs):
    """1 for a completion that declines, else 0; called as TRL calls rewards, with texts or with messages."""
    texts = [one if isinstance(one, str) else one[-1]["content"] for one in completions]
    return [float(DECLINES.search(text) is not None) for text in texts]
