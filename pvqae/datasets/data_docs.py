"""The page around Great Expectations' sections: opens without a network, runs nothing, changes only with the data.

Its own page loads styles and scripts from five public servers, links to pages that we don't have and carries the time.
"""

from collections.abc import Sequence
from html import escape

# Whatever a file's name may contain, a browser neither runs a script nor asks a server with this policy.
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Data checks of {dataset}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse; margin: .5rem 0 }}
td, th {{ border: 1px solid #ccc; padding: .3rem .6rem; vertical-align: top; text-align: left }}
pre {{ white-space: pre-wrap }}
h5 {{ font-size: 1.1rem; margin: 1.5rem 0 .3rem }}
.fa-check-circle::before {{ content: "\\2714"; color: #0a7d33 }}
.fa-exclamation-triangle::before {{ content: "\\26A0"; color: #9a6700 }}
.fa-times::before {{ content: "\\2718"; color: #b00020 }}
</style>
</head>
<body>
<h1>Data checks of {dataset}</h1>
<pre>{message}</pre>
{sections}
</body>
</html>
"""


def page(dataset: str, message: str, sections: Sequence[str]) -> str:
    """One HTML document: `message` is text, `sections` are HTML."""
    return PAGE.format(dataset=escape(dataset), message=escape(message), sections="\n".join(sections))
