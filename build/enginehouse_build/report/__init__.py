"""The page a person reads: what was built and why not, how right and how fast it is, what to serve and why.

findings.py    what the page says: the manifest's figures joined, compared and ranked
charts.py      where the curves, ticks and labels of the latency tables lie
text.py        figures as short text
page.*         the template with its style and its script, put into the page itself
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from enginehouse.contract.manifest import Manifest
from enginehouse_build.report import text
from enginehouse_build.report.charts import charts
from enginehouse_build.report.findings import Findings

_FOLDER = Path(__file__).parent


def render(manifest: Manifest) -> str:
    """The report of `manifest` as one HTML page that needs no other file and no network.

    The same manifest gives the same page. Links lead to the logs in the bundle, relative to its folder.
    """
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(text.FILTERS)
    script = (_FOLDER / "page.js").read_text(encoding="utf-8")
    findings = Findings(manifest)
    return environment.get_template("page.html.j2").render(
        manifest=manifest,
        findings=findings,
        charts=charts(findings),
        style=Markup((_FOLDER / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        # Only this script may run in the page, whatever a manifest brings along.
        script_sha256=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
