"""The whole road once: `histolake demo`.

commands      the command: says what it will do, runs the steps, writes the report
steps         calls the public commands as a user would, and times them
splits        which sections train, choose and test
markers       marker sentences to annotate with
asking        the questions to the running server
collect       what the report shows, gathered from the lake, the runs and the served answers
evidence      the shape of that
figures       pictures of it
reading       what it says, in words
report        the page
summary       the figures that a program reads
"""

from __future__ import annotations

__all__: list[str] = []
