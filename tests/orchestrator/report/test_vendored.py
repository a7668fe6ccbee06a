"""The one file in the page that others wrote: plotly.js, as its makers publish it."""

import hashlib
import re

from plotly.offline import get_plotlyjs_version

from orchestrator.report.template import PARTS

FILE, NOTE = PARTS / "plotly-cartesian.min.js", PARTS / "plotly-cartesian.md"


def test_the_bundle_is_what_its_note_says() -> None:
    digest = hashlib.sha256(FILE.read_bytes()).hexdigest()
    assert digest in NOTE.read_text()
    assert "Permission is hereby granted, free of charge" in (PARTS / "plotly-cartesian.LICENSE").read_text()


def test_the_bundle_has_the_version_for_which_the_python_package_makes_figures() -> None:
    version = re.search(r"plotly.js \(cartesian - minified\) v([\d.]+)", FILE.read_text()[:200])
    assert version
    assert version[1] in NOTE.read_text()
    assert version[1].split(".")[0] == get_plotlyjs_version().split(".")[0]
